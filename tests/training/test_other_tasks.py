"""The contract carries tasks that are no causal language models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from launcher.contracts import BatchPlan, DataSplits, Samples
from launcher.errors import DataError
from launcher.model._tokenizers import ByteTokenizer
from launcher.training.batches import Windows
from launcher.training.parts import check_columns
from tests.conftest import Console, toy_words
from tests.tasks import RANDOM
from tests.toy.encoders import Classification, MaskedLanguageModel, Words
from tests.toy.shared import Texts


@pytest.fixture
def bert(tmp_path: Path) -> str:
    config = BertConfig(
        vocab_size=384,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


def bert_words(path: str, *words: str) -> list[str]:
    model = f"model=hf model.path={path} model.tokenizer=byt5 data=toy_labels".split()
    kept = [word for word in toy_words() if word not in {"model=toy", "data=toy", "task=toy"}]
    return [*kept, *model, *words]


def test_a_pretrained_encoder_learns_labels_that_come_from_the_data(
    trainctl: Console, bert: str
) -> None:
    trainctl("run", *bert_words(bert, "task=toy_classes", "max_steps=50", "optimizer.lr=0.02"))
    rows = trainctl.rows(trainctl.run_dir())
    accuracies = [row["eval_accuracy"] for row in rows if "eval_accuracy" in row]
    assert len(accuracies) == 10
    # Thirty held-out words of three labels.
    assert accuracies[-1] > 0.8
    assert all(round(value * 30, 6).is_integer() for value in accuracies)
    exported = json.loads((trainctl.run_dir() / "export" / "config.json").read_text())
    assert exported["architectures"] == ["BertForSequenceClassification"]
    assert exported["id2label"] == {"0": "early", "1": "late", "2": "middle"}


def test_masked_language_modelling_runs_and_resumes_with_the_same_masks(
    trainctl: Console, bert: str
) -> None:
    words = bert_words(bert, "task=toy_masked", "task.seq_len=8", "optimizer.lr=0.02")
    trainctl("run", *words, "name=whole")
    whole = {row["step"]: row["loss"] for row in trainctl.rows(trainctl.run_dir("whole"))}
    trainctl("run", *words, "name=part", "max_steps=8", "scheduler=constant")
    trainctl("run", *words, "name=flat", "scheduler=constant")
    trainctl("resume", str(trainctl.run_dir("part")), "max_steps=12")
    flat = {row["step"]: row["loss"] for row in trainctl.rows(trainctl.run_dir("flat"))}
    part = {row["step"]: row["loss"] for row in trainctl.rows(trainctl.run_dir("part"))}
    assert part == flat
    assert whole[12] < whole[1]


def masked() -> Samples:
    return MaskedLanguageModel(ByteTokenizer(), 8).samples(Words(range(36)))


def rows_by_sample(ranks: int, seed: int, steps: int) -> list[dict[int, list[int]]]:
    """The labels of every sample in each window, over all data ranks."""
    plan = BatchPlan(micro_batch_size=1, micro_batches=12 // ranks, ranks=ranks, seq_len=8)
    found: list[dict[int, list[int]]] = [{} for _ in range(steps)]
    samples = masked()
    for rank in range(ranks):
        windows = Windows(samples, plan, RANDOM, seed=seed, data_rank=rank, start=0, stop=None)
        for step in range(steps):
            for batch in next(windows).micro_batches:
                for index, row in zip(batch.indices, batch.inputs["labels"].tolist(), strict=True):
                    found[step][index] = row
    return found


def test_masks_are_a_function_of_seed_draw_and_sample_on_any_number_of_ranks() -> None:
    one = rows_by_sample(1, seed=5, steps=8)
    assert [len(window) for window in one] == [12] * 8
    for ranks in (2, 3, 4):
        assert rows_by_sample(ranks, seed=5, steps=8) == one
    assert rows_by_sample(1, seed=6, steps=8) != one
    # The third epoch masks other letters of most samples than the first one did.
    first = {index: row for window in one[:3] for index, row in window.items()}
    later = {index: row for window in one[5:] for index, row in window.items()}
    both = first.keys() & later.keys()
    assert sum(first[i] != later[i] for i in both) > len(both) / 2 > 5


def test_padding_has_no_loss_for_any_task() -> None:
    for task in (Classification(ByteTokenizer(), 8), MaskedLanguageModel(ByteTokenizer(), 8)):
        batch = task.samples(Words(range(9))).micro_batch([], 0)
        inputs: Mapping[str, Tensor] = batch.inputs
        shape = (1, 3) if isinstance(task, Classification) else (*inputs["input_ids"].shape, 384)

        class Outputs:
            logits = torch.randn(shape, requires_grad=True)

        loss = task.loss(Outputs(), inputs)
        torch.autograd.backward(loss)
        assert loss.item() == 0
        assert Outputs.logits.grad is not None
        assert not Outputs.logits.grad.any()


def test_a_missing_column_is_named_with_its_source() -> None:
    texts = Texts("text")
    with pytest.raises(
        DataError,
        match=r"task=classes needs the columns text, label, but the train part of data=text has "
        r"no label \(it has: text\)",
    ):
        check_columns(
            DataSplits(texts, texts),
            Classification(ByteTokenizer(), 8),
            task_kind="classes",
            data_kind="text",
        )


def test_lengths_are_those_of_the_rows() -> None:
    samples = masked()
    for index in range(len(samples)):
        batch = samples.micro_batch([index], 3)
        assert batch.inputs["input_ids"].shape[1] == samples.lengths[index]
        assert samples.num_targets([index]) == int((batch.inputs["labels"] != -100).sum())
    assert samples.lengths.dtype == np.int64
