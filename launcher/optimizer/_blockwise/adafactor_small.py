"""Adafactor over all small tensors of a group at once."""

# The update of a tensor that fits the cache takes the time of its calls, not of its elements. Here
# the means of rows and columns of all tensors are in one flat tensor each, so that most operations
# run once for all of them. A vector is a matrix of one row: its column means are its squares.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from launcher.optimizer._blockwise.buckets import Bucket

# Elements of all tensors together: two scratch tensors of this size must fit the cache.
MAX_ELEMENTS = 1 << 19


class SmallTensors:
    """Small parameters of a group, with their state in flat tensors."""

    def __init__(
        self, buckets: Sequence[Bucket], others: Sequence[Bucket], *, has_mean: bool
    ) -> None:
        self.others = others
        self.params = [param for bucket in buckets for param in bucket.params]
        self.places = {id(param): place for place, param in enumerate(self.params)}
        sizes = [_matrix(bucket) for bucket in buckets]
        device = self.params[0].device
        elements = sum(k * r * c for k, r, c in sizes)
        num_rows, num_columns = sum(k * r for k, r, _ in sizes), sum(k * c for k, _, c in sizes)

        def flat(size: int) -> Tensor:
            return torch.zeros(size, device=device)

        self._scratch, self._state = flat(elements), flat(num_rows + num_columns)
        self._sums, self._weights = flat(num_rows + num_columns), flat(num_rows + num_columns)
        self._means, self._squares = flat(len(self.params)), flat(len(self.params))
        self._column_squares, self._inverse = flat(num_columns), flat(num_columns)
        self._rows, self._row_factor = self._state[:num_rows], flat(num_rows)
        self._columns, self._column_factor = self._state[num_rows:], flat(num_columns)
        self._steps = torch.zeros(len(self.params), dtype=torch.int64)
        self._mean = flat(elements) if has_mean else None
        numels = [param.numel() for param in self.params]
        self._numels = torch.tensor(numels, dtype=torch.float32, device=device)
        every = [size for size in sizes for _ in range(size[0])]
        self._row_owner = torch.cat([torch.full((r,), i) for i, (_, r, _) in enumerate(every)])
        self._column_owner = torch.cat([torch.full((c,), i) for i, (_, _, c) in enumerate(every)])

        cut = _Cutter(sizes)
        blocks = cut(self._scratch, lambda k, r, c: (k, r, c))

        def rows(tensor: Tensor) -> list[Tensor]:
            return cut(tensor, lambda k, r, _: (k, r))

        def columns(tensor: Tensor) -> list[Tensor]:
            return cut(tensor, lambda k, _, c: (k, c))

        weights = (rows(self._weights[:num_rows]), columns(self._weights[num_rows:]))
        for (_, r, c), of_rows, of_columns in zip(sizes, *weights, strict=True):
            of_rows.fill_(1 / c)
            of_columns.fill_(1 / r)
        self._per_bucket = list(
            zip(
                blocks,
                rows(self._sums[:num_rows]),
                columns(self._sums[num_rows:]),
                rows(self._rows),
                cut(self._means, lambda k, _r, _c: (k,)),
                [t.unsqueeze(-2) for t in columns(self._column_squares)],
                [t.unsqueeze(-2) for t in rows(self._row_factor)],
                [t.unsqueeze(-1) for t in rows(self._row_factor)],
                [t.unsqueeze(-2) for t in columns(self._column_factor)],
                strict=True,
            )
        )
        self._view_params()
        self._updates = self._by_param(self._scratch)
        self._mean_updates = [] if self._mean is None else self._by_param(self._mean)
        states = zip(rows(self._rows), columns(self._columns), strict=True)
        self.buckets = self._adopt(buckets, list(states), cut)

    def _view_params(self) -> None:
        self._vectors = [param.detach().view(-1) for param in self.params]
        self._addresses = [param.data_ptr() for param in self.params]

    @classmethod
    def of(cls, buckets: Sequence[Bucket], group: Mapping[str, Any]) -> Self | None:
        """Return the small tensors of some buckets; None if there are none, or too many."""
        chosen = [bucket for bucket in buckets if all(map(_is_small, bucket.params))]
        elements = sum(bucket.numel * bucket.num_params for bucket in chosen)
        if not 0 < elements <= MAX_ELEMENTS:
            return None
        others = [bucket for bucket in buckets if not all(map(_is_small, bucket.params))]
        return cls(chosen, others, has_mean=group["beta1"] is not None)

    def next_step(self) -> int | None:
        """Return the number of the next step; None if the tensors are at different steps."""
        steps = set(self._steps.tolist())
        return steps.pop() + 1 if len(steps) == 1 else None

    def gradients(self) -> list[Tensor] | None:
        """Return all gradients; None if one is missing or has another format."""
        grads = [param.grad for param in self.params]
        found = [
            grad
            for grad in grads
            if grad is not None and grad.dtype == torch.float32 and grad.is_contiguous()
        ]
        return found if len(found) == len(grads) else None

    def update(
        self, grads: Sequence[Tensor], step: int, lr: float, group: Mapping[str, Any]
    ) -> Tensor | None:
        """Take a step; return the learning rate of each parameter, None if it is `lr` for all."""
        self._steps.add_(1)
        self._update_moments(grads, 1.0 - step ** group["decay_rate"], group["eps"][0])
        rates: Tensor | None = None
        if group["scale_parameter"]:
            if self._addresses != [param.data_ptr() for param in self.params]:
                self._view_params()  # some `param.data` was replaced
            # Less time than `_foreach_norm`, whose reduction is made for more dims.
            sums = torch.stack([torch.dot(vector, vector) for vector in self._vectors])
            rates = sums.div_(self._numels).sqrt_().clamp_(min=group["eps"][1]).mul_(lr)
        self._scale_updates(group["clip_threshold"], lr if rates is None else rates)
        if group["weight_decay"]:
            decay = group["weight_decay"]
            if rates is None:
                torch._foreach_mul_(self.params, 1.0 - decay * lr)
            else:
                torch._foreach_mul_(self.params, list((1.0 - decay * rates).unbind()))
        if self._mean is None:
            torch._foreach_addcmul_(self.params, self._updates, list(grads), value=-1.0)
        else:
            torch._foreach_mul_(self._updates, list(grads))
            self._mean.lerp_(self._scratch, 1.0 - group["beta1"])
            torch._foreach_sub_(self.params, self._mean_updates)
        return rates

    def _update_moments(self, grads: Sequence[Tensor], keep: float, eps: float) -> None:
        # The squares stay in the scratch tensor, which `_scale_updates` reads.
        for grad, square in zip(grads, self._updates, strict=True):
            torch.mul(grad, grad, out=square)
        for block, rows, columns, *_ in self._per_bucket:
            torch.sum(block, -1, out=rows)
            torch.sum(block, -2, out=columns)
        self._state.lerp_(self._sums.mul_(self._weights).add_(eps), 1.0 - keep)

    def _scale_updates(self, clip_threshold: float, rates: Tensor | float) -> None:
        # The size of an update by the squares and the means alone, without the update itself. The
        # scratch tensor then holds update divided by gradient.
        for _, _, _, rows, means, *_ in self._per_bucket:
            torch.mean(rows, -1, out=means)
        # Divided, not multiplied by a reciprocal: exactly 1 for the only row of a vector.
        torch.index_select(self._means, 0, self._row_owner, out=self._row_factor).div_(self._rows)
        for block, _, _, _, _, column_squares, row_factor, *_ in self._per_bucket:
            torch.bmm(row_factor, block, out=column_squares)
        torch.reciprocal(self._columns, out=self._inverse)
        squares = self._squares.zero_()
        squares.index_add_(0, self._column_owner, self._column_squares.mul_(self._inverse))
        sizes = squares.div_(self._numels).sqrt_().div_(clip_threshold).clamp_(min=1.0)
        scale = sizes.reciprocal_().mul_(rates)
        self._row_factor.sqrt_().mul_(scale.index_select(0, self._row_owner))
        torch.sqrt(self._inverse, out=self._column_factor)
        for block, *_, row_factor, column_factor in self._per_bucket:
            torch.mul(row_factor, column_factor, out=block)

    def _by_param(self, flat: Tensor) -> list[Tensor]:
        parts = torch.split(flat, [param.numel() for param in self.params])
        return [part.view(param.shape) for part, param in zip(parts, self.params, strict=True)]

    def _adopt(
        self, buckets: Sequence[Bucket], states: Sequence[tuple[Tensor, Tensor]], cut: _Cutter
    ) -> list[Bucket]:
        # The buckets' state becomes views of the flat tensors: other ways to step and to save it
        # need not know of them.
        steps = cut(self._steps, lambda k, _r, _c: (k,))
        means = [] if self._mean is None else cut(self._mean, lambda k, r, c: (k, r, c))
        adopted = []
        for place, (bucket, (rows, columns)) in enumerate(zip(buckets, states, strict=True)):
            views = {"exp_avg_sq_row": rows, "exp_avg_sq_col": columns, "exp_avg_sq": columns}
            if means:
                views["exp_avg"] = means[place]
            state = {
                key: views[key].view(value.shape).copy_(value)
                for key, value in bucket.state.items()
            }
            adopted.append(Bucket(bucket.params, steps[place].copy_(bucket.steps), state))
        return adopted


class _Cutter:
    """Cuts a flat tensor into one view for each bucket."""

    def __init__(self, sizes: Sequence[tuple[int, int, int]]) -> None:
        self._sizes = sizes

    def __call__(self, flat: Tensor, shape: Any) -> list[Tensor]:
        shapes = [shape(*size) for size in self._sizes]
        parts = torch.split(flat, [math.prod(each) for each in shapes])
        return [part.view(each) for part, each in zip(parts, shapes, strict=True)]


def _is_small(param: Tensor) -> bool:
    return (
        param.device.type == "cpu"
        and param.dtype == torch.float32
        and param.dim() <= 2
        and param.numel() <= MAX_ELEMENTS // 8
        and param.is_contiguous()
    )


def _matrix(bucket: Bucket) -> tuple[int, int, int]:
    if len(bucket.shape) < 2:
        return bucket.num_params, 1, bucket.numel
    return bucket.num_params, bucket.shape[0], bucket.shape[1]
