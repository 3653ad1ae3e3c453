"""deepspeed that forwards signals to its ranks, and exits with the status of the first to fail.

`python -m launcher.launch._deepspeed_agent FLAGS PROGRAM`; deepspeed's own command ends at SIGTERM,
and leaves its ranks running.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from launcher.launch._signals import STOPPING, exit_status, unblock


def main(words: Sequence[str]) -> int:
    for number in STOPPING:
        signal.signal(number, _forward)
    unblock()
    from deepspeed.launcher.runner import main as run

    try:
        run(list(words))
    except SystemExit as end:
        return 1 if isinstance(end.code, str) else exit_status(int(end.code or 0))
    return 0


def _forward(number: int, frame: FrameType | None) -> None:
    """Send a signal to the ranks' launchers, which save and end; without any, end here."""
    del frame
    import psutil

    # deepspeed's runner starts a process, which starts the ranks.
    children = psutil.Process().children()
    ranks = [each for child in children for each in child.children()]
    for process in ranks or children:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
    if not ranks:
        os._exit(130 if number == signal.SIGINT else 75)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
