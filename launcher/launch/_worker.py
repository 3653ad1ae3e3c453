"""What every rank executes: `python -m launcher.launch._worker RUN_DIR`.

Reads RUN_DIR/config.json, runs, and records how it ended in RUN_DIR/result.json, from which the
launcher takes result, error and exit status. A TrainctlError is recorded and not printed here;
anything else prints whole.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import ConfigError, LaunchError, Problem, TrainctlError
from launcher.launch._signals import StopFlag
from launcher.run_dir import RunDir, write_atomically

if TYPE_CHECKING:
    from launcher.training.runner import Outcome

_PR_SET_PDEATHSIG = 1


def main(path: str) -> int:
    """Run this rank in a run directory and return its exit status."""
    _die_with_launcher()
    stop = StopFlag()
    stop.install()
    run_dir = RunDir(Path(path))
    rank = int(os.environ.get("RANK", "0"))
    _log_to(run_dir.log(rank))
    try:
        outcome = _run(run_dir, stop)
    except TrainctlError as error:
        logging.getLogger("trainctl").debug("the run ended", exc_info=True)
        told = error
        if isinstance(error, ConfigError):
            told = ConfigError(_attributed(run_dir, error.problems))
        _record(run_dir, rank, error=type(told).__name__, message=str(told))
        return told.exit_status
    except BaseException:
        logging.getLogger("trainctl").exception("rank %d failed", rank)
        raise
    _record(
        run_dir,
        rank,
        step=outcome.state.step,
        scores=dict(outcome.scores),
        references=dict(outcome.references),
        sample=outcome.sample,
    )
    return 0


def _run(run_dir: RunDir, stop: StopFlag) -> Outcome:
    # Imported here: the signals of a launch that is cancelled at once must find their handlers.
    from launcher.config.rules import unsupported
    from launcher.config.schema import RunConfig
    from launcher.launch._world import read_world

    try:
        config = RunConfig.from_json(run_dir.config.read_text(encoding="utf-8"))
    except OSError as error:
        raise LaunchError(f"cannot read {run_dir.config}: {error.strerror}") from error
    world = read_world(config.launch.device, config.parallelism.layout)
    if problems := list(unsupported(config, world.device.partition(":")[0])):
        raise ConfigError(problems)
    # The launcher decides before a run, so that only its trials still have a search.
    trial = config.accumulation.search is not None
    # The run will warn of the same as its trials.
    if world.rank == 0 and not trial:
        config.logging.listen()

    import torch

    if config.launch.threads is not None:
        torch.set_num_threads(config.launch.threads)
    if torch.device(world.device).type == "cuda":
        # Libraries' kernels, memory figures and random states are the current device's.
        torch.cuda.set_device(world.device)
    if trial:
        from launcher.launch._trial import try_out

        return try_out(config, run_dir, world, stop)
    from launcher.training.runner import run

    return run(config, run_dir, world, stop)


def _attributed(run_dir: RunDir, problems: Sequence[Problem]) -> list[Problem]:
    """The problems, with who set each key, as far as the run directory says."""
    try:
        origins: dict[str, str] = json.loads(run_dir.provenance.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        origins = {}
    return [replace(each, origin=each.origin or origins.get(each.key, "")) for each in problems]


def _record(run_dir: RunDir, rank: int, **values: object) -> None:
    if rank == 0:
        write_atomically(run_dir.result, json.dumps(values, indent=1) + "\n")


def _log_to(path: Path) -> None:
    """Everything that is logged goes to the rank's own file; sinks add the console."""
    path.parent.mkdir(exist_ok=True)
    handler = logging.StreamHandler(path.open("a", encoding="utf-8"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("trainctl").setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    faulthandler.enable(handler.stream)


def _die_with_launcher() -> None:
    """A launcher that is killed must not leave ranks that train on as orphans."""
    if sys.platform != "linux":
        return
    launcher = os.environ.get("TRAINCTL_LAUNCHER_PID")
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have died before the call: then no signal will come.
    if launcher is not None and os.getppid() != int(launcher):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
