"""Averages of the tensors that an optimizer updates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Updates that end a warm-up of the decay: (1 + n) / (10 + n), as TensorFlow's averages have it.
_WARMUP = 10


class Average:
    """Exponential moving average of parameters, or of this rank's shards of them.

    Args:
        params: By canonical name.
        decay: Share of the average that an update keeps.
        warmup: Keep less of it in the first updates.
        start_step: Optimizer steps before the average begins.
        every_steps: Optimizer steps between two updates.
        on_cpu: Keep the averages in the host's memory.
        in_evaluation: See `WeightAverage`.
        in_export: See `WeightAverage`.
    """

    @torch.no_grad()
    def __init__(
        self,
        params: Mapping[str, Tensor],
        *,
        decay: float,
        warmup: bool,
        start_step: int,
        every_steps: int,
        on_cpu: bool,
        in_evaluation: bool,
        in_export: bool,
    ) -> None:
        self._params = params
        self._decay = decay
        self._warmup = warmup
        self._start_step = start_step
        self._every_steps = every_steps
        self.in_evaluation = in_evaluation
        self.in_export = in_export
        # At least float32: in bfloat16 a share of 0.001 of most weights rounds to nothing.
        self._averages = {
            name: param.detach().to(
                device="cpu" if on_cpu else param.device,
                dtype=torch.promote_types(param.dtype, torch.float32),
                copy=True,
            )
            for name, param in params.items()
        }
        # Tensors, so that checkpoints hold them.
        self._steps = torch.zeros((), dtype=torch.int64)
        self._updates = torch.zeros((), dtype=torch.int64)
        # Those that an average has replaced for a while.
        self._weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        self._steps += 1
        since = int(self._steps) - self._start_step
        if since < 0 or since % self._every_steps:
            return
        self._updates += 1
        kept = self._kept(int(self._updates))
        for name, average in self._averages.items():
            average.lerp_(self._params[name].detach().to(average), 1 - kept)

    @torch.no_grad()
    def swap(self) -> None:
        for name, param in self._params.items():
            average = self._averages[name]
            if (average.dtype, average.device) == (param.dtype, param.device):
                weights = param.detach().clone()
                param.copy_(average)
                average.copy_(weights)
            # Otherwise rounding, or a copy between devices, must not change either.
            elif name in self._weights:
                param.copy_(self._weights.pop(name))
            else:
                self._weights[name] = param.detach().clone()
                param.copy_(average)

    def averages(self) -> Mapping[str, Tensor]:
        return self._averages

    def counters(self) -> Mapping[str, Tensor]:
        return {"steps": self._steps, "updates": self._updates}

    def _kept(self, update: int) -> float:
        if self._start_step and update == 1:
            return 0.0  # it begins with the weights of this step
        if self._warmup:
            return min(self._decay, (1 + update) / (_WARMUP + update))
        return self._decay
