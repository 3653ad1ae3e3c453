"""Names of the columns that tasks read, as the config has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

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


class ClassificationColumns(Settings):
    """Columns of the classification of texts."""

    text: str = Field(min_length=1)
    """Column with the text."""
    text_pair: str | None = Field(min_length=1)
    """Column with a second text, for pairs of texts; null for none."""
    label: str = Field(min_length=1)
    """Column with the label: text or a whole number, a list of them, or a number to predict."""


def is_label(value: object) -> bool:
    """Return True for a name or a number of a class."""
    return isinstance(value, str | int)


def is_labels(value: object) -> bool:
    """Return True for a list of names or numbers of classes."""
    return isinstance(value, list) and all(map(is_label, value))


def is_number(value: object) -> bool:
    """Return True for a finite number, also as text, as CSV files have it."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


class ChatColumns(Settings):
    """Columns of chats: messages, or a prompt and a completion."""

    messages: str | None = Field(min_length=1)
    """Column with a list of messages (`role`, `content`; also `from`, `value`); null for
    prompts."""
    prompt: str | None = Field(min_length=1)
    """Column with the user's text, where `messages` is null."""
    completion: str | None = Field(min_length=1)
    """Column with the answer to learn, where `messages` is null."""
    tools: str | None = Field(min_length=1)
    """Column with the list of tools that the template describes; null for none."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        pair = (self.prompt, self.completion)
        if self.messages is not None and pair != (None, None):
            raise ValueError(
                "must name messages, or prompt and completion, but names both; write "
                "task.columns.messages=null"
            )
        if self.messages is None and None in pair:
            raise ValueError(
                "must name messages, or prompt and completion, such as in "
                "task.columns.prompt=question task.columns.completion=answer"
            )
        return self


def is_messages(value: object) -> bool:
    """Return True for a list of messages of a chat, at least one."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(each, dict) and ({"role"} <= each.keys() or {"from", "value"} <= each.keys())
            for each in value
        )
    )


def is_list(value: object) -> bool:
    """Return True for a list, or none."""
    return value is None or isinstance(value, list)
