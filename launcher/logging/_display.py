"""Show a run on the console: plain lines, or a live display."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

from rich.text import Text
from typing_extensions import override

from launcher.contracts import LogContext, Row, Sink
from launcher.logging import _lines
from launcher.logging._console import console, say, show_warnings, silence

_REDRAW_INTERVAL_S = 0.25
_BAR_WIDTH = 40
_EVALUATION_INTERVAL_S = 30.0


def display(mode: Literal["auto", "live", "plain"], context: LogContext) -> Sink:
    terminal = console()
    show_warnings()
    if mode == "live":
        terminal.force_terminal()
    live = mode == "live" or (mode == "auto" and terminal.file.isatty())
    _print_header(context.summary)
    # A dumb terminal cannot redraw lines.
    return LiveDisplay(context) if live and not terminal.is_dumb_terminal else PlainLines(context)


class PlainLines(Sink):
    """Prints one line per row, for logs and pipes."""

    def __init__(self, context: LogContext) -> None:
        self._max_steps = context.max_steps
        self._pace = _lines.Pace(context.start_step, context.max_steps)
        self._evaluation_shown = time.monotonic()

    @override
    def show_evaluation(self, done: int, total: int) -> None:
        """Print the progress of an evaluation, twice a minute."""
        now = time.monotonic()
        if done == 0:
            self._evaluation_shown = now
        elif done < total and now - self._evaluation_shown >= _EVALUATION_INTERVAL_S:
            self._evaluation_shown = now
            say(Text(f"evaluating  {_lines.share(done, total)}"))

    @override
    def write(self, row: Row) -> None:
        """Print the row, and its scores on a second line."""
        position = _lines.position(row, self._max_steps)
        parts = _lines.training(row)
        if eta := self._pace.eta(row):
            parts.append(("ETA", eta))
        say(Text(f"{position}  {_lines.joined(parts)}"))
        if scores := _lines.scores(row):
            say(Text(f"{position}  {_lines.joined(scores)}"))

    @override
    def close(self) -> None:
        """Do nothing."""


class LiveDisplay(Sink):
    """A bar and the newest numbers, redrawn in place, below the scores."""

    # Drawn when a row comes and not by rich's thread, which would take the GIL between rows.

    def __init__(self, context: LogContext) -> None:
        from rich.live import Live

        self._max_steps = context.max_steps
        self._pace = _lines.Pace(context.start_step, context.max_steps)
        self._bar = self._training_bar(context.start_step, "")
        self._numbers = Text()
        self._live = Live(self._bar, console=console(), auto_refresh=False)
        self._drawn = time.monotonic()
        _unless_gone(lambda: self._live.start(refresh=True))

    @override
    def write(self, row: Row) -> None:
        """Store the row, and draw it unless the last drawing is recent."""
        self._bar = self._training_bar(int(row["step"] or 0), self._pace.eta(row))
        self._numbers = _assembled(_lines.training(row))
        self._live.update(self._picture())
        if scores := _lines.scores(row):
            # Printing above the display redraws it.
            self._drawn = time.monotonic()
            say(_assembled([("", _lines.position(row, self._max_steps)), *scores]))
        else:
            self._draw()

    @override
    def show_evaluation(self, done: int, total: int) -> None:
        """Draw the bar of an evaluation below that of training, until the next row."""
        bar = _bar(done / total).append(f"  evaluating {_lines.share(done, total)}")
        self._live.update(self._picture().append("\n").append_text(bar))
        self._draw()

    @override
    def close(self) -> None:
        """Draw the last row, which remains on the screen."""
        _unless_gone(self._live.stop)

    def _draw(self) -> None:
        now = time.monotonic()
        if now - self._drawn >= _REDRAW_INTERVAL_S:
            self._drawn = now
            _unless_gone(self._live.refresh)

    def _picture(self) -> Text:
        picture = self._bar.copy()
        return picture.append("\n").append_text(self._numbers) if self._numbers else picture

    def _training_bar(self, step: int, eta: str) -> Text:
        bar = _bar(step / self._max_steps).append(f"  {_lines.share(step, self._max_steps)}")
        return bar.append("  ETA ", "dim").append(eta) if eta else bar


def _bar(done: float) -> Text:
    full = round(done * _BAR_WIDTH)
    mark = "━" if console().encoding.startswith("utf") else "="
    bar = Text(no_wrap=True, overflow="ellipsis")
    return bar.append(mark * full, "green").append(mark * (_BAR_WIDTH - full), "bright_black")


def _print_header(summary: Sequence[tuple[str, str]]) -> None:
    width = max((len(label) for label, _ in summary), default=0)
    for label, text in summary:
        say(Text.assemble((f"{label:<{width}}", "bold"), "  ", text))


def _assembled(parts: Sequence[tuple[str, str]]) -> Text:
    """Return `_lines.joined` with dim labels."""
    line = Text()
    for place, (label, value) in enumerate(parts):
        line.append("  " if place else "")
        if label:
            line.append(f"{label} ", "dim")
        line.append(value)
    return line


def _unless_gone(draw: Callable[[], None]) -> None:
    # A closed terminal must not end the run.
    try:
        draw()
    except OSError:
        silence()
