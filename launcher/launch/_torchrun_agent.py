"""torchrun that exits with the status of the rank that failed first.

`python -m launcher.launch._torchrun_agent FLAGS PROGRAM`; torchrun itself exits with 1 for every
cause, and prints a traceback of its own.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from launcher.launch._signals import DUMP, STOPPING


def main(words: Sequence[str]) -> int:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # The launcher starts its processes with these blocked, and the ranks would inherit it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [*STOPPING, DUMP])
    try:
        run(parse_args(list(words)))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        status: int = failure.exitcode
        return status if status >= 0 else 128 - status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
