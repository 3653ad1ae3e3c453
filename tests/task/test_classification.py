"""Text classification: labels, losses, scores, and the export in a pipeline of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import pipeline

from launcher.contracts import ModelOption, Task, TaskOption
from launcher.errors import DataError
from launcher.model import build_module
from launcher.task import _scores
from tests.contract.witness import option_of, preset, replaced
from tests.task.encoders import SMALL, WORDS, save_config, save_word_tokenizer
from tests.toy.shared import Rows


def option(**changes: Any) -> TaskOption:
    values = {**preset("task", "text_classification"), "seq_len": 16}
    found = option_of("task", replaced(values, changes))
    assert isinstance(found, TaskOption)
    return found


def model(folder: Path, name: str, tokenizer: str) -> ModelOption:
    values = {
        **preset("model", "hf"),
        "path": save_config(folder, name),
        "init": "random",
        "tokenizer": tokenizer,
    }
    found = option_of("model", values)
    assert isinstance(found, ModelOption)
    return found


def rows(label: Any = lambda i: ("no", "yes", "maybe")[i % 3]) -> Rows:
    texts = (" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 2 + i % 7)) for i in range(12))
    return Rows([{"text": text, "label": label(i)} for i, text in enumerate(texts)])


def built(
    folder: Path, name: str, records: Rows, tokenizer: str = "byt5", **changes: Any
) -> tuple[Task, Any, Any]:
    made = model(folder, name, tokenizer)
    task = option(**changes).build(made.build_tokenizer())
    samples = task.samples(records)
    return task, samples, build_module(made, task.head, 0)


@pytest.mark.parametrize(
    "name",
    [
        name if name in {"bert", "gpt2", "bart"} else pytest.param(name, marks=pytest.mark.slow)
        for name in SMALL
    ],
)
def test_the_loss_is_that_of_transformers(tmp_path: Path, name: str) -> None:
    task, samples, module = built(tmp_path, name, rows(), seq_len=24)
    module.eval()
    inputs = samples.micro_batch(range(5), 0).inputs
    outputs = module(**task.forward_inputs(inputs))
    expected = module(**task.forward_inputs(inputs), labels=inputs["labels"]).loss
    torch.testing.assert_close(task.loss(outputs, inputs), 5 * expected)
    # A sample's logits do not depend on the padding that others need.
    alone = samples.micro_batch([1], 0).inputs
    logits = module(**task.forward_inputs(alone)).logits
    torch.testing.assert_close(outputs.logits[1:2], logits, atol=1e-5, rtol=1e-5)
    padding = samples.micro_batch([], 0).inputs
    loss = task.loss(module(**task.forward_inputs(padding)), padding)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert not any(p.grad.any() for p in module.parameters() if p.grad is not None)


PROBLEMS: dict[str, Any] = {
    "single_label": lambda i: ("no", "yes", "maybe")[i % 3],
    "multi_label": lambda i: [each for k, each in enumerate("abc") if i >> k & 1],
    "regression": lambda i: i / 4,
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_export_predicts_the_same_in_a_pipeline(tmp_path: Path, problem: str) -> None:
    records = rows(PROBLEMS[problem])
    tokenizer = save_word_tokenizer(tmp_path / "tokenizer")
    task, samples, module = built(
        tmp_path / "model", "bert", records, tokenizer, problem_type=problem
    )
    module.eval()
    inputs = samples.micro_batch(range(12), 0).inputs
    logits = task.predict(module(**task.forward_inputs(inputs)), inputs)["logits"]
    expected = {
        "single_label": logits.softmax(dim=-1),
        "multi_label": logits.sigmoid(),
        "regression": logits,
    }[problem]
    task.export(module, tmp_path / "export")
    classify: Any = pipeline("text-classification", str(tmp_path / "export"), top_k=None)
    found = classify([row["text"] for row in records.rows])
    for scores, row in zip(expected.tolist(), found, strict=True):
        by_label = {each["label"]: each["score"] for each in row}
        assert by_label == pytest.approx(dict(zip(task.head.labels, scores, strict=True)), abs=1e-6)


def test_labels_are_those_of_the_training_records() -> None:
    from launcher.model._tokenizers import ByteTokenizer

    task = option().build(ByteTokenizer())
    task.samples(rows(lambda i: (10, 9, 2)[i % 3]))
    assert task.head.labels == ("2", "9", "10")
    other = option().build(ByteTokenizer())
    other.restore(task.learned())
    assert other.head == task.head
    with pytest.raises(DataError, match=r"rows:1: the label 7 is none of those .*: 2, 9, 10"):
        task.samples(rows(lambda _: 7))
    with pytest.raises(DataError, match=r"one label in label: x; there is nothing to tell apart"):
        option().build(ByteTokenizer()).samples(rows(lambda _: "x"))
    with pytest.raises(DataError, match=r"rows:1: the column label must be a label .* \(list\)"):
        option().build(ByteTokenizer()).samples(rows(lambda _: ["x"]))
    references = task.references(rows(lambda i: i % 4 == 0))
    assert references == {"majority_accuracy": 0.75}


class Outputs:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


def test_weights_and_smoothing_are_those_of_torch() -> None:
    from launcher.model._tokenizers import ByteTokenizer

    records = rows(lambda i: "b" if i % 4 else "a")
    logits, inputs = torch.randn(12, 2), {"labels": torch.tensor([i % 2 for i in range(12)])}
    for given, weights in (
        ("balanced", [2.0, 12 / 18]),
        ({"a": 3.0}, [3.0, 1.0]),
    ):
        task = option(class_weights=given, label_smoothing=0.2).build(ByteTokenizer())
        task.samples(records)
        expected = torch.nn.functional.cross_entropy(
            logits,
            inputs["labels"],
            weight=torch.tensor(weights),
            label_smoothing=0.2,
            reduction="sum",
        )
        torch.testing.assert_close(task.loss(Outputs(logits), inputs), expected)
    with pytest.raises(DataError, match=r"task.class_weights: c is no label; the labels are a, b"):
        option(class_weights={"c": 1.0}).build(ByteTokenizer()).samples(records)


def test_scores_are_those_of_torchmetrics() -> None:
    metrics = pytest.importorskip("torchmetrics.functional")
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 200), rng.integers(0, 5, 200)
    matrix = _scores.confusion(labels, predicted, 6)
    given = torch.from_numpy(predicted), torch.from_numpy(labels)
    many = {"task": "multiclass", "num_classes": 6}
    assert _scores.accuracy(matrix) == pytest.approx(float(metrics.accuracy(*given, **many)))
    expected = metrics.f1_score(*given, **many, average="macro")
    assert _scores.macro_f1(matrix) == pytest.approx(float(expected))
    assert _scores.matthews(matrix) == pytest.approx(
        float(metrics.matthews_corrcoef(*given, **many))
    )
    a, b = rng.normal(size=200).round(1), rng.normal(size=200)
    pair = torch.from_numpy(a), torch.from_numpy(b)
    assert _scores.pearson(a, b) == pytest.approx(float(metrics.pearson_corrcoef(*pair)))
    assert _scores.spearman(a, b) == pytest.approx(float(metrics.spearman_corrcoef(*pair)))
    area = metrics.auroc(torch.from_numpy(a).sigmoid(), torch.from_numpy(b > 0), task="binary")
    assert _scores.auroc(b > 0, a) == pytest.approx(float(area))
