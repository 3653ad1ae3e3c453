"""Adafactor over all small tensors of a group at once."""

# The update of a tensor that fits the cache takes the time of its calls, not of its elements. Here
# the means of rows and columns of all tensors are in one flat tensor, so that most operations run
# once for all of them.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        # A vector is a matrix of one row that has no mean of rows: the row's factor is 1.
        # Vectors last, so that the means of the matrices' rows are contiguous.
        buckets = sorted(buckets, key=lambda bucket: len(bucket.shape) < 2)
        self.params = [param for bucket in buckets for param in bucket.params]
        self.places = {id(param): place for place, param in enumerate(self.params)}
        self._steps = torch.zeros(len(self.params), dtype=torch.int64)
        self._allocate(has_mean=has_mean)
        self.buckets: list[Bucket] = []
        self._views: list[_Views] = []
        self._add_buckets(buckets)
        self._updates = self._by_param(self._scratch)
        self._mean_updates = [] if self._mean is None else self._by_param(self._mean)
        self._view_params()

    def _allocate(self, *, has_mean: bool) -> None:
        device = self.params[0].device
        sizes = [_rows_and_columns(param) for param in self.params]
        vectors = sum(param.dim() < 2 for param in self.params)
        num_rows, num_columns = (sum(each) for each in zip(*sizes, strict=True))
        num_means = num_columns + num_rows - vectors

        def flat(size: int) -> Tensor:
            return torch.zeros(size, device=device)

        elements = sum(rows * columns for rows, columns in sizes)
        self._scratch, self._mean = flat(elements), flat(elements) if has_mean else None
        # Means of columns; means of rows, 1 for vectors; sums over the columns of updates.
        means = flat(num_columns + num_rows + num_columns)
        self._state, self._column_squares = means[:num_means], means[-num_columns:]
        self._row_state, self._totaled = means[num_columns:num_means], means[num_columns:]
        self._all_means = means[: num_columns + num_rows]
        self._all_means[num_means:] = 1.0
        self._sums, self._weights = flat(num_means), flat(num_means)
        self._factors = flat(num_columns + num_rows)
        self._column_factors = self._factors[:num_columns]
        self._row_factors = self._factors[num_columns:]
        # Of each tensor: the sum of the means of its rows, and of the squares of its update.
        self._row_owners = _owners([rows for rows, _ in sizes])
        column_owners = _owners([columns for _, columns in sizes])
        self._total_owners = torch.cat([self._row_owners, column_owners + len(sizes)])
        self._totals = flat(2 * len(sizes))
        self._num_rows = torch.tensor([float(rows) for rows, _ in sizes], device=device)
        self._rates = flat(len(sizes))
        self._rate_views = self._rates.unbind()
        self._numels = torch.tensor([float(rows * c) for rows, c in sizes], device=device)

    def _add_buckets(self, buckets: Sequence[Bucket]) -> None:
        # The buckets' state becomes views of the flat tensors: other ways to step and to save it
        # need not know of them.
        element = row = column = place = 0
        row_sums, row_weights = (
            t[len(self._column_factors) :] for t in (self._sums, self._weights)
        )
        for bucket in buckets:
            k, (r, c) = bucket.num_params, _rows_and_columns(bucket.params[0])
            elements = slice(element, element := element + k * r * c)
            rows, columns = slice(row, row := row + k * r), slice(column, column := column + k * c)
            steps = self._steps[place : (place := place + k)]
            is_matrix = len(bucket.shape) > 1
            self._weights[columns] = 1 / r
            views = {"exp_avg_sq": self._state[columns], "exp_avg_sq_col": self._state[columns]}
            if is_matrix:
                row_weights[rows] = 1 / c
                views["exp_avg_sq_row"] = self._row_state[rows]
            if self._mean is not None:
                views["exp_avg"] = self._mean[elements]
            state = {key: views[key].view(v.shape).copy_(v) for key, v in bucket.state.items()}
            self.buckets.append(Bucket(bucket.params, steps.copy_(bucket.steps), state))
            row_factors = self._row_factors[rows]
            column_factors = self._column_factors[columns]
            self._views.append(
                _Views(
                    block=self._scratch[elements].view(k, r, c),
                    row_sums=row_sums[rows].view(k, r) if is_matrix else None,
                    column_sums=self._sums[columns].view(k, c),
                    column_squares=self._column_squares[columns].view(k, 1, c),
                    row_factors=row_factors.view(k, 1, r),
                    factors=(row_factors.view(k, r, 1), column_factors.view(k, 1, c)),
                )
            )

    def _by_param(self, flat: Tensor) -> list[Tensor]:
        parts = torch.split(flat, [param.numel() for param in self.params])
        return [part.view(param.shape) for part, param in zip(parts, self.params, strict=True)]

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

    # Without the bookkeeping of autograd, which takes a tenth of the time of so small a step.
    @torch.inference_mode()
    def update(
        self, grads: Sequence[Tensor], step: int, lr: float, group: Mapping[str, Any]
    ) -> Tensor | None:
        """Take a step; return the learning rate of each parameter, None if it is `lr` for all.

        The rates are overwritten in the next step.
        """
        self._steps.add_(1)
        self._update_moments(grads, 1.0 - step ** group["decay_rate"], group["eps"][0])
        rates = self._scaled_rates(lr, group["eps"][1]) if group["scale_parameter"] else None
        self._update_factors(group["clip_threshold"], lr if rates is None else rates)
        decay: float = group["weight_decay"]
        if decay and rates is None:
            # A tensor, because a number would become one for each parameter.
            torch._foreach_mul_(self.params, torch.tensor(1.0 - decay * lr))
        elif decay and rates is not None:
            torch._foreach_mul_(self.params, list((1.0 - decay * rates).unbind()))
        if self._mean is None:
            torch._foreach_addcmul_(self.params, self._updates, list(grads), value=-1.0)
        else:
            torch._foreach_mul_(self._updates, list(grads))
            self._mean.lerp_(self._scratch, 1.0 - group["beta1"])
            torch._foreach_sub_(self.params, self._mean_updates)
        return rates

    def _scaled_rates(self, lr: float, smallest: float) -> Tensor:
        if self._addresses != [param.data_ptr() for param in self.params]:
            self._view_params()  # some `param.data` was replaced
        # Less time than `_foreach_norm`, whose results would have to be stacked.
        for vector, rate in zip(self._vectors, self._rate_views, strict=True):
            torch.dot(vector, vector, out=rate)
        return self._rates.div_(self._numels).sqrt_().clamp_(min=smallest).mul_(lr)

    def _update_moments(self, grads: Sequence[Tensor], keep: float, eps: float) -> None:
        # The squares stay in the scratch tensor, which `_update_factors` reads.
        for grad, square in zip(grads, self._updates, strict=True):
            torch.mul(grad, grad, out=square)
        for view in self._views:
            if view.row_sums is not None:
                torch.sum(view.block, -1, out=view.row_sums)
            torch.sum(view.block, -2, out=view.column_sums)
        self._state.lerp_(self._sums.mul_(self._weights).add_(eps), 1.0 - keep)

    def _update_factors(self, clip_threshold: float, rates: Tensor | float) -> None:
        # The size of an update by the squares and the means alone, without the update itself. The
        # scratch tensor then holds update divided by gradient.
        torch.reciprocal(self._all_means, out=self._factors)
        for view in self._views:
            torch.bmm(view.row_factors, view.block, out=view.column_squares)
        self._column_squares.mul_(self._column_factors)
        self._totals.zero_().index_add_(0, self._total_owners, self._totaled)
        mean, size = self._totals.view(2, -1).unbind()
        size.mul_(mean.div_(self._num_rows)).div_(self._numels).sqrt_()
        scale = mean.sqrt_().div_(size.div_(clip_threshold).clamp_(min=1.0)).mul_(rates)
        self._factors.sqrt_()
        self._row_factors.mul_(scale.index_select(0, self._row_owners))
        for view in self._views:
            torch.mul(*view.factors, out=view.block)


@dataclass(frozen=True, slots=True, eq=False)
class _Views:
    """Views of the flat tensors: the share of k parameters of r rows and c columns."""

    block: Tensor
    row_sums: Tensor | None
    column_sums: Tensor
    column_squares: Tensor
    row_factors: Tensor
    factors: tuple[Tensor, Tensor]


def _owners(sizes: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(torch.tensor(sizes))


def _is_small(param: Tensor) -> bool:
    return (
        param.device.type == "cpu"
        and param.dtype == torch.float32
        and param.dim() <= 2
        and param.numel() <= MAX_ELEMENTS // 8
        and param.is_contiguous()
    )


def _rows_and_columns(param: Tensor) -> tuple[int, int]:
    return (1, param.numel()) if param.dim() < 2 else (param.shape[0], param.shape[1])
