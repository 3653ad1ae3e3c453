"""The program of every rank of `verify --faults`: `python -m launcher.verify._rank_faults RUN_DIR`.

The training of `trainctl run`, on few records.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from launcher.launch import joined_world, rank_main
from launcher.run_dir import RunDir
from launcher.verify.shrink import MAX_RECORDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from signal import Signals

    from launcher.training.runner import Outcome


def _run(run_dir: RunDir, stop: Callable[[], Signals | None]) -> Outcome:
    from launcher.config.schema import RunConfig

    config = RunConfig.read(run_dir.config)
    with joined_world(config) as world:
        from launcher.launch import heartbeat
        from launcher.training.parts import read_data
        from launcher.training.runner import run

        data = read_data(config, MAX_RECORDS)
        return run(config, run_dir, world, stop, heartbeat(world.rank), data=data)


if __name__ == "__main__":
    sys.exit(rank_main(sys.argv[1], _run))
