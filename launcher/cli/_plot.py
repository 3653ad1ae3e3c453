"""A curve as text: Unicode dots on a terminal, stars where those cannot be shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

# One character is a grid of 2 × 4 dots; the value of a dot by its column and row in it.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BRAILLE = 0x2800


def plot(
    values: Sequence[float], num_steps: int, *, width: int, height: int, unicode: bool
) -> list[str]:
    """The lines of a plot from 0 to the highest value, with both axes.

    Args:
        values: At equal distances from step 0 on; at least one.
        num_steps: Number of steps that they represent.
        width: Characters in a line, axis and labels included.
        height: Lines, axis and labels included.
        unicode: Whether box drawing and Braille can be shown.
    """
    marks = ticks(max(values))
    labels = [f"{mark:.4g}" for mark in marks]
    gutter = max(map(len, labels))
    columns = max(10, width - gutter - 2)
    # Whole lines between the marks, so that they are at equal distances.
    rows = max(1, (height - 3) // (len(marks) - 1)) * (len(marks) - 1) + 1
    canvas = _drawn(values, marks[-1], columns, rows, unicode=unicode)
    at_row = {
        round((rows - 1) * (1 - mark / marks[-1])): label
        for mark, label in zip(marks, labels, strict=True)
    }
    wall, tick, corner, floor, foot = "│┤└─┴" if unicode else "||+-+"
    lines = [
        f"{at_row.get(row, ''):>{gutter}} {tick if row in at_row else wall}{text}".rstrip()
        for row, text in enumerate(canvas)
    ]
    places = {
        round((step + 0.5) / num_steps * columns - 0.5): f"{step:,}"
        for step in step_ticks(num_steps, columns // 10)
    }
    axis = "".join(foot if column in places else floor for column in range(columns))
    names = [" "] * columns
    for place, name in places.items():
        start = max(0, min(place - len(name) // 2, columns - len(name)))
        if all(letter == " " for letter in names[max(0, start - 1) : start + len(name)]):
            names[start : start + len(name)] = name
    indent = " " * (gutter + 2)
    return [*lines, f"{'':>{gutter}} {corner}{axis}", f"{indent}{''.join(names)}".rstrip()]


def ticks(highest: float) -> list[float]:
    """Round values from 0 to at least the highest, three to seven of them."""
    if highest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(highest / 4))
    unit = next(u for u in (1, 2, 2.5, 5, 10) if highest / (u * power) <= 6)
    count = math.ceil(highest / (unit * power) - 1e-9)
    return [unit * power * i for i in range(count + 1)]


def step_ticks(num_steps: int, at_most: int) -> list[int]:
    """Round steps from 0 on, about as many as asked for, that lie on the axis."""
    if num_steps <= 1:
        return [0]
    distance = (num_steps - 1) / max(1, at_most)
    power = 10 ** max(0, math.floor(math.log10(distance)))
    unit = max(1, next(round(u * power) for u in (1, 2, 2.5, 5, 10) if u * power >= distance))
    return list(range(0, num_steps, unit))


def ranges(values: Sequence[float], columns: int) -> list[tuple[float, float]]:
    """Lowest and highest value of the steps that share a column, so that no spike is lost."""
    found = []
    for column in range(columns):
        first = column * len(values) // columns
        last = max(first + 1, (column + 1) * len(values) // columns)
        found.append((min(values[first:last]), max(values[first:last])))
    return found


def _drawn(
    values: Sequence[float], top: float, columns: int, rows: int, *, unicode: bool
) -> list[str]:
    """The curve alone, as lines of text."""
    across, down = (2, 4) if unicode else (1, 1)
    cells = [[0] * columns for _ in range(rows)]
    deepest = rows * down - 1
    spans = [
        (round((1 - high / top) * deepest), round((1 - low / top) * deepest))
        for low, high in ranges(values, columns * across)
    ]
    for x, (upper, lower) in enumerate(_joined(spans)):
        for y in range(upper, lower + 1):
            cells[y // down][x // across] |= _DOTS[x % across][y % down] if unicode else 1
    if unicode:
        return ["".join(chr(_BRAILLE + cell) if cell else " " for cell in row) for row in cells]
    return ["".join("*" if cell else " " for cell in row) for row in cells]


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans, each lengthened until it touches the one before."""
    joined = spans[:1]
    for (upper_before, lower_before), (upper, lower) in pairwise(spans):
        joined.append((min(upper, lower_before + 1), max(lower, upper_before - 1)))
    return joined
