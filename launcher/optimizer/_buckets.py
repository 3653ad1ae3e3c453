"""Parameters that an optimizer steps together, and the state they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALL_ELEMENTS = 1 << 15
"""Tensors of up to so many elements share buckets; the time of a larger one is in its elements, not
in the calls."""
BUCKET_ELEMENTS = 1 << 18
"""Elements of a bucket of several tensors: what is gathered must fit the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Bucket:
    """Parameters of one shape, dtype and device, with their state stacked.

    Attributes:
        params: At least one.
        steps: Updates that each of them has had. Shape (params,), int64, on the CPU.
        state: By key; the first dim is the parameter.
    """

    params: Sequence[Tensor]
    steps: Tensor
    state: Mapping[str, Tensor]

    @property
    def shape(self) -> torch.Size:
        """Of each parameter."""
        return self.params[0].shape

    @property
    def numel(self) -> int:
        """Of each parameter."""
        return self.params[0].numel()

    @property
    def num_params(self) -> int:
        """How many there are."""
        return len(self.params)

    @property
    def device(self) -> torch.device:
        """Of all parameters."""
        return self.params[0].device

    def entries(self, index: int) -> dict[str, Tensor]:
        """One parameter's state, as views: so the optimizer's `state` shows what this holds."""
        return {"step": self.steps[index], **{k: v[index] for k, v in self.state.items()}}

    def advance(self) -> Iterator[tuple[Bucket, int]]:
        """Count a step for the parameters that have a gradient.

        Yields:
            Those of them that are at the same step, and the number of that step, from 1: normally
            this bucket itself. A part of it works on copies of the state, which are written back
            when the caller goes on.
        """
        present = [i for i, param in enumerate(self.params) if param.grad is not None]
        if not present:
            return
        if len(present) == len(self.params):
            self.steps.add_(1)
            steps = self.steps.tolist()
            if steps.count(steps[0]) == len(steps):
                yield self, steps[0]
                return
        else:
            self.steps[present] += 1
            steps = self.steps.tolist()
        for step in sorted({steps[i] for i in present}):
            chosen = [i for i in present if steps[i] == step]
            part = Bucket(
                [self.params[i] for i in chosen],
                self.steps[chosen],
                {key: value[chosen] for key, value in self.state.items()},
            )
            yield part, step
            for key, value in part.state.items():
                self.state[key][chosen] = value


def alike(params: Iterable[Tensor], *, small: int, limit: int) -> list[list[Tensor]]:
    """Parameters sorted into buckets: small ones by shape, dtype and device, large ones alone.

    Args:
        params: In any order; the order decides who shares a bucket, never the result.
        small: Elements of the largest tensor that shares a bucket.
        limit: Elements of a bucket of several tensors.
    """
    found: dict[tuple[torch.Size, torch.dtype, torch.device], list[Tensor]] = {}
    buckets: list[list[Tensor]] = []
    for param in params:
        if param.numel() > small:
            buckets.append([param])
        else:
            found.setdefault((param.shape, param.dtype, param.device), []).append(param)
    for same in found.values():
        size = max(1, limit // max(1, same[0].numel()))
        buckets += [same[start : start + size] for start in range(0, len(same), size)]
    return buckets
