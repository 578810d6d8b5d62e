"""Where torch.distributed.checkpoint (DCP) writes and reads: a folder of checksummed .safetensors files and a manifest.

DCP's own file system storage keeps its metadata as a pickle, and its Hugging Face storage holds one box of a tensor
per file; neither has checksums, nor ever says that a checkpoint is whole.
"""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from superscaler.errors import BuildError
from superscaler.runtime.checkpoint_folder import CheckpointFolder
from superscaler.runtime.checkpoint_manifest import (
    CheckpointTensor,
    Manifest,
    RunRecord,
    StoredPiece,
    write_manifest,
)
from superscaler.runtime.checksummed_file import ChecksummedFile, FileRecord, write_checksummed
from superscaler.runtime.safetensors_files import Header


class FolderWriter(StorageWriter):
    """Writes one file per rank, and the manifest once the files of all ranks are there; then it is a checkpoint.

    Args:
        checkpoints: Where; a folder that all ranks see.
        run: What the manifest says of the run, but for the position, which comes with the planners' metadata.
        keep: How many of the newest checkpoints stay.
        after: The step of the checkpoint that the run made or came from before this one; -1 for none.
    """

    def __init__(self, checkpoints: CheckpointFolder, run: RunRecord, keep: int, after: int) -> None:
        self._checkpoints, self._run, self._keep, self._after = checkpoints, run, keep, after
        self._folder = checkpoints.unfinished(run.step)
        self.abandoned: list[int] = []
        """The steps of checkpoints that are set aside; known on the first rank."""

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: a writer writes one checkpoint."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Never chosen by the name of a place."""
        return False

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Make the folder."""
        if is_coordinator:
            self._checkpoints.start(self._run.step)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Name the file of each rank."""
        return [replace(plan, storage_data=f"rank{rank:05}.safetensors") for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's file, if it has anything to write."""
        items = {_key(item.index): item for item in plan.items}
        results = []
        if items:
            headers = {key: _header(item) for key, item in items.items()}

            def read(key: str) -> Tensor:
                value = planner.resolve_data(items[key])
                assert isinstance(value, Tensor)
                return value.detach().cpu().contiguous()

            record = write_checksummed(self._folder / plan.storage_data, headers, read)
            results = [WriteResult(item.index, record.num_bytes, record) for item in plan.items]
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the manifest, once every file is seen in full, and give the folder its name."""
        written = {result.index: result.storage_data for rank in results for result in rank}
        files = list(dict.fromkeys(written.values()))
        for file in files:
            path = self._folder / file.name
            size = path.stat().st_size if path.exists() else 0
            if size != file.num_bytes:
                raise BuildError(
                    f"rank 0 sees {size} of the {file.num_bytes} bytes of {path} that another rank wrote",
                    remedy="give a --checkpoint folder on a file system that all ranks share",
                )
        numbers = {file.name: number for number, file in enumerate(files)}
        tensors = {}
        for name, tensor in metadata.state_dict_metadata.items():
            assert isinstance(tensor, TensorStorageMetadata)
            pieces = tuple(
                StoredPiece(
                    tuple(chunk.offsets),
                    tuple(chunk.sizes),
                    numbers[written[MetadataIndex(name, chunk.offsets)].name],
                )
                for chunk in tensor.chunks
            )
            tensors[name] = CheckpointTensor(Header(tuple(tensor.size), tensor.properties.dtype), pieces)
        run = replace(self._run, position=metadata.planner_data)
        write_manifest(self._folder, Manifest(run, tuple(files), tensors))
        self.abandoned = self._checkpoints.commit(self._run.step, self._after)
        self._checkpoints.keep(self._keep)


class FolderReader(StorageReader):
    """Reads pieces of a folder whose manifest is known.

    Args:
        folder: The checkpoint.
        manifest: What it holds.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: a reader reads one checkpoint."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Never chosen by the name of a place."""
        return False

    def read_metadata(self, *args: Any) -> Metadata:
        """The manifest in DCP's terms."""
        tensors: dict[str, Any] = {
            name: TensorStorageMetadata(
                TensorProperties(dtype=_torch_dtype(tensor.header)),
                torch.Size(tensor.header.shape),
                [ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.sizes)) for p in tensor.pieces],
            )
            for name, tensor in self._manifest.tensors.items()
        }
        files = {
            MetadataIndex(name, piece.offsets): self._manifest.files[piece.file]
            for name, tensor in self._manifest.tensors.items()
            for piece in tensor.pieces
        }
        return Metadata(tensors, storage_data=files)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Take note of where pieces are."""
        self._files: dict[MetadataIndex, FileRecord] = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read and verify, file by file, only what this rank wants."""
        by_file: defaultdict[FileRecord, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            by_file[self._files[item.storage_index]].append(item)
        for record, items in by_file.items():
            with ChecksummedFile(self._folder, record) as file:
                for item in items:
                    target = planner.resolve_tensor(item)
                    file.read_into(_key(item.storage_index), item.storage_offsets, target)
                    planner.commit_tensor(item, target)
        return _done(None)


def _key(index: MetadataIndex) -> str:
    """What a file calls a box: ``h.0.attn.weight@768,0``."""
    assert index.offset is not None
    return f"{index.fqn}@{','.join(map(str, index.offset))}"


def _header(item: WriteItem) -> Header:
    data = item.tensor_data
    assert data is not None
    return Header(tuple(data.chunk.sizes), data.properties.dtype)


def _torch_dtype(header: Header) -> torch.dtype:
    assert isinstance(header.dtype, torch.dtype)
    return header.dtype


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
