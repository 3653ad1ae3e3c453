"""`trainctl lr`: the learning rate of every step, before the run."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli._arguments import Arguments, add_composition_flags, composition
from launcher.cli._console import print_json
from launcher.errors import ConfigError, TrainctlError, UsageError

if TYPE_CHECKING:
    from launcher.config.schema import RunConfig
    from launcher.contracts import Horizon, Schedule

# Evaluating a schedule takes about a microsecond: a plot of 10^12 steps would never end.
_DRAWN_STEPS = 1_000_000
# Close to 2^53, above which a float cannot hold every step: schedules compute in floats.
_FAR = 10**15
_PLOT_SUFFIXES = (".png", ".pdf")


def main(argv: list[str]) -> int:
    """Plot the schedule, or print its rates, from the config alone."""
    arguments = _arguments()
    flags, overrides = arguments.split(argv)
    loaded = composition(flags, overrides).load()
    config = loaded.config
    from launcher.config import derive

    try:
        horizon = derive.horizon_before_data(config, flags.num_samples)
        schedule = _built(config, horizon)
    except ConfigError as error:
        # Problems of the schedule that only the length of the run shows, with the origin of the
        # key.
        raise ConfigError(loaded.composed.attributed(error.problems)) from error
    title = f"scheduler={config.scheduler.kind}, {horizon.max_steps:,} steps"
    own = schedule.lr(0, {}) is None
    pictures = [path for path in (flags.svg, flags.plot) if path is not None]
    if own and pictures:
        raise UsageError("the optimizer sets its own learning rate: there is no curve to draw")
    for path in pictures:
        _write_picture(path, schedule, horizon.max_steps, title)
    if flags.json:
        steps = range(horizon.max_steps) if flags.at is None else flags.at
        rates = {"lr": [schedule.lr(step, {}) for step in steps]}
        print_json(rates if flags.at is None else {"step": steps, **rates})
    elif flags.at is not None:
        _print_chosen(schedule, flags.at)
    elif own:
        print(f"{title}: the optimizer sets its own learning rate")
    else:
        _print_plot(schedule, horizon.max_steps, title)
    return 0


def _arguments() -> Arguments:
    arguments = Arguments(
        "lr",
        "[group=option] [key=value]",
        "The learning rate of every optimizer step. Schedules that watch a score are shown as if "
        "there were no evaluation. A step whose update is skipped (the loss scale overflowed, the "
        "loss is not finite) counts like any other.",
        "trainctl lr scheduler=cosine scheduler.warmup_steps=10%",
        "trainctl lr max_steps=100000 --at 0,1000,99999",
        "trainctl lr scheduler=one_cycle --svg lr.svg",
        json=True,
    )
    arguments.add_argument(
        "--at", type=_steps, metavar="STEP,…", help="print the rates of these steps; the first is 0"
    )
    arguments.add_argument("--svg", type=_svg, metavar="FILE", help="draw the curve into FILE")
    arguments.add_argument(
        "--plot",
        type=_plot_file,
        metavar="FILE",
        help="draw it with matplotlib into FILE.png or FILE.pdf (pip install 'trainctl[plots]')",
    )
    arguments.add_argument(
        "--num-samples",
        type=_count,
        metavar="N",
        help="size of the training set, where the run's length depends on it",
    )
    add_composition_flags(arguments)
    return arguments


def _steps(text: str) -> list[int]:
    try:
        steps = [int(step) for step in text.replace("_", "").split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no steps; write --at 0,100,500") from None
    if min(steps) < 0:
        raise argparse.ArgumentTypeError(f"steps start at 0, not at {min(steps)}")
    if max(steps) >= _FAR:
        raise argparse.ArgumentTypeError(f"no run has {max(steps):.3e} steps")
    return steps


def _svg(text: str) -> Path:
    if text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(
            f"{text} is no name for an SVG; write --svg {text[:-4]}.svg or --plot {text}"
        )
    return Path(text)


def _plot_file(text: str) -> Path:
    if not text.lower().endswith(_PLOT_SUFFIXES):
        raise argparse.ArgumentTypeError(
            f"{text} must end in {' or '.join(_PLOT_SUFFIXES)}; --svg FILE needs no matplotlib"
        )
    return Path(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of samples")
    return int(text)


def _built(config: RunConfig, horizon: Horizon) -> Schedule:
    from launcher.config import derive

    try:
        return derive.schedule(config, horizon)
    except ConfigError as error:
        [problem] = error.problems
        # This verb does not read the data, so that it works before they exist.
        hint = " with --num-samples N" if math.isnan(horizon.steps_per_epoch) else ""
        raise ConfigError([replace(problem, message=f"{problem.message}{hint}")]) from error


def _sampled(schedule: Schedule, max_steps: int) -> dict[int, float]:
    """Return learning rates by step: of all steps, or of about a million at equal distances."""
    steps = range(0, max_steps, -(-max_steps // _DRAWN_STEPS))
    rates = {step: schedule.lr(step, {}) for step in steps}
    return {step: rate for step, rate in rates.items() if rate is not None}


def _write_picture(path: Path, schedule: Schedule, max_steps: int, title: str) -> None:
    from launcher.cli._plot import svg, with_matplotlib

    draw = with_matplotlib if path.suffix.lower() in _PLOT_SUFFIXES else svg
    values = list(_sampled(schedule, max_steps).values())
    try:
        draw(values, max_steps, title, path)
    except OSError as error:
        raise TrainctlError(f"cannot write {path}: {error.strerror}") from error
    # stdout is for --json.
    print(f"wrote {path}", file=sys.stderr)


def _print_chosen(schedule: Schedule, steps: Sequence[int]) -> None:
    width = max(len("step"), *(len(f"{step:,}") for step in steps))
    print(f"{'step':>{width}}  lr")
    for step in steps:
        rate = schedule.lr(step, {})
        print(f"{step:>{width},}  {'the optimizer sets it' if rate is None else f'{rate:.10g}'}")


def _print_plot(schedule: Schedule, max_steps: int, title: str) -> None:
    from launcher.cli._plot import plot

    size = shutil.get_terminal_size()
    rates = _sampled(schedule, max_steps)
    highest = max(rates, key=lambda step: rates[step])
    print(title)
    for line in plot(
        list(rates.values()),
        max_steps,
        width=min(size.columns, 120),
        height=max(8, min(size.lines - 4, 22)),
        unicode=(sys.stdout.encoding or "").lower().startswith("utf"),
    ):
        print(line)
    print(
        f"first {rates[0]:.6g}, highest {rates[highest]:.6g} at step {highest:,}, "
        f"last {schedule.lr(max_steps - 1, {}):.6g}"
    )
