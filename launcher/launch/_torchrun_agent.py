"""torchrun that exits with the status of the rank that failed first.

`python -m launcher.launch._torchrun_agent FLAGS PROGRAM`; torchrun itself exits with 1 for every
cause, and prints a traceback of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from launcher.launch._signals import exit_status, unblock


def main(words: Sequence[str]) -> int:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    unblock()
    try:
        run(parse_args(list(words)))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return exit_status(failure.exitcode)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
