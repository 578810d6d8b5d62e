"""The launcher of ranks that a command of superscaler starts: torchrun, without its own traceback.

Where a rank fails, or a signal ends all, the ranks have said why, and torchrun's log has a line with how they ended.
"""

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    try:
        main()
    except ChildFailedError:
        sys.exit(1)
    except SignalException as error:
        sys.exit(128 + error.sigval)  # as shells count it
