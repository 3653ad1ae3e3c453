"""Adafactor's passes over one rank's shard of a matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from launcher.contracts import Box, Shard
from launcher.optimizer._blockwise.adafactor_passes import (
    Moments,
    apply_update,
    param_square_sums,
    row_column_sums,
    scaled_square_sums,
    update_factors,
)
from launcher.optimizer._blockwise.blocks import Blocks, Scratch, blocks_of, compute_dtype
from launcher.optimizer._blockwise.buckets import Bucket


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One box of the shard as matrices; `mean` is its running mean of updates."""

    box: Box
    blocks: Blocks
    mean: Tensor | None

    @property
    def row_slices(self) -> tuple[slice, ...]:
        return self.box.slices[:-1]

    @property
    def column_slices(self) -> tuple[slice, ...]:
        return (*self.box.slices[:-2], self.box.slices[-1])


class MatrixShard:
    """This rank's shard of a matrix, or of stacked matrices."""

    # The means of rows and columns are those of the whole matrix, the same on every rank. So a rank
    # may hold any elements: a flat range may begin in the middle of a row.

    def __init__(
        self,
        bucket: Bucket,
        shard: Shard,
        scratch: Scratch,
        limit: int,
    ) -> None:
        [param] = bucket.params
        state = {key: value[0] for key, value in bucket.state.items()}
        self._row, self._column = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
        self._num_rows, self._num_columns = shard.shape[-2:]
        self._zero = torch.zeros(1, dtype=compute_dtype(param), device=param.device)
        self._chunks = _chunks(param, state.get("exp_avg"), shard, scratch, limit)
        self._moments: list[list[Moments]] = []

    def gradient_sums(self) -> dict[str, Tensor]:
        """Sum the squared gradients over rows and columns of the whole matrix."""
        # Zero where this rank has no elements, so that a sum over ranks is right.
        rows, columns = torch.zeros_like(self._row), torch.zeros_like(self._column)
        for chunk in self._chunks:
            sums = [row_column_sums(chunk.blocks, span) for span in chunk.blocks.spans()]
            for whole, slices, parts in (
                (rows, chunk.row_slices, [row for row, _ in sums]),
                (columns, chunk.column_slices, [column for _, column in sums]),
            ):
                place = whole[slices]
                place.add_(torch.cat(parts).view(place.shape))
        return {"rows": rows, "columns": columns}

    def param_square_sums(self) -> Tensor:
        """Return the sum of the squares of the parameters; shape (1,)."""
        # An empty shard has no boxes: start with a zero.
        sums = [param_square_sums(chunk.blocks, 1) for chunk in self._chunks]
        return torch.stack([self._zero, *sums]).sum(0)

    def update_moments(self, sums: Mapping[str, Tensor], *, keep: float, eps: float) -> None:
        """Update the means of rows and columns by the `gradient_sums` of all ranks."""
        rows, columns = sums["rows"] / self._num_columns, sums["columns"] / self._num_rows
        self._row.mul_(keep).add_(rows.add_(eps), alpha=1.0 - keep)
        self._column.mul_(keep).add_(columns.add_(eps), alpha=1.0 - keep)
        mean = self._row.sum(-1, keepdim=True).div_(self._num_rows)
        self._moments = [
            Moments.of(
                chunk.blocks,
                self._row[chunk.row_slices],
                self._column[chunk.column_slices],
                mean[chunk.row_slices[:-1]],
            )
            for chunk in self._chunks
        ]

    def update_square_sums(self) -> Tensor:
        """Return the sum of the squares of the updates; shape (1,)."""
        sums = [
            scaled_square_sums(chunk.blocks, moment.span, *moment.scales()).sum(0, keepdim=True)
            for chunk, moments in zip(self._chunks, self._moments, strict=True)
            for moment in moments
        ]
        return torch.stack([self._zero, *sums]).sum(0)

    def apply(self, rate: Tensor, *, beta1: float | None, decay: Tensor | None) -> None:
        """Update the parameters; `rate` (of the unclipped update) and `decay` have shape (1,)."""
        for chunk, moments in zip(self._chunks, self._moments, strict=True):
            factors = update_factors(chunk.blocks, moments, chunk.blocks.spread(rate))
            spread = None if decay is None else chunk.blocks.spread(decay)
            apply_update(chunk.blocks, factors, mean=chunk.mean, beta1=beta1, decay=spread)


def _chunks(
    param: Tensor, mean: Tensor | None, shard: Shard, scratch: Scratch, limit: int
) -> list[_Chunk]:
    grad = param.grad
    assert grad is not None, "a shard that is updated has a gradient"  # noqa: S101 - for the type checker
    means = [part for _, part in shard.parts(mean)] if mean is not None else None
    chunks = []
    for index, ((box, values), (_, grads)) in enumerate(
        zip(shard.parts(param.detach()), shard.parts(grad), strict=True)
    ):
        values.grad = grads
        view_shape = (math.prod(box.sizes[:-2]), *box.sizes[-2:])
        part = None if means is None else means[index].view(view_shape)
        chunks.append(_Chunk(box, blocks_of([values], view_shape, scratch, limit), part))
    return chunks
