"""Changes of a config that need less memory, cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.errors import TrainctlError

if TYPE_CHECKING:
    from launcher.config.schema import RunConfig
    from launcher.plan._estimate import Plan, Planner

Load = Callable[[Sequence[str]], "RunConfig"]


@dataclass(frozen=True, slots=True)
class Lever:
    """A change of settings.

    Attributes:
        words: Overrides.
        price: What it costs, in words.
    """

    words: tuple[str, ...]
    price: str

    @property
    def group(self) -> str:
        """The config group that it changes; of two with the same one, one replaces the other."""
        return self.words[0].partition("=")[0]


# Cheapest first: what costs time only, then more devices, then what changes numbers, then what
# changes the training.
_LEVERS = (
    (("activation=selective",), "some operations are computed twice"),
    (("accumulation.micro_batch_size=1",), "smaller matrix products, the same global batch"),
    (("activation=full",), "the forward pass is computed twice"),
    (("parallelism=fsdp", "launch.processes=2"), "2 ranks, and traffic in every block"),
    (("parallelism=fsdp", "launch.processes=4"), "4 ranks, and traffic in every block"),
    (("parallelism=fsdp", "launch.processes=8"), "8 ranks, and traffic in every block"),
    (("precision=bf16",), "matrix products in bfloat16"),
    (("optimizer=adamw_8bit",), "moments in 8 bits"),
    (("precision=bf16_pure_stochastic",), "weights in bfloat16"),
    (("adapter=lora",), "small added weights are trained, the others are frozen"),
    (("adapter=qlora",), "as lora, and the frozen weights are in 4 bits"),
)
LEVERS = tuple(Lever(words, price) for words, price in _LEVERS)


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a config, and the plan with it.

    Attributes:
        words: Overrides.
        price: What it costs.
        plan: The plan of the changed config.
        more_flops: Share of the operations of a step that it adds.
        fits: True if it fits the given memory.
    """

    words: tuple[str, ...]
    price: str
    plan: Plan
    more_flops: float
    fits: bool


def single_changes(planner: Planner, load: Load, base: Plan, memory: int | None) -> list[Change]:
    """Return the single changes that save memory, cheapest first; those that fit come before.

    Args:
        planner: Plans each changed config.
        load: Returns the config with further overrides; may refuse.
        base: The plan without a change.
        memory: Bytes of a rank's device; None for any saving.
    """
    found = [change for lever in LEVERS if (change := _tried(planner, load, base, memory, [lever]))]
    found = [change for change in found if change.plan.peak < base.peak]
    if memory is None:
        return sorted(found, key=lambda change: change.plan.peak)
    return sorted(found, key=lambda change: not change.fits)


def best_combination(planner: Planner, load: Load, base: Plan, memory: int) -> Change | None:
    """Return a combination of cheap changes that fits and needs each of them; None if none fits."""
    # Not all combinations, of which there are hundreds: cheap changes are added until they fit, and
    # then those left out, dearest first, without which it still fits.
    chosen: dict[str, Lever] = {}
    best, found = base, None
    for lever in LEVERS:
        tried = {**chosen, lever.group: lever}
        change = _tried(planner, load, base, memory, list(tried.values()))
        if change is None or change.plan.peak >= best.peak:
            continue
        chosen, best = tried, change.plan
        if change.fits:
            found = change
            break
    if found is None:
        return None
    for group in reversed(list(chosen)[:-1]):
        fewer = {name: lever for name, lever in chosen.items() if name != group}
        change = _tried(planner, load, base, memory, list(fewer.values()))
        if change is not None and change.fits:
            chosen, found = fewer, change
    return found


def _tried(
    planner: Planner, load: Load, base: Plan, memory: int | None, levers: Sequence[Lever]
) -> Change | None:
    words = tuple(word for lever in levers for word in lever.words)
    try:
        plan = planner.plan(load(words), memory)
    except TrainctlError:
        return None  # the change does not work with the rest of the config
    price = "; ".join(lever.price for lever in levers)
    more = plan.flops / plan.tokens / (base.flops / base.tokens) - 1
    fits = memory is not None and plan.peak <= memory
    return Change(words, price, plan, more, fits)
