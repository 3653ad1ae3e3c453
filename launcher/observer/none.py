"""No observer in addition to logging and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from launcher.contracts import ObserverOption

if TYPE_CHECKING:
    from launcher.contracts import Observer, RunContext


class NoObserver(ObserverOption):
    """No observer in addition to logging and checkpoints."""

    kind: Literal["none"]

    @override
    def observers(self, context: RunContext) -> Sequence[Observer]:
        del context
        return ()
