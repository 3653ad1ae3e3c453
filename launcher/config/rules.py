"""Collect problems of a config: of its options, and of rules that belong to no option."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from launcher.config import derive
from launcher.config.schema import RunConfig
from launcher.contracts import BatchPlan, Horizon, Schedule
from launcher.errors import ConfigError, Problem
from launcher.suggest import closest, did_you_mean

# A schedule may count in epochs, whose steps are known only with the data. A problem is reported
# now if it exists for a very short and for a very long epoch.
_EPOCHS_IN_STEPS = (1e-3, 1e9)


def batch_is_divisible(config: RunConfig) -> Iterator[Problem]:
    """Check that the global batch is divisible by micro-batch size and ranks."""
    # The message is the plan's own: it knows the nearest sizes that divide.
    if isinstance(plan := _plan(config), ValueError):
        yield Problem("accumulation", str(plan))


def run_ends(config: RunConfig) -> Iterator[Problem]:
    """Check that the run has a length."""
    if config.max_steps is None and config.max_epochs is None:
        yield Problem(
            "max_steps", "is null, and so is max_epochs: the run would never end; give one of them"
        )


def schedule_fits(config: RunConfig) -> Iterator[Problem]:
    """Check the schedule with run and optimizer, for any size of the data."""
    plan = _plan(config)
    if not isinstance(plan, BatchPlan):
        return
    complaints: list[Problem] = []
    for steps_per_epoch in _EPOCHS_IN_STEPS:
        max_steps = config.max_steps
        if max_steps is None:
            if derive.peak_lr(config) is not None:
                return
            max_steps = 10**9  # any number: only a missing learning rate is found here
        horizon = Horizon(max_steps, plan.samples_per_step, plan.tokens_per_step, steps_per_epoch)
        try:
            schedule = derive.schedule(config, horizon)
        except ConfigError as error:
            complaints.extend(error.problems)
        else:
            complaints.extend(_not_finite(schedule, max_steps))
    if len(complaints) == len(_EPOCHS_IN_STEPS):
        yield complaints[0]


def _not_finite(schedule: Schedule, max_steps: int) -> Iterator[Problem]:
    """Yield a problem if a learning rate is not finite, at a few steps."""
    # Each setting may be in its range, and a combination of them still overflow.
    for step in sorted({0, 1, max_steps // 2, max_steps - 1}):
        try:
            rate = schedule.lr(step, {})
        except (ArithmeticError, ValueError):
            rate = math.nan
        if rate is not None and not math.isfinite(rate):
            yield Problem("scheduler", f"has no finite learning rate at step {step:,}")
            return


def supported_on_device(config: RunConfig) -> Iterator[Problem]:
    """Check that every option supports the device, unless it is `auto`."""
    if config.launch.device != "auto":
        yield from unsupported(config, config.launch.device)


def unsupported(config: RunConfig, device_type: str) -> Iterator[Problem]:
    """Yield the settings that a kind of device does not support."""
    device = config.launch.device
    found = "" if device == device_type else f", which is {device_type} here"
    for group, option in config.options():
        for field, reason in option.unsupported_on(device_type).items():
            yield Problem(f"{group}.{field}", f"{reason} (launch.device={device}{found})")


def scores_are_made(config: RunConfig) -> Iterator[Problem]:
    """Check that there are evaluations during the run for options that use scores."""
    if config.eval_every_steps is not None:
        return
    for group, option in config.options():
        if option.watches:
            scores = ", ".join(sorted(option.watches))
            yield Problem(
                "eval_every_steps",
                f"must be a number, because {group} acts on {scores}, but is null",
            )


def unknown_scores(config: RunConfig, names: Collection[str]) -> Iterator[Problem]:
    """Yield the settings that name a score which is not in `names`."""
    there_are = f"; it has: {', '.join(sorted(names))}"
    # A task without scores can be trained, though not be part of a sweep.
    named = [("objective", config.objective)] if names else []
    for group, option in config.options():
        named += [(f"{group}.{field}", score) for score, field in option.watches.items()]
    for key, score in named:
        if score not in names:
            hint = did_you_mean(closest(score, names)) or there_are
            yield Problem(key, f"must be a score of the evaluation, but is {score}{hint}")


def scores_exist(config: RunConfig) -> Iterator[Problem]:
    """Check the names of scores, unless they depend on the data."""
    if (names := config.task.score_names) is not None:
        yield from unknown_scores(config, names)


RULES = (
    batch_is_divisible,
    run_ends,
    schedule_fits,
    supported_on_device,
    scores_are_made,
    scores_exist,
)


def broken(config: RunConfig) -> list[Problem]:
    """Return every problem of a config, of the rules and then of its options."""
    found = [problem for rule in RULES for problem in rule(config)]
    found += [each for _, option in config.options() for each in option.problems(config)]
    # Two options may report one key in the same words.
    return list(dict.fromkeys(found))


def doubtful(config: RunConfig) -> list[Problem]:
    """Return warnings for settings that may be mistakes."""
    return [each for _, option in config.options() for each in option.cautions(config)]


def _plan(config: RunConfig) -> BatchPlan | ValueError | None:
    """Return the batch plan or its problem; None if the mesh is wrong."""
    # The engine reports a wrong number of ranks itself; the same mistake is not reported twice.
    try:
        config.parallelism.layout(config.launch.ranks)
    except ValueError:
        return None
    try:
        return derive.batch_plan(config)
    except ValueError as error:
        return error
