"""Task of supervised fine-tuning on chats."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import Column, Head, Records, Samples, Tokenizer
from launcher.errors import DataError
from launcher.task._export import export
from launcher.task._padded import PaddedSamples, Ragged
from launcher.task._token_metrics import TokenTask
from launcher.task._token_samples import NO_TARGET

_log = logging.getLogger("trainctl.task")

# Source: https://github.com/openai/openai-python/blob/v0.28.1/chatml.md
CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Roles of the ShareGPT format.
_ROLES = {"human": "user", "gpt": "assistant"}
_ASSISTANT = "assistant"
Messages = Sequence[Mapping[str, Any]]


class ChatModel(TokenTask):
    """Predicts the tokens of the assistant's answers.

    Args:
        tokenizer: The tokenizer.
        columns: By name: messages, or prompt and completion; tools.
        seq_len: Most tokens of a sample.
        template: Jinja template, or `chatml`; None for the tokenizer's own.
        only_last: Train the last answer only.
        skips: Leave out chats without a trained token.
    """

    head = Head("causal_lm")

    def __init__(
        self,
        tokenizer: Tokenizer,
        columns: Mapping[str, Column],
        *,
        seq_len: int,
        template: str | None,
        only_last: bool,
        skips: bool,
    ) -> None:
        self.columns = tuple(column.name for column in columns.values())
        self._columns, self._tokenizer, self._seq_len = columns, tokenizer, seq_len
        self._only_last, self._skips = only_last, skips
        self._given = CHATML_TEMPLATE if template == "chatml" else template
        found = self._given or tokenizer.chat_template
        if found is None:
            raise DataError(
                "the tokenizer has no chat template; write task.chat_template=chatml, or give a "
                "file with a template"
            )
        self._template: str = found

    @override
    def samples(self, records: Records) -> Samples:
        rows: list[Sequence[int]] = []
        labels: list[Sequence[int]] = []
        sources: list[int] = []
        empty: list[str] = []
        truncated = 0
        for index in range(len(records)):
            place = records.describe(index)
            ids, trained = self._encode(records, index, place)
            truncated += len(ids) > self._seq_len + 1
            # Shifted as in every task that predicts the next token.
            row = ids[: self._seq_len + 1]
            targets = np.where(trained, ids, NO_TARGET)[1 : self._seq_len + 1].tolist()
            if all(target == NO_TARGET for target in targets):
                empty.append(place)
                continue
            rows.append(row[:-1])
            labels.append(targets)
            sources.append(index)
        self._report_empty(empty, len(records))
        inputs = {
            "input_ids": Ragged.of(rows, self._tokenizer.pad_id),
            "labels": Ragged.of(labels, NO_TARGET),
        }
        counts = np.array([sum(t != NO_TARGET for t in row) for row in labels], dtype=np.int64)
        total = sum(map(len, rows))
        _log.info(
            "%d chats, %d tokens of which %.1f %% are trained; %d chats are longer than "
            "task.seq_len and truncated",
            len(rows),
            total,
            100 * counts.sum() / max(total, 1),
            truncated,
        )
        return PaddedSamples(
            records,
            inputs,
            values={},
            padding={},
            targets=counts,
            sources=np.array(sources, dtype=np.int64),
        )

    @override
    def forward_inputs(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        # Attention is causal, so that no target sees the padding on its right.
        return {"input_ids": inputs["input_ids"], "use_cache": False}

    @override
    def export(self, module: nn.Module, folder: Path) -> None:
        export(module, self._tokenizer, folder, self._given)

    def _report_empty(self, empty: Sequence[str], count: int) -> None:
        if not empty:
            return
        message = (
            f"{len(empty)} of {count} chats have no answer within task.seq_len={self._seq_len} "
            f"tokens, so that nothing of them is trained; the first: {', '.join(empty[:5])}"
        )
        if not self._skips or len(empty) == count:
            raise DataError(f"{message}; raise task.seq_len, or task.on_error=skip leaves them out")
        _log.warning("%s; left out", message)

    def _encode(self, records: Records, index: int, place: str) -> tuple[Sequence[int], Any]:
        """Return the ids of a chat, and which of them are trained. Shape (T,), bool."""
        messages = self._messages(records, index, place)
        tools = self._columns["tools"].read(records, index) if "tools" in self._columns else None
        text, spans = self._spans(messages, tools, place)
        ids, starts = self._tokenizer.encode_rendered(text)
        at, following = np.asarray(starts), np.asarray([*starts[1:], len(text)])
        trained = np.zeros(len(ids), dtype=bool)
        for begin, end in spans:
            # A token may begin with the space before an answer.
            trained |= ((at >= begin) | (following > begin)) & (at < end)
        return ids, trained

    def _messages(self, records: Records, index: int, place: str) -> Messages:
        if "messages" not in self._columns:
            prompt = self._columns["prompt"].read(records, index)
            answer = self._columns["completion"].read(records, index)
            return [
                {"role": "user", "content": prompt},
                {"role": _ASSISTANT, "content": answer},
            ]
        found: list[Mapping[str, Any]] = []
        for message in self._columns["messages"].read(records, index):
            if "role" in message:
                found.append(message)
            else:
                role = _ROLES.get(message["from"], message["from"])
                found.append({"role": role, "content": message["value"]})
            if not isinstance(found[-1].get("content", ""), str | list | None):
                raise DataError(f"{place}: the content of message {len(found)} must be text")
        return found

    def _spans(
        self, messages: Messages, tools: Any, place: str
    ) -> tuple[str, Sequence[tuple[int, int]]]:
        """Return the rendered chat, and the parts of it that answers add."""
        text = self._render(messages, tools, place)
        answers = [i for i, message in enumerate(messages) if message["role"] == _ASSISTANT]
        spans = []
        for answer in answers[-1:] if self._only_last else answers:
            before = self._render(messages[:answer], tools, place, prompt=True)
            after = self._render(messages[: answer + 1], tools, place)
            # Otherwise the model would be trained on another text than it continues later.
            if not text.startswith(before) or not text.startswith(after):
                cure = "" if self._only_last else "; task.train_on=last trains only the last answer"
                raise DataError(
                    f"{place}: the chat template renders the messages before answer {answer + 1} "
                    f"otherwise when more follow: what the answer adds is unknown{cure}; or give a "
                    "template that does not, such as task.chat_template=chatml"
                )
            spans.append((len(before), len(after)))
        return text, spans

    def _render(self, messages: Messages, tools: Any, place: str, *, prompt: bool = False) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        if not messages and not prompt:
            return ""
        try:
            # In Jinja's sandbox: a template comes with the model, from anywhere.
            [text], _ = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self._template,
                tools=tools,
                add_generation_prompt=prompt,
                **self._tokenizer.special_tokens,
            )
        except Exception as error:
            # A template raises what its author chose, such as for a wrong order of roles.
            raise DataError(f"{place}: the chat template refuses the messages: {error}") from error
        rendered: str = text
        return rendered
