"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import EmaOption, WeightAverage

if TYPE_CHECKING:
    from torch import Tensor


class ExponentialAverage(EmaOption):
    """Keep average += (1 - decay) * (weights - average), in at least float32.

    Of sharded weights, each rank averages its own shards. The averages are in the checkpoints.

    Source: Polyak & Juditsky 1992; Morales-Brotons et al. 2024, arXiv:2411.18704.
    """

    decay: float = Field(ge=0, lt=1)
    """Share of the average that an update keeps: 0.999 averages over about 1,000 updates."""
    warmup: bool
    """Keep at most (1 + n) / (10 + n) in the n-th update, so that the first weights are forgotten
    in short runs."""
    start_step: int = Field(ge=0, le=10**12)
    """Optimizer steps before the average begins, with the weights of that step."""
    every_steps: int = Field(gt=0, le=10**9)
    """Optimizer steps between two updates of the average."""
    device: Literal["same", "cpu"]
    """Keep the averages on the device of the weights, or in the host's memory."""
    in_evaluation: bool
    """Evaluate the average instead of the trained weights."""
    in_export: bool
    """Export it, and generate the text after the training with it."""

    @property
    @override
    def replaces_weights(self) -> bool:
        return self.in_evaluation or self.in_export

    @override
    def build(self, params: Mapping[str, Tensor]) -> WeightAverage | None:
        from launcher.ema._average import Average

        return Average(
            params,
            decay=self.decay,
            warmup=self.warmup,
            start_step=self.start_step,
            every_steps=self.every_steps,
            on_cpu=self.device == "cpu",
            in_evaluation=self.in_evaluation,
            in_export=self.in_export,
        )
