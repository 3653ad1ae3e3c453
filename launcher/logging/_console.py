"""The one console of the process: rows, warnings and a live display never overwrite each other."""

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
# Loggers of what was chosen for the user: which library or kernel steps.
_CHOICES = ("trainctl.optimizer", "trainctl.precision")


class RunConsole(Console):
    """A console whose reader may go away; it ends no run and leaves the cursor alone."""

    _forced = False

    def force_terminal(self) -> None:
        """Draw as on a terminal although standard output does not look like one."""
        self._forced = self.is_interactive = True

    @property
    @override
    def is_terminal(self) -> bool:
        """True if escape sequences are understood."""
        return self._forced or super().is_terminal

    @override
    def on_broken_pipe(self) -> None:
        """Print nothing more where rich would exit: `trainctl run | head` must train on."""
        silence()

    @override
    def show_cursor(self, show: bool = True) -> bool:
        """Never hide the cursor: a killed process could not bring it back."""
        del show
        return False


@functools.cache
def console() -> RunConsole:
    """Return the console on standard output, coloured according to the terminal and NO_COLOR."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot draw a character gets a question mark, not the run a traceback.
        sys.stdout.reconfigure(errors="replace")
    return RunConsole(highlight=False)


def say(line: Text) -> None:
    """Print one line, never cut nor wrapped; above a live display if there is one."""
    terminal = console()
    try:
        if terminal.is_terminal:
            terminal.print(line, soft_wrap=True)
        else:
            # Rich takes ten times as long to find out that there is nothing to style.
            terminal.file.write(f"{line.plain}\n")
            terminal.file.flush()
    except OSError:
        silence()


def silence() -> None:
    """Send what is still to be printed to /dev/null, because its reader is gone."""
    console().quiet = True
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device, not a path of ours
        os.dup2(nowhere.fileno(), sys.__stdout__.fileno() if sys.__stdout__ else 1)


def show_warnings() -> None:
    """Show warnings of any logger on the console too, above a live display if there is one.

    And what was chosen for the user.
    """
    root = logging.getLogger()
    if not any(isinstance(handler, _Handler) for handler in root.handlers):
        root.addHandler(_Handler(logging.INFO))


class _Handler(logging.Handler):
    """Prints `warning: …`; tracebacks and places stay in the rank's log."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name in _CHOICES

    @override
    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.name == "py.warnings":
            # The lines after the first quote the source.
            message = message.partition("\n")[0]
        word = "note" if record.levelno < logging.WARNING else record.levelname.lower()
        text = f"{word}: {message}"
        say(Text(text, style=_STYLES.get(record.levelname, "")))
