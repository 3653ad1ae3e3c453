"""Supervised fine-tuning: which tokens of a chat are trained."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from launcher.contracts import Task, TaskOption
from launcher.errors import DataError
from launcher.model._tokenizers import ByteTokenizer, FolderTokenizer
from launcher.task._chat import CHATML_TEMPLATE
from tests.contract.witness import option_of, preset, replaced
from tests.networks import small_llama
from tests.toy.shared import Rows

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi é"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "More"},
    {"role": "assistant", "content": "No"},
]
# As Qwen3 does: what the assistant thought is removed from all turns but the last.
FORGETFUL = (
    "{% for m in messages %}<{{ m.role }}>{% if loop.last or '</think>' not in m.content %}"
    "{{ m.content }}{% else %}{{ m.content.split('</think>')[1] }}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def task(tokenizer: Any = None, **changes: Any) -> Task:
    values = replaced(preset("task", "sft"), {"chat_template": "chatml", "seq_len": 300, **changes})
    option = option_of("task", values)
    assert isinstance(option, TaskOption)
    return option.build(tokenizer or ByteTokenizer())


def trained(found: Task, *chats: Any, tokenizer: Any = None) -> list[str]:
    """The text of the trained tokens of each chat."""
    samples = found.samples(Rows([{"messages": chat} for chat in chats]))
    labels = samples.micro_batch(range(len(samples)), 0).inputs["labels"]
    decode = (tokenizer or ByteTokenizer()).decode
    return [decode([token for token in row if token >= 0]) for row in labels.tolist()]


def test_the_answers_alone_are_trained_with_their_ends() -> None:
    assert trained(task(), CHAT) == ["Hello<|im_end|>\nNo<|im_end|>\n"]
    assert trained(task(train_on="last"), CHAT) == ["No<|im_end|>\n"]
    share_gpt = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    assert trained(task(), share_gpt, CHAT)[0] == "y<|im_end|>\n"


def test_inputs_are_the_rendered_chat_and_labels_its_next_tokens() -> None:
    samples = task().samples(Rows([{"messages": CHAT}]))
    inputs = samples.micro_batch([0], 0).inputs
    text = ByteTokenizer().decode(inputs["input_ids"][0].tolist())
    assert text.startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi é<|im_end|>"
    )
    there = inputs["labels"][0] >= 0
    after = inputs["input_ids"][0].roll(-1)
    assert torch.equal(inputs["labels"][0][there][:-1], after[there][:-1])
    assert samples.num_targets([0]) == int(there.sum())
    assert task().samples(Rows([{"messages": CHAT}])).fingerprint == samples.fingerprint


def test_prompt_and_completion_are_a_chat() -> None:
    columns = {"messages": None, "prompt": "q", "completion": "a"}
    names = {f"columns.{key}": name for key, name in columns.items()}
    samples = task(**names).samples(Rows([{"q": "x", "a": "yz"}]))
    labels = samples.micro_batch([0], 0).inputs["labels"][0]
    assert ByteTokenizer().decode(labels[labels >= 0].tolist()) == "yz<|im_end|>\n"


def test_a_template_that_changes_earlier_turns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "forgetful.jinja"
    path.write_text(FORGETFUL)
    thinking = [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "a</think>b"},
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": "c</think>d"},
    ]
    with pytest.raises(DataError, match=r"rows:1: .* before answer 2 otherwise.*train_on=last"):
        trained(task(chat_template=str(path)), thinking)
    assert trained(task(chat_template=str(path), train_on="last"), thinking) == ["c</think>d</s>"]
    with pytest.raises(DataError, match=r"task.chat_template: .*missing: cannot be read"):
        task(chat_template=str(tmp_path / "missing"))
    path.write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match=r"rows:1: the chat template refuses .*must alternate"):
        trained(task(chat_template=str(path)), CHAT)
    # A template comes from anywhere: it cannot reach Python.
    path.write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(DataError, match="refuses the messages"):
        trained(task(chat_template=str(path)), CHAT)


def test_chats_without_a_trained_token_are_named(caplog: pytest.LogCaptureFixture) -> None:
    long = [{"role": "user", "content": "x" * 400}, {"role": "assistant", "content": "y"}]
    alone = [{"role": "user", "content": "x"}]
    message = r"2 of 3 chats have no answer within task.seq_len=300 .*; the first: rows:2, rows:3"
    with pytest.raises(DataError, match=message):
        trained(task(), CHAT, long, alone)
    with caplog.at_level(logging.INFO):
        assert len(trained(task(on_error="skip"), CHAT, long, alone)) == 1
    assert "left out" in caplog.text
    assert "1 chats are longer than task.seq_len" in caplog.text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer with a chat template and special tokens of its own."""
    letters = {letter: place for place, letter in enumerate("▁HeloNBbrif.Mu")}
    words = {"lo": 20, "Hel": 21, "Hello": 22, "He": 23, "▁Hello": 24}
    merges = [("H", "e"), ("He", "l"), ("l", "o"), ("Hel", "lo"), ("▁", "Hello")]
    made = Tokenizer(models.BPE(vocab={**letters, **words}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.add_special_tokens([AddedToken("<s>"), AddedToken("</s>"), AddedToken("<a>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<a> {{ m.content }}"
        "{{ eos_token }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<a> {% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_the_tokenizers_own_template_has_its_special_tokens_once(folder: Path) -> None:
    tokenizer = FolderTokenizer(folder)
    found = task(tokenizer, chat_template=None)
    chat = [{"role": "user", "content": "Me"}, {"role": "assistant", "content": "Hello"}]
    inputs = found.samples(Rows([{"messages": chat}])).micro_batch([0], 0).inputs
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    names = theirs.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    assert names[:3] == ["<s>", "M", "e"]
    assert names.count("<s>") == 1
    # The token that begins with the space of the prompt is trained, and the end of the answer.
    labels = [token for token in inputs["labels"][0].tolist() if token >= 0]
    assert theirs.convert_ids_to_tokens(labels) == ["▁Hello", "</s>"]
    rendered = theirs.apply_chat_template(chat, return_dict=False)
    assert rendered[:-1] == inputs["input_ids"][0].tolist()
    with pytest.raises(DataError, match=r"no chat template; write task.chat_template=chatml"):
        task(chat_template=None)


def test_the_export_has_the_template(tmp_path: Path) -> None:
    found = task()
    found.export(small_llama(vocab_size=384), tmp_path / "export")
    assert (tmp_path / "export" / "chat_template.jinja").read_text() == CHATML_TEMPLATE
    loaded: Any = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert loaded.apply_chat_template(CHAT, tokenize=False).startswith("<|im_start|>system\nBe")
