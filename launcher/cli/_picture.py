"""A curve as an SVG file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from launcher.cli._plot import ranges, step_ticks, ticks

_WIDTH, _HEIGHT = 960, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 30, 50, 60
_INK, _GRID, _LINE = "#1f2933", "#d9dee3", "#2563b0"
_FONT = 15


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text.

    Attributes:
        x: Place of its anchor.
        y: Likewise, downwards.
        anchor: Place of (x, y) in the text: left, middle or right, then top, middle or bottom.
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
        for column, (low, high) in enumerate(ranges(values, columns)):
            first = values[column * len(values) // columns]
            ends = (high, low) if abs(high - first) <= abs(low - first) else (low, high)
            yield from ((column / (columns - 1), value) for value in ends)
