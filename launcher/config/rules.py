"""Rules that span groups. Each yields problems; none composes, changes or starts anything."""

from __future__ import annotations

import math
from collections.abc import Iterator

from launcher.config import derive
from launcher.config.schema import RunConfig
from launcher.contracts import BatchPlan, Horizon, Schedule
from launcher.errors import DataError, Problem

# A schedule may count in epochs, and how many steps an epoch has is known only with the data. What
# is wrong however short or long it is, is wrong now.
_EPOCHS_IN_STEPS = (1e-3, 1e9)


def batch_is_whole(config: RunConfig) -> Iterator[Problem]:
    """Micro-batches, ranks and global batch must make one equation."""
    if isinstance(plan := _plan(config), ValueError):
        yield Problem("accumulation", str(plan))


def run_ends(config: RunConfig) -> Iterator[Problem]:
    """A run needs a length."""
    if config.max_steps is None and config.max_epochs is None:
        yield Problem(
            "max_steps", "is null, and so is max_epochs: the run would never end; give one of them"
        )


def samples_fit_model(config: RunConfig) -> Iterator[Problem]:
    """A sample must not be longer than the network can see."""
    try:
        positions = config.model.limits().max_positions
    except DataError:
        return  # the model's own preflight says so
    if positions is not None and config.task.seq_len > positions:
        yield Problem(
            "task.seq_len",
            f"is {config.task.seq_len}, but the model sees at most {positions} positions; "
            f"write task.seq_len={positions} or choose a model that sees more",
        )


def single_is_one_rank(config: RunConfig) -> Iterator[Problem]:
    """The engine `single` does not communicate."""
    ranks = config.launch.ranks
    if config.parallelism.kind == "single" and ranks != 1:
        yield Problem(
            "parallelism.kind",
            f"single is one process, but launch={config.launch.kind} starts {ranks}",
        )


def schedule_fits(config: RunConfig) -> Iterator[Problem]:
    """The schedule must fit run and optimizer, as far as the size of the data does not matter."""
    plan = _plan(config)
    if isinstance(plan, ValueError):
        return
    complaints = []
    for steps_per_epoch in _EPOCHS_IN_STEPS:
        max_steps = config.max_steps
        if max_steps is None:
            if derive.peak_lr(config) is not None:
                return
            max_steps = 10**9  # only whether there is a learning rate can be wrong now
        horizon = Horizon(max_steps, plan.samples_per_step, plan.tokens_per_step, steps_per_epoch)
        try:
            schedule = derive.schedule(config, horizon)
        except ValueError as error:
            complaints.append(derive.misfit(error))
        else:
            complaints.extend(_boundless(schedule, max_steps))
    if len(complaints) == len(_EPOCHS_IN_STEPS):
        yield complaints[0]


def _boundless(schedule: Schedule, max_steps: int) -> Iterator[Problem]:
    """A step whose learning rate is no number: settings may be in range and yet beyond reason."""
    for step in sorted({0, 1, max_steps // 2, max_steps - 1}):
        try:
            rate = schedule.lr(step, {})
        except (ArithmeticError, ValueError):
            rate = math.nan
        if rate is not None and not math.isfinite(rate):
            yield Problem("scheduler", f"has no finite learning rate at step {step:,}")
            return


def optimizer_owns_schedule(config: RunConfig) -> Iterator[Problem]:
    """An optimizer that finds its own learning rates must not have them moved by a schedule."""
    optimizer, kind = config.optimizer, config.scheduler.kind
    if optimizer.owns_schedule and kind != "constant":
        yield Problem(
            "scheduler.kind",
            f"{optimizer.kind} finds its own learning rates, which scheduler={kind} would distort; "
            "choose scheduler=constant",
        )


def own_rate_is_taken(config: RunConfig) -> Iterator[Problem]:
    """What shapes an optimizer's own learning rate has no effect beside a schedule."""
    if config.scheduler.kind != "adafactor":
        for field, reason in config.optimizer.void_under_schedule().items():
            yield Problem(f"optimizer.{field}", reason)


def device_can(config: RunConfig) -> Iterator[Problem]:
    """A device that is asked for by name must know the number formats and run the optimizer."""
    if config.launch.device != "auto":
        yield from misfits(config, config.launch.device)


def misfits(config: RunConfig, device_type: str) -> Iterator[Problem]:
    """What cannot work on a kind of device."""
    for group, option in (("precision", config.precision), ("optimizer", config.optimizer)):
        for field, reason in option.misfits(device_type).items():
            device = config.launch.device
            found = "" if device == device_type else f", which is {device_type} here"
            yield Problem(f"{group}.{field}", f"{reason} (launch.device={device}{found})")


def schedule_is_fed(config: RunConfig) -> Iterator[Problem]:
    """A schedule that watches a score needs evaluations to give it."""
    if config.scheduler.watches and config.eval_every_steps is None:
        scores = ", ".join(sorted(config.scheduler.watches))
        yield Problem(
            "eval_every_steps", f"is null, so that the schedule never sees {scores}; set a cadence"
        )


def clipped_once(config: RunConfig) -> Iterator[Problem]:
    """An optimizer that limits its own updates has no use for another limit."""
    if not config.optimizer.clips_itself:
        return
    for key in ("max_grad_norm", "max_grad_norm_per_parameter"):
        if getattr(config, key) is not None:
            kind = config.optimizer.kind
            yield Problem(key, f"changes what {kind} computes, which limits its own updates")


RULES = (
    batch_is_whole,
    run_ends,
    samples_fit_model,
    single_is_one_rank,
    schedule_fits,
    optimizer_owns_schedule,
    own_rate_is_taken,
    device_can,
    schedule_is_fed,
)
CAUTIONS = (clipped_once,)


def broken(config: RunConfig) -> list[Problem]:
    """Every rule that a config breaks."""
    return [problem for rule in RULES for problem in rule(config)]


def doubtful(config: RunConfig) -> list[Problem]:
    """What may be meant, and is worth a warning."""
    return [problem for rule in CAUTIONS for problem in rule(config)]


def _plan(config: RunConfig) -> BatchPlan | ValueError:
    try:
        return derive.batch_plan(config)
    except ValueError as error:
        return error
