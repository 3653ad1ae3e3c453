"""Proof that a config trains the same on other engines: `trainctl verify`.

The user's resolved config is run for some steps by one process and by every engine, number of ranks
and cut of the global batch that are asked for (`cells`). Each run is a cell (`trajectory`, executed
by the ranks of `_rank`); `session` starts the ranks, `compare` judges each cell by the measure of
`measure`, `result` has the outcome. No engine is known by name: what an engine cannot do it refuses
itself (`Option.problems`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.config.schema import RunConfig
    from launcher.verify.result import Verification
    from launcher.verify.session import CellResult

STEPS = 8
"""Default number of optimizer steps."""


def verify(
    config: RunConfig,
    *,
    engines: Sequence[str] = ("all",),
    ranks: Sequence[int] = (2,),
    accumulations: Sequence[int] = (1, 4),
    steps: int = STEPS,
    shrink: bool = False,
    config_dirs: Sequence[str | Path] = (),
    report: Callable[[CellResult], None] | None = None,
) -> Verification:
    """Compare the training of a config on several engines with that of one process.

    Args:
        config: The resolved config. Its engine, number of ranks and micro-batch are replaced.
        engines: Names of presets of `parallelism`; `config` for the config's own, or `all`.
        ranks: Numbers of processes; all of them run on this machine.
        accumulations: Numbers of micro-batches into which a data rank cuts its share of a window.
        steps: Optimizer steps of each cell.
        shrink: Take a small model of the same architecture, short samples and few records.
        config_dirs: The user's folders of YAML, where presets are looked for too.
        report: Called with each result as soon as there is one.

    Raises:
        TrainctlError: The reference cannot be run, or an engine is not known.
    """
    import secrets
    import time

    from launcher.config import derive
    from launcher.verify import cells
    from launcher.verify import shrink as smaller
    from launcher.verify.certificate import folder_of
    from launcher.verify.result import Verification
    from launcher.verify.session import Session

    started = time.monotonic()
    options = cells.engines(config, engines, config_dirs)
    folder = folder_of(config) / f"work-{secrets.token_hex(4)}"
    ran, samples, max_records = config, derive.batch_plan(config).samples_per_step, None
    if shrink:
        ran = smaller.shrunk(config, steps, folder / "model")
        samples = smaller.samples_per_step(config, ranks, accumulations)
        max_records = smaller.MAX_RECORDS
    session = Session(ran, samples, steps, folder, max_records, report or (lambda _: None))
    reference = cells.reference_option(config_dirs)
    comparison = session.run(options, reference, ranks, accumulations)
    return Verification(
        config=config,
        ran=ran,
        shrunk=shrink,
        engines=options,
        samples_per_step=samples,
        comparison=comparison,
        seconds=time.monotonic() - started,
        # Once: every file of the result has to say the same.
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
