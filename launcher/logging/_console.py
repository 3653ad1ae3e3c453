"""The console of the process, shared by rows, warnings and the live display."""

from __future__ import annotations

import functools
import io
import logging
import os
import sys

from rich.console import Console
from rich.text import Text
from typing_extensions import override

_STYLES = {"INFO": "dim", "WARNING": "yellow", "ERROR": "bold red", "CRITICAL": "bold red"}
# Loggers of automatic choices, such as the library or kernel of an optimizer.
_CHOICES = ("trainctl.optimizer", "trainctl.precision")


class RunConsole(Console):
    """Console that ends no run when its reader exits, and leaves the cursor visible."""

    _forced = False

    def force_terminal(self) -> None:
        """Draw as on a terminal, although standard output is none."""
        self._forced = self.is_interactive = True

    @property
    @override
    def is_terminal(self) -> bool:

        return self._forced or super().is_terminal

    @override
    def on_broken_pipe(self) -> None:
        # rich would exit, but `trainctl run | head` must train to the end.
        silence()

    @override
    def show_cursor(self, show: bool = True) -> bool:
        # A killed process could not show a hidden cursor again.
        del show
        return False


# One per process, because only rich's own console can print above its live display.
@functools.cache
def console() -> RunConsole:
    """Return the console on standard output."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character shows a question mark; UnicodeEncodeError would
        # end the run.
        sys.stdout.reconfigure(errors="replace")
    return RunConsole(highlight=False)


def say(line: Text) -> None:
    """Print one line, without wrapping; above a live display if there is one."""
    terminal = console()
    try:
        if terminal.is_terminal:
            terminal.print(line, soft_wrap=True)
        else:
            # rich takes ten times as long, to find that there is nothing to style.
            terminal.file.write(f"{line.plain}\n")
            terminal.file.flush()
    except OSError:
        silence()


def silence() -> None:
    """Redirect standard output to /dev/null, because its reader is gone."""
    console().quiet = True
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device, not a path of ours
        os.dup2(nowhere.fileno(), sys.__stdout__.fileno() if sys.__stdout__ else 1)


def show_warnings() -> None:
    """Show warnings of all loggers, and automatic choices, on the console."""
    # Once: a second run in one process would print each warning twice.
    root = logging.getLogger()
    if not any(isinstance(handler, _Handler) for handler in root.handlers):
        root.addHandler(_Handler(logging.INFO))


class _Handler(logging.Handler):
    """Prints `warning: …`, without tracebacks, which are in the rank's log."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name in _CHOICES

    @override
    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.name == "py.warnings":
            # The following lines quote the source.
            message = message.partition("\n")[0]
        word = "note" if record.levelno < logging.WARNING else record.levelname.lower()
        text = f"{word}: {message}"
        say(Text(text, style=_STYLES.get(record.levelname, "")))
