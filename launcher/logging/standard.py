"""Logging to metrics.jsonl, TensorBoard and the console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from launcher.contracts import LoggingOption

if TYPE_CHECKING:
    from launcher.contracts import LogContext, Sink


class Standard(LoggingOption):
    """RUN_DIR/metrics.jsonl; optionally TensorBoard files and a console display."""

    kind: Literal["standard"]
    console: Literal["auto", "live", "plain", "none"]
    """Console output: a `live` display that is redrawn in place, a `plain` line per logged
    step, or `none`; `auto` is live on a terminal and plain elsewhere."""
    tensorboard: bool
    """Write event files to RUN_DIR/tensorboard."""

    @override
    def show_warnings(self) -> None:
        if self.console != "none":
            from launcher.logging._console import show_warnings

            show_warnings()

    @override
    def build(self, context: LogContext) -> Sequence[Sink]:
        from launcher.logging._files import JsonLines

        sinks: list[Sink] = [JsonLines(context)]
        if self.tensorboard:
            from launcher.logging._tensorboard import EventFile

            sinks.append(EventFile(context))
        if self.console != "none":
            from launcher.logging._display import display

            # First in the list, because it is closed last; created last, so that nothing is drawn
            # if a file cannot be opened.
            sinks.insert(0, display(self.console, context))
        return sinks
