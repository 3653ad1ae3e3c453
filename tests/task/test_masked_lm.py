"""Masked language modelling: how many tokens are hidden, where, and by what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

from launcher.contracts import TaskOption, Tokenizer
from launcher.errors import DataError
from launcher.model import build_module
from launcher.model._tokenizers import ByteTokenizer, FolderTokenizer
from tests.contract.witness import option_of, preset
from tests.task.encoders import WORDS, save_word_tokenizer
from tests.task.test_classification import model
from tests.toy.shared import Rows

ROWS = Rows([{"text": " ".join(WORDS[(i * k) % 10] for k in range(1, 9 + i))} for i in range(40)])


def task(tokenizer: Tokenizer, **changes: Any) -> Any:
    values = {**preset("task", "masked_lm"), "seq_len": 24, **changes}
    option = option_of("task", values)
    assert isinstance(option, TaskOption)
    return option.build(tokenizer)


def test_an_exact_share_is_hidden_and_drawn_again_with_each_draw() -> None:
    samples = task(ByteTokenizer()).samples(ROWS)
    batch = samples.micro_batch(range(len(samples)), 7)
    ids, labels = batch.inputs["input_ids"], batch.inputs["labels"]
    hidden = labels >= 0
    assert [samples.num_targets([i]) for i in range(len(samples))] == hidden.sum(dim=1).tolist()
    # End tokens are no text: they are never hidden.
    assert set(hidden.sum(dim=1).tolist()) <= {3, 4}
    plain = samples.micro_batch(range(len(samples)), 8).inputs
    original = torch.where(hidden, labels, ids)
    assert torch.equal(
        original, torch.where(plain["labels"] >= 0, plain["labels"], plain["input_ids"])
    )
    assert not torch.equal(plain["labels"], labels)
    share = {
        "masked": (ids[hidden] == ByteTokenizer.mask_id).float().mean(),
        "kept": (ids[hidden] == labels[hidden]).float().mean(),
    }
    assert share["masked"] == pytest.approx(0.8, abs=0.08)
    assert share["kept"] == pytest.approx(0.1, abs=0.08)
    # A function of draw and sample: other samples of the micro-batch change nothing.
    alone = samples.micro_batch([5], 7).inputs
    assert torch.equal(alone["labels"][0], labels[5])


def test_records_are_truncated_one_by_one_without_packing(tmp_path: Path) -> None:
    tokenizer = FolderTokenizer(Path(save_word_tokenizer(tmp_path)))
    samples = task(tokenizer, packing=False, hidden_share=1.0, mask_share=1.0, random_share=0.0)
    found = samples.samples(ROWS)
    assert len(found) == len(ROWS)
    assert found.lengths.max() == 24
    row = found.micro_batch([0], 0).inputs["input_ids"][0].tolist()
    assert (row[0], row[-1]) == (2, 3)
    assert set(row[1:-1]) == {tokenizer.mask_id}
    assert found.num_targets([0]) == len(row) - 2
    assert found.describe(3) == "rows:4"
    packed = task(tokenizer).samples(ROWS)
    assert set(packed.lengths) == {24}
    assert packed.describe(len(packed) - 1) in {"rows:39", "rows:40"}
    with pytest.raises(DataError, match=r"give more text, or task.packing=false"):
        task(tokenizer, seq_len=10_000).samples(ROWS)


def test_the_loss_is_that_of_transformers_and_the_export_fills_masks(tmp_path: Path) -> None:
    made = model(tmp_path / "model", "bert", save_word_tokenizer(tmp_path / "tokenizer"))
    found = task(made.build_tokenizer(), packing=False)
    samples = found.samples(ROWS)
    module: Any = build_module(made, found.head, 0).eval()
    inputs = samples.micro_batch([3, 9, 20], 0).inputs
    with torch.no_grad():
        outputs = module(**found.forward_inputs(inputs))
        theirs = module(**found.forward_inputs(inputs), labels=inputs["labels"]).loss
    count = samples.num_targets([3, 9, 20])
    torch.testing.assert_close(found.loss(outputs, inputs), count * theirs)
    metrics = found.metrics(samples)
    metrics.add(found.predict(outputs, inputs))
    assert metrics.compute()["eval_loss"] == pytest.approx(float(theirs))
    assert metrics.compute().keys() == {"eval_loss", "eval_perplexity", "eval_accuracy"}
    padding = samples.micro_batch([], 0).inputs
    assert found.loss(module(**found.forward_inputs(padding)), padding).item() == 0
    found.export(module, tmp_path / "export")
    fill: Any = pipeline("fill-mask", str(tmp_path / "export"), top_k=1)
    [first] = fill("red [MASK] one .")
    with torch.no_grad():
        logits = module(torch.tensor([[2, 5, 4, 7, 15, 3]])).logits[0, 2]
    assert first["token"] == int(logits.argmax())
    assert first["score"] == pytest.approx(float(logits.softmax(0).max()), abs=1e-6)


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    tokenizer: Any = ByteTokenizer()
    tokenizer.mask_id = None
    with pytest.raises(DataError, match="has no mask token"):
        task(tokenizer)
