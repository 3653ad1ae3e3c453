"""The passes of an Adafactor update: statistics, the size of the update, its application.

Each passes once over the blocks of tensors of one shape, seen as matrices (K, R, C) or as vectors
(N, M), and holds nothing of their size. Sums that a pass returns are over the blocks it was given;
where these are not all of the tensor, they must be completed before the next pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Self

import torch
from torch import Tensor

from launcher.optimizer._blockwise.blocks import Blocks, Span

SHORT_ROW = 8
"""Elements of the longest row that is summed element by element."""
TINY_MATRIX = 16
"""Elements of the largest matrix that is done element by element."""


@dataclass(slots=True)
class Moments:
    """Second moments of some matrices.

    Attributes:
        span: Which.
        row: Means of rows. Shape (K, R).
        column: Means of columns. Shape (K, C).
        mean: Means of `row`. Shape (K, 1).
    """

    span: Span
    row: Tensor
    column: Tensor
    mean: Tensor

    @classmethod
    def of(
        cls, blocks: Blocks, row: Tensor, column: Tensor, mean: Tensor | None = None
    ) -> list[Self]:
        """Cut the moments of all matrices into those of each span.

        Args:
            blocks: Of the matrices.
            row: As many means as the blocks have rows.
            column: As many as they have columns.
            mean: One for each matrix; None where it is not known yet.
        """
        matrices, rows, columns = blocks.shape
        row, column = row.reshape(matrices, rows), column.reshape(matrices, columns)
        mean = row if mean is None else mean.reshape(matrices, 1)
        return [
            cls(span, row[span.matrices], column[span.matrices], mean[span.matrices])
            for span in blocks.spans()
        ]

    def scales(self) -> tuple[Tensor, Tensor]:
        """Factors of the rows and columns of the gradient. Shapes (K, R) and (K, C)."""
        return (self.row / self.mean).rsqrt_(), self.column.rsqrt()


def row_column_sums(blocks: Blocks, span: Span) -> tuple[Tensor, Tensor]:
    """Sums of the squared gradients of some matrices over each row and over each column.

    Returns:
        Shapes (K, R) and (K, C), in the dtype of the maths.
    """
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
    """Sum of the squares of each of some matrices of gradients, rows and columns scaled.

    Args:
        blocks: Of the gradients.
        span: Which of them.
        row_scale: Shape (K, R).
        column_scale: Shape (K, C).

    Returns:
        Shape (K,).
    """
    norms = torch.empty_like(row_scale)
    pieces, scale = blocks.cut_rows(norms), column_scale.unsqueeze(-2)
    # Backwards: what the pass before read last is still in the cache, and so is then what the next
    # one reads first.
    for index, piece in zip(reversed(span.blocks), reversed(pieces), strict=True):
        norm_rows(multiply(blocks.grad(index), scale, out=blocks.buffer(index)), out=piece)
    return norms.mul_(row_scale).square_().sum(-1)


def fold_squares(blocks: Blocks, second_moment: Tensor, *, keep: float, eps: float) -> Tensor:
    """Take the squared gradients of vectors into their running mean.

    Args:
        blocks: Vectors.
        second_moment: Changed in place. Shape (N, M).
        keep: How much of it stays.
        eps: Added to the squares.

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
    """Sum of the squares of each parameter. Shape (num_params,)."""
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
        factors: What to multiply each block of the gradient with to have its update; may be in
            scratch memory.
        mean: Running mean of the updates, in the blocks' shape; it is then what is subtracted.
        beta1: How much of the mean stays.
        decay: What the parameters are multiplied with before; must broadcast over a block.
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
    """Yield what each block of the gradient must be multiplied with, in scratch memory.

    Args:
        blocks: Of matrices.
        moments: Of all spans, in order.
        scale: Multiplies all; broadcasts over a span.
    """
    for moment in moments:
        rows, columns = moment.scales()
        pieces = blocks.cut_rows(rows.unsqueeze(-1).mul_(scale))
        for index, piece in zip(moment.span.blocks, pieces, strict=True):
            yield multiply(piece, columns.unsqueeze(-2), out=blocks.buffer(index))


# Operations that broadcast or reduce along a few elements spend their time on starting over. For
# tiny matrices, such as kernels of convolutions, each element is therefore done by itself, over the
# whole stack at once.


def sum_rows(values: Tensor, *, out: Tensor) -> Tensor:
    """Sums of rows.

    Args:
        values: Shape (K, R, C).
        out: Where to. Shape (K, R).
    """
    if values.shape[-1] > SHORT_ROW:
        return torch.sum(values, -1, out=out)
    out.copy_(values[..., 0])
    for column in range(1, values.shape[-1]):
        out.add_(values[..., column])
    return out


def sum_columns(values: Tensor) -> Tensor:
    """Sums of columns. Shape (K, C) for values of shape (K, R, C)."""
    if values.shape[-2] * values.shape[-1] > TINY_MATRIX:
        return values.sum(-2)
    sums = values[:, 0].contiguous()
    for row, column in product(range(1, values.shape[-2]), range(values.shape[-1])):
        sums[:, column].add_(values[:, row, column])
    return sums


def norm_rows(values: Tensor, *, out: Tensor) -> Tensor:
    """2-norms of rows; the values may be overwritten.

    Args:
        values: Shape (K, R, C).
        out: Where to. Shape (K, R).
    """
    if values.shape[-1] > SHORT_ROW:
        torch.linalg.vector_norm(values, dim=-1, out=out)
        return out
    return sum_rows(values.square_(), out=out).sqrt_()


def multiply(left: Tensor, columns: Tensor, *, out: Tensor) -> Tensor:
    """Products of rows or elements with columns.

    Args:
        left: Shape (K, R, 1) or (K, R, C).
        columns: Shape (K, 1, C).
        out: Where to. Shape (K, R, C).
    """
    _, rows, width = out.shape
    if rows * width > TINY_MATRIX:
        return torch.mul(left, columns, out=out)
    left, columns = left.expand_as(out), columns.expand_as(out)
    for row, column in product(range(rows), range(width)):
        torch.mul(left[:, row, column], columns[:, row, column], out=out[:, row, column])
    return out
