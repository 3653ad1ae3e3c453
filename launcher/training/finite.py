"""Refuse to save or export weights that are not finite; limit skipped updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import (
    Engine,
    LocalShard,
    Observer,
    Request,
    StepReport,
    TrainState,
    canonical_name,
)
from launcher.errors import Diverged

_NAMED = 5
_MEMORY = "skips.in_a_row"


def check_weights(
    engine: Engine,
    weights: Mapping[str, Tensor | LocalShard],
    params: Collection[str],
    *,
    step: int,
    purpose: str,
    has_checkpoint: Callable[[], bool],
) -> None:
    """Raise Diverged on all ranks if a weight of any rank is NaN or infinite.

    Args:
        engine: Every rank must call this: it is a collective.
        weights: This rank's parameters and persistent buffers by name.
        params: Names of the parameters.
        step: Optimizer steps done.
        purpose: For the message: `saved` or `exported`.
        has_checkpoint: Returns True if the run can be resumed; collective.
    """
    bad = nonfinite(weights, params)
    found = engine.agree(Request.STOP_NONFINITE if bad else Request.NONE)
    if not found & Request.STOP_NONFINITE:
        return
    more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    where = f"in {', '.join(bad[:_NAMED])}{more}" if bad else "on another rank"
    advice = (
        "checkpoints of earlier steps are kept. Resume from the newest checkpoint"
        if has_checkpoint()
        else "no checkpoint was saved before. Start again"
    )
    raise Diverged(
        f"step {step}: the weights are not finite ({where}): they are not {purpose}; {advice} "
        "with a lower optimizer.lr, or a max_grad_norm"
    )


def nonfinite(
    weights: Mapping[str, Tensor | LocalShard], params: Collection[str] = ()
) -> list[str]:
    """Return the names of parameters that are not finite, and of other tensors with NaN."""
    # Infinity is allowed in buffers: attention masks have it. Each tensor is reduced on its device
    # to one number, without a copy, and all numbers are fetched at once.
    largest: dict[torch.device, dict[str, Tensor]] = {}
    for name, value in weights.items():
        tensor = value.tensor if isinstance(value, LocalShard) else value
        if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex()):
            wide = tensor if tensor.itemsize > 1 else tensor.float()  # no norm of 8-bit floats
            # The maximum, because a sum of finite values may overflow. It propagates NaN.
            norm = torch.linalg.vector_norm(wide.detach(), math.inf)
            largest.setdefault(tensor.device, {})[name] = norm.to(torch.float64)
    found = []
    for norms in largest.values():
        values = zip(norms, torch.stack(list(norms.values())).tolist(), strict=True)
        found += [n for n, v in values if math.isnan(v) or (math.isinf(v) and n in params)]
    return found


def param_names(module: nn.Module) -> set[str]:
    """Return the canonical names of a module's parameters."""
    return {canonical_name(name) for name, _ in module.named_parameters()}


class SkipLimit(Observer):
    """Ends the run after a number of skipped updates in a row."""

    # A run whose loss stays NaN would otherwise skip every step to its end, and end normally.

    def __init__(self, limit: int | None, start: TrainState) -> None:
        self._limit = limit
        self._in_a_row = int(start.observers.get(_MEMORY, 0))

    @override
    def __call__(self, report: StepReport) -> None:
        self._in_a_row = 0 if report.update.applied else self._in_a_row + 1
        if self._limit is not None and self._in_a_row >= self._limit:
            raise Diverged(
                f"step {report.state.step}: the last {self._in_a_row} updates were skipped, because"
                " loss or gradients were not finite (max_consecutive_skips); the weights are those "
                "of the step before. Lower optimizer.lr, or look at the data"
            )

    @override
    def memory(self) -> Mapping[str, float]:

        return {_MEMORY: self._in_a_row} if self._in_a_row else {}
