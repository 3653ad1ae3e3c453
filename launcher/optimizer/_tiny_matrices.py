"""Arithmetic on stacks of matrices, fast for tiny ones too, such as kernels of convolutions.

An operation that broadcasts or reduces along three elements spends its time on starting over. For
tiny matrices each element is therefore done by itself, over the whole stack at once.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

SHORT_ROW = 8
"""Elements of the longest row that is summed element by element."""
TINY_MATRIX = 16
"""Elements of the largest matrix that is done element by element."""


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
