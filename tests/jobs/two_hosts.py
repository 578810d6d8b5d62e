"""Two hosts on this machine: network namespaces joined by a virtual cable, which can be cut."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")
INTERFACE = "cable"
LIMIT = 120
"""Seconds after which whatever runs on a host is killed."""


def may_make_hosts() -> bool:
    """Whether this user may make network namespaces, and has the programs for it."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    trial = ["unshare", "--net", "ip", "link", "add", "cable0", "type", "veth", "peer", "name", "cable1"]
    return subprocess.run(trial, capture_output=True, timeout=10, check=False).returncode == 0


@dataclass
class TwoHosts:
    names: tuple[str, str]
    folder: Path
    """Where what the hosts print lies."""
    running: list[subprocess.Popen] = field(default_factory=list)

    def cut(self) -> None:
        ip("-n", self.names[0], "link", "set", INTERFACE, "down")

    def mend(self) -> None:
        ip("-n", self.names[0], "link", "set", INTERFACE, "up")

    def start(self, commands: Sequence[str]) -> None:
        """A shell command on each host."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        root = Path(__file__).parents[2]
        for number, (name, command) in enumerate(zip(self.names, commands, strict=True)):
            with (
                (self.folder / f"out{number}").open("w") as out,
                (self.folder / f"err{number}").open("w") as err,
            ):
                self.running.append(subprocess.Popen(
                    ["ip", "netns", "exec", name, "bash", "-c", command],
                    stdout=out, stderr=err, start_new_session=True,
                    env={**os.environ, "PATH": path, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
                ))  # fmt: skip

    def kill_a_rank(self, host: int) -> None:
        """End a process of a program, not that of torchrun, at once."""
        ranks = [pid for pid in pids_on(self.names[host]) if b"torchrun" not in command_of(pid)]
        os.kill(max(pid for pid in ranks if b"train.py" in command_of(pid)), signal.SIGKILL)

    def codes(self) -> list[int]:
        """The exit codes, once both have ended."""
        return [process.wait(LIMIT) for process in self.running]

    def printed(self, stream: str) -> list[str]:
        return [(self.folder / f"{stream}{number}").read_text() for number in (0, 1)]


@contextmanager
def two_hosts(folder: Path) -> Iterator[TwoHosts]:
    names = (f"superscaler{os.getpid()}a", f"superscaler{os.getpid()}b")
    hosts = TwoHosts(names, folder)
    try:
        for name in names:
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            INTERFACE,
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            INTERFACE,
            "netns",
            names[1],
        )
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
            for device in ("lo", INTERFACE):
                ip("-n", name, "link", "set", device, "up")
        yield hosts
    finally:
        for process in hosts.running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
        for name in names:
            end_all_in(name)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def end_all_in(name: str) -> None:
    """Kill what is left on a host: torchrun's processes are in sessions of their own."""
    for pid in pids_on(name):
        os.kill(pid, signal.SIGKILL)


def pids_on(name: str) -> list[int]:
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in listed.split()]


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)
