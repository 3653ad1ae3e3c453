"""Parameters that an optimizer steps together, and the state they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from launcher.contracts import Shard

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
        shard: What the only parameter holds of a whole tensor; None where all are whole.
    """

    params: Sequence[Tensor]
    steps: Tensor
    state: Mapping[str, Tensor]
    shard: Shard | None = None

    @property
    def shape(self) -> torch.Size:
        """Of each parameter."""
        return self.params[0].shape

    @property
    def numel(self) -> int:
        """Of each parameter."""
        return self.params[0].numel()

    @property
    def whole_numel(self) -> int:
        """Of each parameter's whole tensor."""
        return self.numel if self.shard is None else self.shard.whole_numel

    @property
    def num_params(self) -> int:
        """Their number."""
        return len(self.params)

    @property
    def device(self) -> torch.device:
        """Of all parameters."""
        return self.params[0].device

    def entries(self, index: int) -> dict[str, Tensor]:
        """One parameter's state, as views: so the optimizer's `state` shows what this holds."""
        return {"step": self.steps[index], **{k: v[index] for k, v in self.state.items()}}

    def advance(self) -> Iterator[Part]:
        """Count a step for the parameters that have a gradient.

        Yields:
            Those of them that are at the same step: normally this bucket itself.
        """
        present = [i for i, param in enumerate(self.params) if param.grad is not None]
        if not present:
            return
        if len(present) == len(self.params):
            self.steps.add_(1)
            steps = self.steps.tolist()
            if steps.count(steps[0]) == len(steps):
                yield Part(self, steps[0], lambda: None)
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
            yield Part(part, step, partial(self._take, part, chosen))

    def _take(self, part: Bucket, places: list[int]) -> None:
        for key, value in part.state.items():
            self.state[key][places] = value


@dataclass(frozen=True, slots=True)
class Part:
    """Parameters of a bucket that are at the same step.

    Attributes:
        bucket: They alone; its state is a copy, unless they are the whole bucket.
        step: Number of their step, from 1.
        finish: Brings the state back when the update is done.
    """

    bucket: Bucket
    step: int
    finish: Callable[[], None]


def alike(
    params: Iterable[Tensor],
    *,
    small: int,
    limit: int,
) -> list[list[Tensor]]:
    """Parameters sorted into buckets: small ones by shape, dtype and device, large ones alone.

    Args:
        params: In any order; the order decides who shares a bucket, never the result.
        small: Elements of the largest tensor that shares a bucket.
        limit: Elements of a bucket of several tensors.
    """
    found: dict[tuple[object, ...], list[Tensor]] = {}
    buckets: list[list[Tensor]] = []
    for param in params:
        if param.numel() > small:
            buckets.append([param])
        else:
            key = (param.shape, param.dtype, param.device)
            found.setdefault(key, []).append(param)
    for same in found.values():
        size = max(1, limit // max(1, same[0].numel()))
        buckets += [same[start : start + size] for start in range(0, len(same), size)]
    return buckets
