"""The launcher of ranks that a command of superscaler starts: torchrun, without its own traceback.

Where a rank fails, or a signal ends all, the ranks have said why, and torchrun's log has a line with how they ended.
"""

import sys


def launcher(ranks: int) -> list[str]:
    """The command that starts so many ranks on this machine; the script and its arguments come behind it."""
    own = "superscaler.runtime.launcher"
    return [sys.executable, "-m", own, "--standalone", "--nproc-per-node", str(ranks)]


def main() -> None:
    """Run torchrun with the arguments of this process, and end with its exit code."""
    # who only wants the command does without these
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun()
    except ChildFailedError:
        sys.exit(1)
    except SignalException as error:
        sys.exit(128 + error.sigval)  # as shells count it


if __name__ == "__main__":
    main()
