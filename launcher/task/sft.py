"""Supervised fine-tuning on chats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Column, Task, TaskOption, is_text
from launcher.errors import DataError
from launcher.task._columns import ChatColumns, is_list, is_messages

if TYPE_CHECKING:
    from launcher.contracts import Tokenizer

CHATML = "chatml"


class SupervisedFineTuning(TaskOption):
    """Predict the assistant's answers in chats; the other messages are only read.

    The chat template renders the messages. What an answer adds to the rendered text is trained, its
    end included: no markers in the template are needed.
    """

    head = "causal_lm"

    score_names: ClassVar[frozenset[str] | None] = frozenset(
        {"eval_loss", "eval_perplexity", "eval_accuracy"}
    )

    columns: ChatColumns
    """Names of the columns in the data."""
    chat_template: str | None = Field(min_length=1)
    """`chatml`, or a file with a Jinja template; null for the tokenizer's own. It is part of the
    export."""
    train_on: Literal["all", "last"]
    """Answers to learn: all of a chat, or the last one only."""
    on_error: Literal["stop", "skip"]
    """Action for a chat without an answer within `seq_len` tokens: stop the run, or leave it out
    and count it."""

    @override
    def preflight(self) -> None:
        self._template()

    @override
    def column_specs(self) -> Sequence[Column]:
        named = self.columns
        wanted = {
            "messages": (named.messages, "a list of messages with role and content", is_messages),
            "prompt": (named.prompt, "text", is_text),
            "completion": (named.completion, "text", is_text),
            "tools": (named.tools, "a list of tools", is_list),
        }
        return [
            Column(key=f"task.columns.{key}", name=name, expects=expects, accepts=accepts)
            for key, (name, expects, accepts) in wanted.items()
            if name is not None
        ]

    @override
    def build(self, tokenizer: Tokenizer) -> Task:
        from launcher.task._chat import ChatModel

        return ChatModel(
            tokenizer,
            {spec.key.rpartition(".")[2]: spec for spec in self.column_specs()},
            seq_len=self.seq_len,
            template=self._template(),
            only_last=self.train_on == "last",
            skips=self.on_error == "skip",
        )

    def _template(self) -> str | None:
        if self.chat_template in {None, CHATML}:
            return self.chat_template
        path = Path(self.chat_template or "").expanduser()
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DataError(
                f"task.chat_template: {path}: cannot be read: {error}; give a file, or "
                f"{CHATML}, or null for the tokenizer's own template"
            ) from error
