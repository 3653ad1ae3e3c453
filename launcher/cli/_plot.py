"""Draw a curve as text (Braille dots, or stars without Unicode), and as an SVG file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

from launcher.errors import UsageError

# One character is a grid of 2 × 4 dots; the value of a dot by its column and row in it.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BRAILLE = 0x2800
# The SVG, in pixels.
_WIDTH, _HEIGHT = 960, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 30, 50, 60
_INK, _GRID, _LINE = "#1f2933", "#d9dee3", "#2563b0"
_FONT = 15


def plot(
    values: Sequence[float], num_steps: int, *, width: int, height: int, unicode: bool
) -> list[str]:
    """Return the lines of a plot from 0 to the highest value, with both axes.

    Args:
        values: At equal distances from step 0 on; at least one.
        num_steps: Number of steps that they represent.
        width: Characters in a line, axis and labels included.
        height: Lines, axis and labels included.
        unicode: Use box drawing and Braille.
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
    # Only 1, 2, 2.5 and 5 times a power of ten, so that labels have few digits.
    power = 10.0 ** math.floor(math.log10(highest / 4))
    unit = next(u for u in (1, 2, 2.5, 5, 10) if highest / (u * power) <= 6)
    count = math.ceil(highest / (unit * power) - 1e-9)
    return [unit * power * i for i in range(count + 1)]


def step_ticks(num_steps: int, at_most: int) -> list[int]:
    """Round steps from 0 on, about as many as requested, that lie on the axis."""
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
    # A steep curve jumps over rows from one column to the next, and would look like two curves.
    for (upper_before, lower_before), (upper, lower) in pairwise(spans):
        joined.append((min(upper, lower_before + 1), max(lower, upper_before - 1)))
    return joined


@dataclass(frozen=True, slots=True)
class Text:
    """Text at a position.

    Attributes:
        x: Position of its anchor.
        y: Likewise, downwards.
        anchor: Position of (x, y) in the text: left, middle or right, then top, middle or bottom.
        text: The text itself.
    """

    x: float
    y: float
    anchor: str
    text: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """Contents of the picture, in units of the SVG, y downwards.

    Attributes:
        grid: Straight lines behind the curve, as (x1, y1, x2, y2).
        texts: Title, labels of the ticks, names of the axes.
        curve: Points of one line.
    """

    grid: Sequence[tuple[float, float, float, float]]
    texts: Sequence[Text]
    curve: Sequence[tuple[float, float]]


def svg(values: Sequence[float], num_steps: int, title: str, path: Path) -> None:
    """Write the curve as SVG; the values are at equal distances from step 0 on."""
    drawing = _draw(values, num_steps, title)
    anchors = {"l": "start", "m": "middle", "r": "end"}
    baselines = {"t": "hanging", "m": "middle", "b": "auto"}
    points = " ".join(f"{x:.2f},{y:.2f}" for x, y in drawing.curve)
    font = f'font-family="sans-serif" font-size="{_FONT}" fill="{_INK}"'
    line = f'fill="none" stroke="{_LINE}" stroke-width="2" stroke-linejoin="round"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {font}>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        *(
            f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" stroke="{_GRID}"/>'
            for x1, y1, x2, y2 in drawing.grid
        ),
        *(
            f'<text x="{text.x:.2f}" y="{text.y:.2f}" text-anchor="{anchors[text.anchor[0]]}" '
            f'dominant-baseline="{baselines[text.anchor[1]]}">{escape(text.text)}</text>'
            for text in drawing.texts
        ),
        f'<polyline points="{points}" {line}/>',
        "</svg>",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def with_matplotlib(values: Sequence[float], num_steps: int, title: str, path: Path) -> None:
    """Draw the curve with matplotlib; the values are at equal distances from step 0 on.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "--plot needs the package matplotlib; install it: pip install 'trainctl[plots]'"
        raise UsageError(f"{message}, or draw with --svg FILE") from error
    # Without pyplot, which chooses a backend by the display and keeps every figure.
    figure = Figure(figsize=(_WIDTH / 100, _HEIGHT / 100), layout="constrained")
    axes = figure.add_subplot(
        title=title, xlabel="optimizer step", ylabel="learning rate", ylim=(0, None)
    )
    distance = -(-num_steps // len(values))
    axes.plot(range(0, num_steps, distance), values, color=_LINE)
    axes.grid(color=_GRID)
    figure.savefig(path, dpi=200)


def _draw(values: Sequence[float], num_steps: int, title: str) -> Drawing:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    width, height = right - _LEFT, bottom - _TOP
    marks = ticks(max(values))
    last = max(1, num_steps - 1)
    texts = [
        Text(_LEFT, _TOP - 18, "lb", title),
        Text(_LEFT + width / 2, _HEIGHT - 10, "mb", "optimizer step"),
    ]
    grid: list[tuple[float, float, float, float]] = []
    for mark in marks:
        y = bottom - height * mark / marks[-1]
        grid.append((_LEFT, y, right, y))
        texts.append(Text(_LEFT - 10, y, "rm", f"{mark:.4g}"))
    for step in step_ticks(num_steps, 8):
        x = _LEFT + width * step / last
        grid.append((x, bottom, x, bottom + 6))
        texts.append(Text(x, bottom + 12, "mt", f"{step:,}"))
    curve = [
        (_LEFT + width * place, bottom - height * value / marks[-1])
        for place, value in _points(values, width)
    ]
    return Drawing(grid, texts, curve)


def _points(values: Sequence[float], columns: int) -> Iterator[tuple[float, float]]:
    """Places from 0 to 1 and their values; several steps in a column become their extremes."""
    if len(values) == 1:
        yield from ((0.0, values[0]), (1.0, values[0]))
    elif len(values) <= 2 * columns:
        yield from ((step / (len(values) - 1), value) for step, value in enumerate(values))
    else:
        # Each step as a point would make an SVG of many megabytes for a long run.
        for column, (low, high) in enumerate(ranges(values, columns)):
            first = values[column * len(values) // columns]
            # The extreme that is nearer to the column's first value most likely came first.
            ends = (high, low) if abs(high - first) <= abs(low - first) else (low, high)
            yield from ((column / (columns - 1), value) for value in ends)
