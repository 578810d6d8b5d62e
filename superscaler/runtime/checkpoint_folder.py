"""A folder of training checkpoints, ``step-00000200`` and so on: which there are, how one gets its name, which go.

A checkpoint is written as ``step-00000200.unfinished`` and renamed when all of it is on the disk, and one that goes is
renamed before anything of it is removed. So whatever bears the name of a step was whole.
"""

import re
import shutil
from pathlib import Path

from superscaler.errors import BuildError
from superscaler.runtime.safetensors_files import sync_folder

_STEP = re.compile(r"step-(\d{8,18})")
_LEFTOVER = re.compile(r"step-\d{8,18}\.(unfinished|removed)")


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        path: The folder; made when the first checkpoint is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, ascending.

        Raises:
            BuildError: The path is no folder.
        """
        if not self.path.exists():
            return []
        if not self.path.is_dir():
            raise BuildError(f"{self.path} is no folder", remedy="name a folder with --checkpoint")
        found = (_STEP.fullmatch(item.name) for item in self.path.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def of(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.path / f"step-{step:08}"

    def unfinished(self, step: int) -> Path:
        """Where the checkpoint of a step is written."""
        return self._beside(step, "unfinished")

    def start(self, step: int) -> None:
        """Make the folder to write the checkpoint of a step into; what earlier runs left unfinished is removed."""
        self.path.mkdir(parents=True, exist_ok=True)
        sync_folder(self.path.parent)
        for item in self.path.iterdir():
            if _LEFTOVER.fullmatch(item.name):
                _remove(item)
        self.unfinished(step).mkdir()

    def commit(self, step: int, after: int) -> list[int]:
        """Give the checkpoint of a step its name, once it is whole.

        What the run did after step `after`, where it last was saved or from where it was resumed, it does anew:
        checkpoints of later steps are set aside as ``step-...abandoned``, or they would be taken for its own.
        Returns their steps.
        """
        sync_folder(self.unfinished(step))
        later = [other for other in self.steps() if other > after]
        for other in reversed(later):
            aside = self._beside(other, "abandoned")
            _remove(aside)
            self.of(other).rename(aside)
        self.unfinished(step).rename(self.of(step))
        sync_folder(self.path)
        return later

    def keep(self, count: int) -> None:
        """Remove all but the newest checkpoints."""
        for step in self.steps()[:-count]:
            condemned = self._beside(step, "removed")
            self.of(step).rename(condemned)
            sync_folder(self.path)
            _remove(condemned)

    def _beside(self, step: int, suffix: str) -> Path:
        path = self.of(step)
        return path.with_name(f"{path.name}.{suffix}")


def _remove(path: Path) -> None:
    """Remove a folder with all it holds, or a link without what it leads to."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
