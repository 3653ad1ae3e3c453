"""Passes of an Adafactor update: statistics, the size of the update, its application.

Blocks are of matrices (K, R, C) or of vectors (N, M). Sums are over the blocks that were given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Self

import torch
from torch import Tensor

from launcher.optimizer._blockwise.blocks import Blocks, Span

# Operations that broadcast or reduce along a few elements spend their time on restarting the inner
# loop. For tiny matrices, such as kernels of convolutions, each element is therefore computed by
# itself, over the whole stack at once.

# Elements of the longest row that is summed element by element.
SHORT_ROW = 8
# Elements of the largest matrix that is computed element by element.
TINY_MATRIX = 16


@dataclass(slots=True)
class Moments:
    """Second moments of a span's matrices: means of rows (K, R), columns (K, C), all (K, 1)."""

    span: Span
    row: Tensor
    column: Tensor
    mean: Tensor

    @classmethod
    def of(
        cls, blocks: Blocks, row: Tensor, column: Tensor, mean: Tensor | None = None
    ) -> list[Self]:
        """Divide the moments of all matrices into those of each span."""
        matrices, rows, columns = blocks.shape
        row, column = row.reshape(matrices, rows), column.reshape(matrices, columns)
        mean = row if mean is None else mean.reshape(matrices, 1)
        return [
            cls(span, row[span.matrices], column[span.matrices], mean[span.matrices])
            for span in blocks.spans()
        ]

    def scales(self) -> tuple[Tensor, Tensor]:
        """Return factors of the gradient's rows (K, R) and columns (K, C)."""
        # Roots of the vectors, not of their product: no tensor of the matrix's size.
        return (self.row / self.mean).rsqrt_(), self.column.rsqrt()


def row_column_sums(blocks: Blocks, span: Span) -> tuple[Tensor, Tensor]:
    """Return the sums of squared gradients over each row (K, R) and each column (K, C)."""
    _, rows, columns = blocks.shape
    like = blocks.grad(span.blocks[0])
    of_rows, of_columns = like.new_empty(len(like), rows), like.new_zeros(len(like), columns)
    for index, row in zip(span.blocks, blocks.cut_rows(of_rows), strict=True):
        grad = blocks.grad(index)
        square = torch.mul(grad, grad, out=blocks.buffer(index))
        sum_rows(square, out=row)
        of_columns.add_(sum_columns(square))
    return of_rows, of_columns


def scaled_square_sums(
    blocks: Blocks, span: Span, row_scale: Tensor, column_scale: Tensor
) -> Tensor:
    """Return the sum of squares of each scaled gradient of a span; shape (K,)."""
    norms = torch.empty_like(row_scale)
    chunks, scale = blocks.cut_rows(norms), column_scale.unsqueeze(-2)
    # Backwards: the blocks that the previous pass read last are still in the cache, as those that
    # the next pass reads first will be.
    for index, chunk in zip(reversed(span.blocks), reversed(chunks), strict=True):
        norm_rows(multiply(blocks.grad(index), scale, out=blocks.buffer(index)), out=chunk)
    return norms.mul_(row_scale).square_().sum(-1)


def fold_squares(blocks: Blocks, second_moment: Tensor, *, keep: float, eps: float) -> Tensor:
    """Update the running mean of vectors' squared gradients, shape (N, M), in place.

    Returns:
        Sum of the squares of each gradient over the root of its new second moment. Shape (N,).
    """
    sums = []
    for index, moment in enumerate(blocks.cut(second_moment)):
        grad = blocks.grad(index)
        buffer = torch.mul(grad, grad, out=blocks.buffer(index)).add_(eps)
        moment.mul_(keep).add_(buffer, alpha=1.0 - keep)
        sums.append(torch.rsqrt(moment, out=buffer).mul_(grad).square_().sum(-1))
    return torch.stack(sums).sum(0)


def param_square_sums(blocks: Blocks, num_params: int) -> Tensor:
    """Return the sum of the squares of each parameter; shape (num_params,)."""
    # A norm needs no memory for the squares.
    values: Iterable[Tensor] = (blocks.param(index) for index in range(len(blocks)))
    if num_params > 1:
        norms = [torch.linalg.vector_norm(value.view(num_params, -1), dim=-1) for value in values]
    else:
        norms = [torch.linalg.vector_norm(value).view(1) for value in values]
    return torch.stack(norms).square_().sum(0)


def apply_update(
    blocks: Blocks,
    factors: Iterable[Tensor],
    *,
    mean: Tensor | None,
    beta1: float | None,
    decay: Tensor | None,
) -> None:
    """Subtract the update from the parameters.

    Args:
        blocks: Matrices or vectors.
        factors: Of each block, update divided by gradient; overwritten.
        mean: Running mean of the updates, in the blocks' shape, to subtract instead.
        beta1: Decay of the mean.
        decay: Factor on the parameters before the update; broadcasts over a block.
    """
    means = blocks.cut(mean) if mean is not None else None
    for index, factor in enumerate(factors):
        param = blocks.param(index)
        if decay is not None:
            param.mul_(decay)
        if means is None or beta1 is None:
            param.addcmul_(factor, blocks.grad(index), value=-1.0)
        else:
            means[index].lerp_(factor.mul_(blocks.grad(index)), 1.0 - beta1)
            param.sub_(means[index])
        blocks.put(index)


def update_factors(blocks: Blocks, moments: Iterable[Moments], scale: Tensor) -> Iterator[Tensor]:
    """Yield the factor of each block of the gradient, in scratch memory, times `scale`."""
    for moment in moments:
        rows, columns = moment.scales()
        chunks = blocks.cut_rows(rows.unsqueeze(-1).mul_(scale))
        for index, chunk in zip(moment.span.blocks, chunks, strict=True):
            yield multiply(chunk, columns.unsqueeze(-2), out=blocks.buffer(index))


def sum_rows(values: Tensor, *, out: Tensor) -> Tensor:
    """Sum the rows of (K, R, C) into `out`, (K, R)."""
    if values.shape[-1] > SHORT_ROW:
        return torch.sum(values, -1, out=out)
    out.copy_(values[..., 0])
    for column in range(1, values.shape[-1]):
        out.add_(values[..., column])
    return out


def sum_columns(values: Tensor) -> Tensor:
    """Return the sums of the columns of (K, R, C), (K, C)."""
    if values.shape[-2] * values.shape[-1] > TINY_MATRIX:
        return values.sum(-2)
    sums = values[:, 0].contiguous()
    for row, column in product(range(1, values.shape[-2]), range(values.shape[-1])):
        sums[:, column].add_(values[:, row, column])
    return sums


def norm_rows(values: Tensor, *, out: Tensor) -> Tensor:
    """Write the 2-norms of the rows of (K, R, C) to `out`, (K, R); may overwrite the values."""
    if values.shape[-1] > SHORT_ROW:
        torch.linalg.vector_norm(values, dim=-1, out=out)
        return out
    return sum_rows(values.square_(), out=out).sqrt_()


def multiply(left: Tensor, columns: Tensor, *, out: Tensor) -> Tensor:
    """Write the products of (K, R, 1) or (K, R, C) and (K, 1, C) to `out`, (K, R, C)."""
    _, rows, width = out.shape
    if rows * width > TINY_MATRIX:
        return torch.mul(left, columns, out=out)
    left, columns = left.expand_as(out), columns.expand_as(out)
    for row, column in product(range(rows), range(width)):
        torch.mul(left[:, row, column], columns[:, row, column], out=out[:, row, column])
    return out
