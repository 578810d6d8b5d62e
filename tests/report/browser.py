"""A headless Chromium, driven through the pipe of its remote debugging protocol; it needs no package."""

import base64
import fcntl
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATH = next(filter(None, map(shutil.which, NAMES)), None)
"""The browser of this machine, if it has one."""
SECONDS = 30
"""How long to wait for an answer."""


class Browser:
    """A browser, and the page it has open."""

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers = commands, answers
        self.buffer = b""
        self.number = 0
        self.target = ""
        self.session: dict[str, str] = {}
        self.complaints: list[str] = []
        """What the console of the page has to say, and what the page asked the network for."""

    def open(self, page: Path, width: int = 1200, height: int = 900, *, dark: bool = False) -> None:
        """Open a file in a fresh window of this size, and wait until it is shown."""
        self.session, before = {}, self.target
        self.target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        if before:
            self.ask("Target.closeTarget", targetId=before)
        attached = self.ask("Target.attachToTarget", targetId=self.target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        self.complaints.clear()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=page.resolve().as_uri())
        until = time.monotonic() + SECONDS
        while self.evaluate("document.readyState") != "complete" and time.monotonic() < until:
            time.sleep(0.02)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, **options: Any) -> None:
        """A ``mouseMoved``, ``mousePressed``, ``mouseReleased`` or ``mouseWheel`` at a point of the window."""
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **options)

    def key(self, key: str) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key)

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        """A picture of the window, or of the whole page."""
        answer = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(answer["data"]))

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; events that come before it are looked through for complaints."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters, **self.session}
        os.write(self.commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self.number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._listen(message.get("method", ""), message.get("params", {}))

    def _listen(self, event: str, about: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent" and about["request"]["url"].startswith("http"):
            self.complaints.append(f"asks for {about['request']['url']}")
        if event in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(about))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            read = os.read(self.answers, 1 << 16)
            assert read, "the browser has ended"
            self.buffer += read
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)


@contextmanager
def running() -> Iterator[Browser]:
    """A browser, ended at the end."""
    assert PATH
    profile = tempfile.mkdtemp(prefix="browser")
    pipes = [_high(end) for pair in (os.pipe(), os.pipe()) for end in pair]
    its_commands, commands, answers, its_answers = pipes
    flags = (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={profile}",
    )  # fmt: skip
    nowhere = os.open(os.devnull, os.O_RDWR)
    # the protocol wants its commands in descriptor 3 and answers in descriptor 4
    places = ((its_commands, 3), (its_answers, 4), (nowhere, 1), (nowhere, 2))
    actions = [(os.POSIX_SPAWN_DUP2, end, place) for end, place in places]
    process = os.posix_spawn(PATH, [PATH, *flags], os.environ, file_actions=actions, setsid=True)
    for end in (its_commands, its_answers, nowhere):
        os.close(end)
    try:
        yield Browser(commands, answers)
    finally:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(commands)
        os.close(answers)
        shutil.rmtree(profile, ignore_errors=True)


def _high(descriptor: int) -> int:
    """The same pipe under a number that is not in the way."""
    high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return high
