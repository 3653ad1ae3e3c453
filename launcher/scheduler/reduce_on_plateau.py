"""Reduce the rate when a score stops improving."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from typing_extensions import override

from launcher.contracts import Horizon, Schedule
from launcher.scheduler._watching import Watching, current


class ReduceOnPlateau(Watching):
    """The peak, multiplied by `factor` after `patience` evaluations without a better score.

    Source: torch's `ReduceLROnPlateau`, which Transformers calls `reduce_lr_on_plateau`.
    """

    kind: Literal["reduce_on_plateau"]

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        self.check_min_lr(peak_lr)
        return Plateau(peak_lr, self)


@dataclass(frozen=True, slots=True)
class Plateau(Schedule):
    """The rate in the memory, and its change by a score."""

    # The memory: `lr`, and the `peak_lr` for which it was computed; the `best` score; evaluations
    # since, `bad`; evaluations to ignore, `cooldown`.

    peak_lr: float
    option: ReduceOnPlateau

    @override
    def lr(self, step: int, memory: Mapping[str, float]) -> float:
        return current(self.peak_lr, memory)

    @override
    def observe(
        self, memory: Mapping[str, float], scores: Mapping[str, float], step: int
    ) -> Mapping[str, float]:
        option = self.option
        score = option.score(scores)
        lr = current(self.peak_lr, memory)
        best = {"best": memory["best"]} if "best" in memory else {}
        bad, cooldown = memory.get("bad", 0) + 1, memory.get("cooldown", 0)
        if option.improves(score, memory):
            best, bad = {"best": score}, 0
        # After the comparison, as in torch: a score during a cooldown can still be the best.
        if cooldown > 0:
            bad, cooldown = 0, cooldown - 1
        if bad > option.patience:
            lower = max(lr * option.factor, option.min_lr)
            # As in torch, a change that is ignored starts the cooldown too.
            if lr - lower > option.eps:
                lr = lower
            bad, cooldown = 0, option.cooldown
        return {"lr": lr, "peak_lr": self.peak_lr, **best, "bad": bad, "cooldown": cooldown}
