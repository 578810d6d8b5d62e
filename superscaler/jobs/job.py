"""Job: which processes a build needs, on how many machines, and what they are told."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from superscaler.errors import BuildError
from superscaler.runtime.build import Build


@dataclass(frozen=True, slots=True)
class Job:
    """The processes of a build, as many on each machine."""

    name: str
    """Lower-case letters, digits and dashes, as names of hosts are."""
    script: str
    """The entry script of the build, where the machines find it."""
    arguments: tuple[str, ...]
    """Of the script."""
    nodes: int
    processes: int
    """On each node."""
    environment: Mapping[str, str]
    port: int = 29500
    """Where the first node listens for the others."""
    min_nodes: int = 0
    """With how many nodes a run goes on that has lost some; 0: with all."""
    max_restarts: int = 0
    """How often all processes are started anew after one has failed."""
    is_gpu: bool = True
    """Whether each process has a GPU."""

    def torchrun(self, first: str, own: str, number: str) -> str:
        """The command of one node, for a shell.

        Without restarts each node is told its number, and its torchrun ends when a process of it has. With restarts
        all meet anew each time (rendezvous `c10d`), so torchrun holds on to the connection to the first node, also
        after the network has gone, until the system gives the connection up.

        Args:
            first: Name of the first node, where all meet.
            own: The name by which other nodes reach this one; torchrun would take what it finds by itself.
            number: Of this node, from 0. All three may be shell variables.
        """
        options = {
            "--nnodes": f"{self.min_nodes}:{self.nodes}" if self.min_nodes else str(self.nodes),
            "--nproc-per-node": str(self.processes),
            "--max-restarts": str(self.max_restarts),
        }
        if self.max_restarts:
            options |= {
                "--rdzv-backend": "c10d",
                "--rdzv-id": self.name,
                "--rdzv-endpoint": f'"{first}:{self.port}"',
                "--rdzv-conf": f'"is_host={_is_first(number)}"',
                "--local-addr": f'"{own}"',
            }
        else:
            options |= {
                "--node-rank": f'"{number}"',
                "--master-addr": f'"{first}"',
                "--master-port": str(self.port),
            }
        words = [word for option in options.items() for word in option]
        return " ".join(["torchrun", *words, *map(shlex.quote, (self.script, *self.arguments))])


def _is_first(number: str) -> str:
    """Whether a node is the first, 1 or 0, for a shell; torchrun would guess it from names."""
    if number.isdecimal():
        return str(int(number == "0"))
    return f'$([ "{number}" = 0 ] && echo 1 || echo 0)'


def job_of(
    build: Build,
    *,
    nodes: int | None = None,
    processes: int | None = None,
    script: str = "",
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    port: int = 29500,
    min_nodes: int = 0,
    max_restarts: int = 0,
    is_gpu: bool = True,
) -> Job:
    """The job of a build; what is not said of nodes and processes follows from the cluster it was planned for.

    Raises:
        BuildError: So many nodes with so many processes are not what the plan needs.
    """
    if nodes is None or processes is None:
        nodes, processes = _shared_out(build, nodes, processes)
    if nodes * processes != build.world_size:
        raise BuildError(
            f"plan {build.plan!r} of {build.name} needs {build.world_size} processes; {nodes} node(s) with "
            f"{processes} each are {nodes * processes}",
            remedy="change --hosts, --nodes or --processes-per-node, or compile for another cluster",
        )
    arguments, environment = [*arguments], {**(environment or {})}
    if min_nodes:
        _check_elastic(min_nodes, nodes, max_restarts)
        arguments += ["--elastic", f"{min_nodes * processes}:{build.world_size}"]
        # otherwise processes would look for one another at the first node, which may be the one that is lost
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    script = script or str(build.folder.resolve() / build.entry)
    return Job(
        _name(build.folder), script, tuple(arguments), nodes, processes, environment, port, min_nodes,
        max_restarts, is_gpu,
    )  # fmt: skip


def _check_elastic(min_nodes: int, nodes: int, max_restarts: int) -> None:
    if not 1 <= min_nodes <= nodes:
        raise BuildError(
            f"a job of {nodes} node(s) cannot go on with {min_nodes}", remedy=f"say --min-nodes 1 to {nodes}"
        )
    if not max_restarts:
        raise BuildError(
            "a run that goes on with fewer nodes is started anew on them, and no restart is allowed",
            remedy="add --max-restarts 3",
        )


def _name(folder: Path) -> str:
    """A name for hosts made from that of a folder: it begins with a letter (RFC 1035)."""
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")
    return name if name[:1].isalpha() else f"train-{name}".strip("-")


def _shared_out(build: Build, nodes: int | None, processes: int | None) -> tuple[int, int]:
    """Nodes and processes per node, of which one may be known."""
    total = build.world_size
    if processes is None:
        processes = total // nodes if nodes else min(total, _devices_per_node(build))
    if nodes is None:
        nodes = total // processes
    return nodes, processes


def _devices_per_node(build: Build) -> int:
    """Of the cluster the plan was made for, over the nodes it uses."""
    used, found = 0, set()
    for count, devices in build.described.get("cluster", {}).get("nodes", ()):
        if used < build.world_size:
            found.add(devices)
        used += count * devices
    if len(found) == 1:
        return found.pop()
    what = "has unequal nodes" if found else "is not told by the build"
    raise BuildError(
        f"how many processes a node has is not clear: the cluster of {build.name} {what}",
        remedy="say --processes-per-node",
    )
