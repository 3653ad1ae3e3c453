"""The program of every rank of a verification: `python -m launcher.verify._rank RUN_DIR`.

Runs cells one after the other, because starting a rank takes longer than a small cell. Each cell's
record is written before the next one starts: after a crash the launcher starts new ranks for those
that are left.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.launch import joined_world, rank_main
from launcher.run_dir import RunDir
from launcher.verify.files import CELLS, record_file, started_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from signal import Signals

    from launcher.training.runner import Outcome


def _run(run_dir: RunDir, stop: Callable[[], Signals | None]) -> Outcome:
    from launcher.config.schema import RunConfig

    config = RunConfig.read(run_dir.config)
    job: Mapping[str, Any] = json.loads((run_dir.path / CELLS).read_text(encoding="utf-8"))
    with joined_world(config) as world:
        from launcher.contracts import TrainState
        from launcher.launch import heartbeat
        from launcher.training.parts import read_data
        from launcher.training.requests import RankRequests
        from launcher.training.runner import Outcome
        from launcher.verify.trajectory import Weights, run_cell

        beat = heartbeat(world.rank)
        # Read once: all cells have the same data, task and model, and encoding takes longer than
        # the steps of a small cell.
        data = read_data(config, job["max_records"])
        cells: Sequence[Mapping[str, Any]] = job["cells"]
        for each in cells:
            record = record_file(run_dir, each["id"], world.rank)
            record.parent.mkdir(parents=True, exist_ok=True)
            if world.rank == 0:
                started_file(run_dir, each["id"]).touch()
            cell = RunConfig.from_mapping(each["config"])
            own = run_cell(
                cell,
                replace(world, layout=cell.parallelism.layout(world.size)),
                steps=job["steps"],
                weights=Weights(Path(job["reference"]), stored=each["stored"]),
                data=data,
                requests=RankRequests(stop, None),
                beat=beat,
            )
            own.write(record)
        return Outcome(TrainState(), {}, {}, None)


if __name__ == "__main__":
    sys.exit(rank_main(sys.argv[1], _run))
