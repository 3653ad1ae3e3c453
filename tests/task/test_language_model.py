from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
import yaml
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from launcher.contracts import Records, Task, Tokenizer
from launcher.errors import DataError
from launcher.task import _language_model
from launcher.task._language_model import summed_cross_entropy
from launcher.task._token_samples import NO_TARGET
from launcher.task.causal_lm import CausalLM
from tests.task.conftest import Letters
from tests.toy.shared import Texts

PRESET = Path(__file__).parents[2] / "conf" / "task" / "causal_lm.yaml"


def option(**changes: Any) -> CausalLM:
    values = {**yaml.safe_load(PRESET.read_text(encoding="utf-8")), **changes}
    return CausalLM.model_validate_json(json.dumps(values))


def task(tokenizer: Tokenizer, **changes: Any) -> Task:
    return option(**changes).build(tokenizer)


def records(*texts: str) -> Records:
    return Texts(*texts)


def loss_of(live: Task, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    return live.loss(module(**live.forward_inputs(inputs)), inputs)


@pytest.mark.parametrize("packing", [True, False])
def test_the_loss_is_the_plain_one_over_each_sample(
    letters: Tokenizer, small_llama: Any, packing: bool
) -> None:
    texts = ["the first", "b", "a third document", "x" * 30]
    live = task(letters, seq_len=7, packing=packing)
    samples = live.samples(records(*texts))
    batch = samples.micro_batch(range(len(samples)), 0)
    loss = loss_of(live, small_llama, batch.inputs)
    expected = 0.0
    for i in range(len(samples)):
        inputs = samples.micro_batch([i], 0).inputs
        log_p = small_llama(inputs["input_ids"]).logits[0].double().log_softmax(-1)
        for place, label in enumerate(inputs["labels"][0].tolist()):
            if label != NO_TARGET:
                expected -= log_p[place, label].item()
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_is_that_of_transformers_own_loss(
    letters: Tokenizer, small_llama: Any
) -> None:
    live = task(letters, seq_len=9, packing=True)
    batch = live.samples(records("some text to learn from " * 3)).micro_batch([0, 2, 4], 0)
    torch.autograd.backward(loss_of(live, small_llama, batch.inputs) / batch.num_targets)
    ours = [p.grad.clone() for p in small_llama.parameters()]
    small_llama.zero_grad()
    labels = F.pad(batch.inputs["labels"], (1, 0), value=NO_TARGET)
    ids = F.pad(batch.inputs["input_ids"], (0, 1))
    small_llama(input_ids=ids, labels=labels).loss.backward()
    for a, parameter in zip(ours, small_llama.parameters(), strict=True):
        torch.testing.assert_close(a, parameter.grad)


def test_padding_does_not_reach_a_target(letters: Tokenizer, small_llama: Any) -> None:
    live = task(letters, seq_len=20, packing=False)
    samples = live.samples(records("abc", "x" * 19))
    alone = [loss_of(live, small_llama, samples.micro_batch([i], 0).inputs) for i in (0, 1)]
    together = loss_of(live, small_llama, samples.micro_batch([0, 1], 0).inputs)
    torch.testing.assert_close(together, alone[0] + alone[1])


def reference(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    kept = labels != NO_TARGET
    return F.cross_entropy(logits.double()[kept], labels[kept], reduction="sum")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows_at_once", [1, 7, 100])
def test_logits_of_any_format_are_summed_in_float32(
    dtype: torch.dtype, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_language_model, "_CHUNK", rows_at_once * 50)
    torch.manual_seed(0)
    logits = (3 * torch.randn(40, 50)).to(dtype).requires_grad_()
    labels = torch.randint(0, 50, (40,))
    labels[::5] = NO_TARGET
    labels[:8] = NO_TARGET  # a chunk without any target
    loss = summed_cross_entropy(logits, labels)
    torch.autograd.backward(loss)
    exact_logits = logits.detach().double().requires_grad_()
    exact = reference(exact_logits, labels)
    torch.autograd.backward(exact)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    assert logits.grad is not None
    assert exact_logits.grad is not None
    torch.testing.assert_close(logits.grad, exact_logits.grad.to(dtype))


class WideTensors(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch types neither
    """The largest tensor that any operation made in float32 or wider, in elements."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # likewise
        self.largest = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        wide = [t.numel() for t in made if t.is_floating_point() and t.itemsize >= 4]
        self.largest = max([self.largest, *wide])
        return out


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_float32_copy_of_all_logits_is_ever_made(
    letters: Tokenizer,
    small_llama: Any,
    dtype: torch.dtype,
    learning: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vocabulary, rows = small_llama.config.vocab_size, 4
    monkeypatch.setattr(_language_model, "_CHUNK", rows * vocabulary)
    live = task(letters, seq_len=40, packing=True)
    batch = live.samples(records("a text " * 60)).micro_batch(range(8), 0)
    weights = max(param.numel() for param in small_llama.parameters())
    with (
        WideTensors() as seen,
        torch.set_grad_enabled(learning),
        torch.autocast("cpu", dtype=dtype),
    ):
        loss = loss_of(live, small_llama, batch.inputs)
        if learning:
            torch.autograd.backward(loss)
    others = 8 * 40 * small_llama.config.intermediate_size
    assert seen.largest <= max(rows * vocabulary, weights, others) < 8 * 40 * vocabulary


def test_without_a_target_the_loss_is_zero() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        labels = torch.full((4,), NO_TARGET)
        assert summed_cross_entropy(torch.randn(4, 9, dtype=dtype), labels).item() == 0.0


def metrics_of(live: Task, texts: Records, losses: list[float], counts: list[int]) -> Any:
    metrics = live.metrics(live.samples(texts))
    metrics.add({"loss": torch.tensor(losses), "num_targets": torch.tensor(counts)})
    return metrics.compute()


def test_metrics_are_nats_per_token_and_bits_per_byte(letters: Tokenizer) -> None:
    live = task(letters, seq_len=5)
    # Ten targets, of which eight are a byte each.
    found = metrics_of(live, records("abcd", "efgh"), [4 * math.log(2), 6 * math.log(2)], [5, 5])
    assert found == pytest.approx(
        {"eval_loss": math.log(2), "eval_perplexity": 2.0, "eval_bits_per_byte": 10 / 8}
    )
    assert list(found) == list(live.metrics(live.samples(records("abcd", "efgh"))).names)


def test_a_loss_beyond_the_range_of_exp_has_infinite_perplexity(letters: Tokenizer) -> None:
    found = metrics_of(task(letters, seq_len=1), records("a"), [2e4], [2])
    assert found["eval_perplexity"] == math.inf


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictions_are_the_loss_by_sample(
    letters: Tokenizer,
    small_llama: Any,
    packing: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_language_model, "_CHUNK", 5 * small_llama.config.vocab_size)
    live = task(letters, seq_len=7, packing=packing)
    samples = live.samples(records("the first", "b", "a third document", "x" * 30))
    inputs = samples.micro_batch(range(len(samples)), 0).inputs
    outputs = small_llama.to(dtype)(**live.forward_inputs(inputs))
    found = live.predict(outputs, inputs)
    assert found["loss"].dtype == torch.float32
    assert found["num_targets"].tolist() == [samples.num_targets([i]) for i in range(len(samples))]
    assert found["loss"].sum().item() == pytest.approx(live.loss(outputs, inputs).item(), rel=1e-6)
    kept = inputs["labels"][3] != NO_TARGET
    alone = F.cross_entropy(
        outputs.logits[3][kept].double(), inputs["labels"][3][kept], reduction="sum"
    )
    assert found["loss"][3].item() == pytest.approx(alone.item(), rel=1e-6)


@pytest.mark.parametrize("packing", [True, False])
def test_no_indices_give_a_row_without_loss_or_gradient(
    letters: Tokenizer, small_llama: Any, packing: bool
) -> None:
    live = task(letters, seq_len=7, packing=packing)
    batch = live.samples(records("some text", "and more")).micro_batch([], 0)
    assert (batch.num_targets, list(batch.indices)) == (0, [])
    assert {len(value) for value in batch.inputs.values()} == {1}
    loss = loss_of(live, small_llama, batch.inputs)
    torch.autograd.backward(loss)
    assert loss.item() == 0.0
    for parameter in small_llama.parameters():
        assert not parameter.grad.any()


def test_uniform_guessing_costs_the_logarithm_of_the_vocabulary(
    letters: Tokenizer, small_llama: Any
) -> None:
    for parameter in small_llama.lm_head.parameters():
        torch.nn.init.zeros_(parameter)
    live = task(letters, seq_len=6, packing=False)
    samples = live.samples(records("seven ages", "of man"))
    inputs = samples.micro_batch(range(len(samples)), 0).inputs
    metrics = live.metrics(samples)
    metrics.add(live.predict(small_llama(**live.forward_inputs(inputs)), inputs))
    assert metrics.compute()["eval_bits_per_byte"] == pytest.approx(7 * 18 / 16)


@pytest.mark.parametrize(
    "changes",
    [
        {"seq_len": 0},
        {"packing": 1},
        {"sample_tokens": -1},
        {"sample_temperature": -0.1},
        {"sample_temperature": 1e-30},
        {"sample_temperature": 1e30},
        {"sample_tokens": 10**32},
        {"seq_len": 2**63},
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        option(**changes)


class LowerCasing(Letters):
    @override
    def encode(self, text: str) -> npt.NDArray[np.int32]:
        return super().encode(text.lower())


def test_bits_per_byte_are_left_out_where_the_tokenizer_loses_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    live = task(LowerCasing(), seq_len=5)
    kept = live.samples(records("all lower case"))
    assert live.references(records("all lower case"))
    assert "eval_bits_per_byte" in live.metrics(kept).names
    with caplog.at_level(logging.WARNING):
        lost = [live.samples(records("Not lower case")) for _ in range(2)]
    assert list(live.metrics(lost[0]).names) == ["eval_loss", "eval_perplexity"]
    assert live.references(records("Not lower case")) == {}
    [message] = caplog.messages
    assert "0.txt: 'Not lower case' became 'not lower case'" in message


def test_the_tokenizer_decides_on_a_bos_token_unless_the_task_does(letters: Tokenizer) -> None:
    def first(**changes: Any) -> int:
        samples = task(letters, seq_len=4, **changes).samples(records("abcd"))
        return int(samples.micro_batch([0], 0).inputs["input_ids"][0, 0])

    with pytest.raises(DataError, match=r"task.add_bos_token must be null or false"):
        first(add_bos_token=True)
    assert first() == letters.eos_id
    letters.bos_id = 3
    assert (first(), first(add_bos_token=True)) == (letters.eos_id, 3)
    letters.adds_bos = True
    assert (first(), first(add_bos_token=False)) == (3, letters.eos_id)
