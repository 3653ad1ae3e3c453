"""Program of every rank: `python -m launcher.launch._worker RUN_DIR`.

Without a run directory it waits for one (see `_early`).
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import ConfigError, LaunchError, Problem, TrainctlError
from launcher.launch._environment import EARLY_FD, LAUNCHER_PID
from launcher.launch._signals import DUMP, StopFlag
from launcher.run_dir import RunDir

if TYPE_CHECKING:
    from launcher.config.schema import RunConfig
    from launcher.contracts import World
    from launcher.training.runner import Outcome

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def main(path: str, run: Callable[[RunDir, StopFlag], Outcome] | None = None) -> int:
    """Run this rank, by default with config.json of the run directory; return its exit status."""
    _keep_freed_memory()
    _die_with_launcher()
    stop = StopFlag()
    stop.install()
    run_dir = RunDir(Path(path))
    rank = int(os.environ.get("RANK", "0"))
    from launcher.launch._record import record_completed, record_failed

    try:
        _log_to(run_dir.log(rank))
        outcome = (run or _run)(run_dir, stop)
    except BaseException as error:
        if isinstance(error, TrainctlError):
            logging.getLogger("trainctl").debug("the run ended", exc_info=True)
        else:
            logging.getLogger("trainctl").exception("rank %d failed", rank)
        status = record_failed(run_dir, rank, _attributed(run_dir, error))
        # The launcher prints the error of the rank that failed first. Without it nobody would.
        if LAUNCHER_PID not in os.environ:
            sys.excepthook(type(error), error, error.__traceback__)
        if "WORLD_SIZE" in os.environ:
            # Other ranks may be in the middle of a collective with this one: leave no time for
            # libraries to end their threads in an order that aborts the process.
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        return status
    return record_completed(run_dir, rank, outcome)


def _run(run_dir: RunDir, stop: StopFlag) -> Outcome:
    # Imported after the handlers are installed: the imports take time, in which a signal may come.
    from launcher.config.derive import resized
    from launcher.config.schema import RunConfig
    from launcher.contracts import recorded

    try:
        config = RunConfig.from_json(run_dir.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LaunchError(f"cannot read {run_dir.config}: {reason}") from error
    with recorded(config) as reads:
        # An elastic launcher may have started fewer ranks than configured.
        config = resized(config, int(os.environ.get("WORLD_SIZE", "1")))
        outcome = _run_config(config, run_dir, stop)
    return replace(outcome, unread=reads.unread())


def _run_config(config: RunConfig, run_dir: RunDir, stop: StopFlag) -> Outcome:
    # The launcher replaces a search by its result before the run: only trials still have one.
    trial = config.accumulation.search is not None
    # Trials show no warnings: the run will show the same ones.
    with joined_world(config, warns=not trial) as world:
        if trial:
            from launcher.launch._trial import run_trial

            return run_trial(config, run_dir, world, stop)
        from launcher.launch._heartbeat import Heartbeat
        from launcher.training.runner import run

        return run(config, run_dir, world, stop, Heartbeat(world.rank))


@contextmanager
def joined_world(config: RunConfig, *, warns: bool = False) -> Iterator[World]:
    """Make this process a rank: import torch, choose threads and device, join the others.

    Args:
        config: The resolved config.
        warns: Show warnings on rank 0 from now on.

    Yields:
        This rank's place among the ranks.

    Raises:
        ConfigError: An option does not support the device.
        LaunchError: The device is not there, or the ranks cannot reach each other.
    """
    from launcher import __version__
    from launcher.config.rules import unsupported
    from launcher.contracts import unrecorded
    from launcher.launch._world import process_group, read_world, share_of_cores

    world = read_world(config.launch.device, config.parallelism.layout)
    with unrecorded():
        problems = list(unsupported(config, world.device.partition(":")[0]))
    if problems:
        raise ConfigError(problems)
    if world.rank == 0 and warns:
        config.logging.show_warnings()

    from launcher.launch._lazy_dynamo import import_torch

    import_torch()
    import torch

    if (threads := config.launch.threads or share_of_cores(os.environ)) is not None:
        torch.set_num_threads(threads)
    if torch.device(world.device).type == "cuda":
        # Kernels of libraries, memory statistics and generators use the current device, cuda:0 by
        # default: all ranks would allocate there.
        torch.cuda.set_device(world.device)
    identity = f"trainctl {__version__} with config {config.fingerprint()[:12]}"
    with process_group(world, config.launch.timeout_s, identity):
        yield world


def _attributed(run_dir: RunDir, error: BaseException) -> BaseException:
    # The ranks compose nothing: who set a key is known from provenance.json only.
    if not isinstance(error, ConfigError):
        return error
    origins = run_dir.read_provenance()
    problems: Sequence[Problem] = [
        replace(each, origin=each.origin or origins.get(each.key, "")) for each in error.problems
    ]
    return ConfigError(problems)


def _log_to(path: Path) -> None:
    """Write all log messages to the rank's file; sinks add the console."""
    try:
        path.parent.mkdir(exist_ok=True)
        handler = logging.StreamHandler(path.open("a", encoding="utf-8"))
    except OSError as error:
        raise LaunchError(f"cannot write {path}: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("trainctl").setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    faulthandler.enable(handler.stream)
    # On a hang the launcher requests the stacks. faulthandler's handler is C: it works while the
    # main thread is in a collective, and needs neither the GIL nor memory.
    faulthandler.register(DUMP, handler.stream, all_threads=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [DUMP])


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory that a step frees, instead of returning it to the system."""
    # With its default thresholds the page faults of a small model on the CPU take more than a tenth
    # of a step. glibc raises them to these values itself, but only after a large block has been
    # freed, which depends on what was imported.
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(AttributeError):  # not glibc
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        library.mallopt(_M_TRIM_THRESHOLD, 64 * 2**20)


def _die_with_launcher() -> None:
    # An orphan would train on, and write to the same run directory as a resumed run.
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the call: then no signal will come. It need not be the
    # launcher: torchrun's agent may be between them.
    launcher = os.environ.get(LAUNCHER_PID)
    if launcher is None or os.getppid() == int(launcher):
        return
    try:
        os.kill(int(launcher), 0)
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)
    except PermissionError:
        pass


def _early() -> int:

    from launcher.launch._early import wait_for_run

    _die_with_launcher()
    path = wait_for_run()
    return 0 if path is None else main(path)


if __name__ == "__main__":
    sys.exit(_early() if EARLY_FD in os.environ else main(sys.argv[1]))
