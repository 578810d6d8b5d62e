"""Worker: a process that measures: ``torchrun ... -m superscaler.profiling.worker TASK RESULT``, two files."""

import os
import pickle
import sys
from pathlib import Path

from superscaler.profiling.measuring import Task, measure


def main(task_file: str, result_file: str) -> None:
    """Measure, and write the result if this is rank 0."""
    task: Task = pickle.loads(Path(task_file).read_bytes())
    result = measure(task)
    if int(os.environ.get("RANK", "0")) == 0:
        Path(result_file).write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
