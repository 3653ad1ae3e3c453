"""Names of the columns that tasks read, as the config has them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from launcher.contracts import Column, Settings, is_text

TEXT = Column(key="task.columns.text", name="text", expects="text", accepts=is_text)
"""The column of tasks that read only text, under its usual name."""


class TextColumn(Settings):
    """Columns of tasks that read only text."""

    text: str = Field(min_length=1)
    """Column with the text."""

    def specs(self) -> Sequence[Column]:
        """Return the columns."""
        return [Column(key=TEXT.key, name=self.text, expects="text", accepts=is_text)]
