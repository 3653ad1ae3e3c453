"""Scores of classification and regression, from all predictions together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def confusion(labels: Array, predicted: Array, count: int) -> Array:
    """Return how often each class was predicted for each class. Shape (count, count)."""
    pairs: Array = np.bincount(labels * count + predicted, minlength=count * count)
    return pairs.reshape(count, count)


def accuracy(matrix: Array) -> float:
    """Return the share of right predictions."""
    return float(matrix.trace() / matrix.sum())


def macro_f1(matrix: Array) -> float:
    """Return the mean F1 of the classes that are there or predicted."""
    right, there, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    seen = (there + predicted) > 0
    return float((2 * right[seen] / (there + predicted)[seen]).mean())


def matthews(matrix: Array) -> float:
    """Return the Matthews correlation coefficient; 0 if one class alone is there or predicted.

    Source: Gorodkin 2004, https://doi.org/10.1016/j.compbiolchem.2004.09.006.
    """
    total = int(matrix.sum())
    there, predicted = matrix.sum(axis=1).astype(float), matrix.sum(axis=0).astype(float)
    covariance = int(matrix.trace()) * total - there @ predicted
    spread = (total**2 - there @ there) * (total**2 - predicted @ predicted)
    return float(covariance / math.sqrt(spread)) if spread else 0.0


def auroc(labels: Array, scores: Array) -> float:
    """Return the area under the ROC curve of a binary label; NaN if it has one value.

    Args:
        labels: Shape (N,), bool.
        scores: Higher for True. Shape (N,).
    """
    positive = int(labels.sum())
    negative = len(labels) - positive
    if not positive or not negative:
        return math.nan
    # The Mann-Whitney statistic: equal scores count half.
    return float(
        (ranks(scores)[labels].sum() - positive * (positive + 1) / 2) / positive / negative
    )


def pearson(first: Array, second: Array) -> float:
    """Return the linear correlation; 0 if one of both is constant."""
    a, b = first - first.mean(), second - second.mean()
    spread = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / spread) if spread else 0.0


def spearman(first: Array, second: Array) -> float:
    """Return the correlation of ranks; 0 if one of both is constant."""
    return pearson(ranks(first), ranks(second))


def ranks(values: Array) -> Array:
    """Return the rank of each value, from 1; equal values share their mean rank. Shape (N,)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Array = last - (counts - 1) / 2
    return mean[inverse]
