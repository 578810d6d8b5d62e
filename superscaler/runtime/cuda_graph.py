"""CUDA graphs: what records steps on a GPU, and which programs it can record."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from superscaler.errors import BuildError
from superscaler.runtime.build import Build
from superscaler.runtime.ranks import served_devices
from superscaler.runtime.recorded import Outputs, RecordedStep, record_program
from superscaler.runtime.waits import Waits

_IN_HOST_MEMORY = ("fetch", "fetch_ahead", "stow", "to_device", "to_host", "update_fetching")
"""Words of programs that move tensors to host memory, or from there."""
_REMEDY = "train without --cuda-graphs (cuda_graphs=True)"


class CudaRecorder:
    """Records what a step launches, its communication too, in a stream of its own.

    Args:
        device: The GPU of this rank.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def warm_up(self, step: Callable[[], Outputs]) -> Outputs:
        """Run a step in the stream in which it will be recorded."""
        now = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            outputs = step()
        now.wait_stream(self._stream)
        return outputs

    def record(self, step: Callable[[], Outputs]) -> tuple[Outputs, "CudaRecording"]:
        """Record a step, in memory that no one else gets.

        Raises:
            RuntimeError: It does something that cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        cause: Exception | None = None
        try:
            # threads that read batches and watch over ranks go on, and what they call is no part of the record
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                try:
                    outputs = step()
                except Exception as error:
                    cause = error
                    raise
        except Exception as error:
            raise (
                cause or error
            ) from None  # the end of a record fails too where its step did, and says only that
        return outputs, CudaRecording(graph)


class CudaRecording:
    """A graph, replayed in the stream that is current.

    No more than one replay waits behind another. The program could be ahead of the device by any number of steps
    otherwise, and who watches would take the time until a replay begins for time in which it hangs.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self._graph = graph
        self._ends: list[torch.cuda.Event] = []

    def replay(self) -> None:
        """Put the graph into the queue."""
        if len(self._ends) == 2:
            self._ends.pop(0).synchronize()
        self._graph.replay()
        end = torch.cuda.Event()
        end.record()
        self._ends.append(end)

    def close(self) -> None:
        """Free the graph; NCCL does not end communicators that one still uses."""
        torch.cuda.synchronize()
        self._graph.reset()


def record_in_cuda_graph(
    build: Build, rank: int, module: Any, device: torch.device, waits: Waits
) -> RecordedStep:
    """Let the ``train_step`` of a program be recorded in a CUDA graph and replayed.

    Args:
        build: What the program is of.
        rank: This process.
        module: The program.
        device: Where it runs.
        waits: Told of every replay.

    Raises:
        BuildError: It cannot be recorded; the message says why.
    """
    check_recordable(build, rank, module, device)
    return record_program(module, CudaRecorder(device), waits, range(build.world_size))


def check_recordable(build: Build, rank: int, module: Any, device: torch.device) -> None:
    """Refuse to record a program that cannot be.

    Args:
        build: What the program is of.
        rank: This process.
        module: The program.
        device: Where it runs.

    Raises:
        BuildError: It cannot; the message says why.
    """
    reason = _reason(build, rank, module, device)
    if reason:
        raise BuildError(f"no step of {build.name} can be recorded in a CUDA graph: {reason}", remedy=_REMEDY)


def _reason(build: Build, rank: int, module: Any, device: torch.device) -> str | None:
    """Why not; None where nothing is known to be in the way."""
    if not hasattr(module, "train_step"):
        return "it is a build for inference, and training steps are what is recorded"
    if device.type != "cuda":
        return f"rank {rank} runs on {device}, and CUDA graphs are of GPUs"
    if build.world_size > 1 and served_devices().get("cuda") != "nccl":
        return f"its ranks communicate by {served_devices().get('cuda', 'nothing')}, and only NCCL can be recorded"
    if build.sizes:
        return f"its sizes vary ({', '.join(build.sizes)}), and those of a record do not"
    used = sorted(_words(module).intersection(_IN_HOST_MEMORY))
    if used:
        return f"it keeps tensors in host memory ({', '.join(used)}), which moves them while the host waits"
    return None


def _words(module: Any) -> set[str]:
    """What a program asks modules and objects for, by its source: its functions may be compiled ones by now."""
    tree = ast.parse(Path(module.__file__).read_text())
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
