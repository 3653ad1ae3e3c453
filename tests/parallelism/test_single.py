"""The single engine against loops written by hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Generator, Mapping

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.config.load import load_config
from launcher.contracts import (
    BatchPlan,
    Clipping,
    EngineParts,
    MicroBatch,
    OptimizerOption,
    PrecisionOption,
    Request,
    Window,
    World,
)
from launcher.errors import CheckpointError, NonFinite
from launcher.parallelism import SingleEngine
from launcher.registry import option_class
from tests.tasks import LogitsTask, mean_loss

VOCABULARY, LENGTH = 17, 12


class Toy(nn.Module):
    """Embedding, norm, head: enough for every rule."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.hidden = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, VOCABULARY, bias=False)

    @override
    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.head(self.norm(torch.tanh(self.hidden(self.embed(ids)))))
        return hidden


def summed_loss(module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    logits = module(inputs["input_ids"])
    return nn.functional.cross_entropy(
        logits.view(-1, VOCABULARY), inputs["labels"].view(-1), ignore_index=-100, reduction="sum"
    )


def optimizer_option(kind: str = "adamw", **values: object) -> OptimizerOption:
    preset = load_config([f"optimizer={kind}"]).config.optimizer
    dumped = preset.model_dump(mode="json")
    dumped["groups"]["no_decay_types"] = ["norm", "bias"]
    return type(preset).model_validate_json(json.dumps({**dumped, "lr": 1e-2, **values}))


def scaled(pattern: str, lr_scale: float) -> OptimizerOption:
    """Plain SGD whose parameters of one pattern learn at another rate."""
    option = optimizer_option("sgd", momentum=0.0, nesterov=False)
    values = option.model_dump(mode="json")
    values["groups"]["overrides"] = [{"pattern": pattern, "lr_scale": lr_scale}]
    return type(option).model_validate_json(json.dumps(values))


def precision_option(kind: str) -> PrecisionOption:
    option = option_class("precision", kind).model_validate({"kind": kind, "full_eval": None})
    assert isinstance(option, PrecisionOption)
    return option


def engine(
    module: nn.Module,
    *,
    optimizer: OptimizerOption | None = None,
    clipping: Clipping | None = None,
    skip: bool = False,
    precision: PrecisionOption | None = None,
) -> SingleEngine:
    return SingleEngine(
        EngineParts(
            module=module,
            task=LogitsTask("ids", "input_ids"),
            optimizer=optimizer or optimizer_option(),
            precision=precision or precision_option("fp32"),
            clipping=clipping or Clipping(1.0, None),
            skip_nonfinite=skip,
            world=World(0, 1, 0, "cpu"),
            plan=BatchPlan(1, 1, 1, 1),
            requests=lambda: Request.NONE,
        )
    )


def tensors(live: SingleEngine) -> dict[str, Tensor]:
    """The state of an engine that shards nothing."""
    state = live.state()
    found = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    assert found.keys() == state.keys()
    return found


def ragged(steps: int, samples: int) -> list[tuple[Tensor, Tensor]]:
    """Windows of samples with very different numbers of targets, one of them without any."""
    generator = torch.Generator().manual_seed(7)
    windows = []
    for _ in range(steps):
        ids = torch.randint(VOCABULARY, (samples, LENGTH), generator=generator)
        labels = torch.randint(VOCABULARY, (samples, LENGTH), generator=generator)
        for row in range(samples):
            labels[row, (row * 5) % (LENGTH + 1) :] = -100
        windows.append((ids, labels))
    return windows


def window(ids: Tensor, labels: Tensor, micro_batch_size: int) -> Window:
    pieces = [
        MicroBatch(
            {"input_ids": i, "labels": t}, int((t != -100).sum()), list(range(n, n + len(i)))
        )
        for n, i, t in zip(
            range(0, len(ids), micro_batch_size),
            torch.split(ids, micro_batch_size),
            torch.split(labels, micro_batch_size),
            strict=True,
        )
    ]
    return Window(pieces, len(ids), int((labels != -100).sum()))


def trajectory(micro_batch_size: int, clipping: Clipping) -> tuple[list[float], list[Tensor]]:
    torch.manual_seed(0)
    under_test = engine(Toy(), clipping=clipping)
    losses = []
    for ids, labels in ragged(12, 8):
        losses.append(under_test.forward_backward(window(ids, labels, micro_batch_size)).item())
        under_test.update(1e-2)
    return losses, [p.detach().clone() for p in under_test.module.parameters()]


@pytest.mark.parametrize(
    "clipping", [Clipping(None, None), Clipping(0.3, None), Clipping(0.3, 0.02)]
)
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_any_cut_of_a_ragged_window_is_the_whole_window(
    micro_batch_size: int, clipping: Clipping
) -> None:
    losses, weights = trajectory(8, clipping)
    cut_losses, cut_weights = trajectory(micro_batch_size, clipping)
    assert cut_losses == pytest.approx(losses, abs=1e-6, rel=0)
    for cut, whole in zip(cut_weights, weights, strict=True):
        torch.testing.assert_close(cut, whole, atol=1e-6, rtol=0)


def test_is_bitwise_the_loop_that_a_careful_person_writes() -> None:
    torch.manual_seed(0)
    module = Toy()
    by_hand = copy.deepcopy(module)
    decay = [p for n, p in by_hand.named_parameters() if "norm" not in n and "bias" not in n]
    rest = [p for n, p in by_hand.named_parameters() if "norm" in n or "bias" in n]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        fused=True,
    )
    under_test = engine(module)
    for ids, labels in ragged(6, 8):
        batch = window(ids, labels, 8)
        loss = summed_loss(by_hand, batch.micro_batches[0].inputs) / batch.num_targets
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert under_test.forward_backward(batch).item() == loss.item()
        stats = under_test.update(1e-2)
        # The norm adds the parameters in another order: groups come before names.
        assert stats.grad_norm.item() == pytest.approx(norm.item(), rel=1e-6)
    for ours, theirs in zip(module.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=0)


@pytest.mark.parametrize("skip", [False, True])
def test_a_non_finite_loss_leaves_everything_alone(skip: bool) -> None:
    torch.manual_seed(0)
    under_test = engine(Toy(), skip=skip)
    ids, labels = ragged(1, 8)[0]
    under_test.forward_backward(window(ids, labels, 4))
    under_test.update(1e-2)
    with torch.no_grad():
        under_test.module.get_parameter("embed.weight")[3] = float("nan")
    before = {k: v.clone() for k, v in tensors(under_test).items()}
    ids[:4] = 1
    ids[6] = 3  # only the second micro-batch meets the poisoned row
    under_test.forward_backward(window(ids, labels, 4))
    if skip:
        assert not under_test.update(1e-2).applied
    else:
        with pytest.raises(NonFinite, match="loss is nan") as caught:
            under_test.update(1e-2)
        assert caught.value.indices == (4, 5, 6, 7)
    for key, tensor in tensors(under_test).items():
        torch.testing.assert_close(tensor, before[key], atol=0, rtol=0, equal_nan=True)
    assert all(p.grad is None for p in under_test.module.parameters())


def test_a_non_finite_gradient_is_named() -> None:
    torch.manual_seed(0)
    module = Toy()
    under_test = engine(module)
    ids, labels = ragged(1, 8)[0]
    under_test.forward_backward(window(ids, labels, 8))
    gradient = module.hidden.weight.grad
    assert gradient is not None
    gradient[0, 0] = float("inf")
    with pytest.raises(NonFinite, match=r"hidden\.weight"):
        under_test.update(1e-2)


def test_state_moves_to_a_fresh_engine_bitwise() -> None:
    torch.manual_seed(0)
    first = engine(Toy())
    batches = [window(ids, labels, 4) for ids, labels in ragged(6, 8)]
    for batch in batches[:3]:
        first.forward_backward(batch)
        first.update(1e-2)
    saved = {k: v.clone() for k, v in tensors(first).items()}
    torch.manual_seed(1)
    second = engine(Toy())
    assert second.state().keys() == saved.keys()
    second.load_state(saved)
    for batch in batches[3:]:
        assert first.forward_backward(batch).item() == second.forward_backward(batch).item()
        first.update(1e-2)
        second.update(1e-2)
    for ours, theirs in zip(tensors(first).values(), tensors(second).values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "optimizer"])
def test_loading_is_strict(change: str) -> None:
    under_test = engine(Toy())
    state = {k: v.clone() for k, v in tensors(under_test).items()}
    if change == "missing":
        del state["model.head.weight"]
    elif change == "unexpected":
        state["model.other"] = torch.zeros(1)
    elif change == "shape":
        state["model.head.weight"] = torch.zeros(2, 2)
    else:
        del state["optimizer.head.weight.exp_avg"]
    with pytest.raises(CheckpointError, match="another"):
        under_test.load_state(state)


def test_evaluation_is_the_loss_without_traces() -> None:
    torch.manual_seed(0)
    under_test = engine(Toy())
    ids, labels = ragged(1, 8)[0]
    batch = window(ids, labels, 8)
    mean = under_test.forward_backward(batch)
    halves = window(ids, labels, 4).micro_batches
    assert mean_loss(under_test, halves) == pytest.approx(mean.item(), rel=1e-6)
    assert under_test.update(0.0).applied
    assert list(under_test.evaluate([], LogitsTask("ids", "input_ids").predict)) == []


def test_lr_scale_moves_a_group() -> None:
    torch.manual_seed(0)
    module = Toy()
    by_hand = copy.deepcopy(module)
    under_test = engine(module, optimizer=scaled("^head", 0.5), clipping=Clipping(None, None))
    ids, labels = ragged(1, 8)[0]
    batch = window(ids, labels, 8)
    loss = summed_loss(by_hand, batch.micro_batches[0].inputs) / batch.num_targets
    loss.backward()  # type: ignore[no-untyped-call]
    under_test.forward_backward(batch)
    under_test.update(0.1)
    for name, lr in {"head.weight": 0.05, "hidden.weight": 0.1}.items():
        start = by_hand.get_parameter(name)
        assert start.grad is not None
        torch.testing.assert_close(module.get_parameter(name), start - lr * start.grad)


def test_bf16_keeps_float32_master_weights() -> None:
    torch.manual_seed(0)
    module = Toy()
    under_test = engine(module, precision=precision_option("bf16"))
    ids, labels = ragged(1, 8)[0]
    loss = under_test.forward_backward(window(ids, labels, 8))
    under_test.update(1e-2)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    exact = engine(copy.deepcopy(module)).forward_backward(window(ids, labels, 8))
    assert loss.item() != exact.item()


@pytest.mark.parametrize("end", ["closed", "kept"])
def test_an_evaluation_that_is_abandoned_leaves_no_trace(end: str) -> None:
    torch.manual_seed(0)
    under_test = engine(Toy())
    ids, labels = ragged(1, 64)[0]
    pieces = window(ids, labels, 1).micro_batches
    evaluation = under_test.evaluate(pieces, LogitsTask("ids", "input_ids").predict)
    next(iter(evaluation))
    assert not under_test.module.training
    if end == "closed":
        assert isinstance(evaluation, Generator)
        evaluation.close()
        assert under_test.module.training
    # Whoever keeps the iterator: the next step ends the evaluation.
    under_test.forward_backward(window(ids, labels, 64))
    assert under_test.module.training
    assert torch.is_grad_enabled()
    assert all(p.grad is not None for p in under_test.module.parameters())
    assert list(evaluation) == []


def test_a_load_takes_no_second_step_for_what_has_no_state() -> None:
    # Not the fused one: torch calls the hooks of a subclass twice.
    plain = optimizer_option("sgd", momentum=0.0, nesterov=False, implementation="loop")
    under_test = engine(Toy(), optimizer=plain)
    steps: list[int] = []
    under_test.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    saved = {name: value.clone() for name, value in tensors(under_test).items()}
    assert not any(name.startswith("optimizer.") for name in saved)
    under_test.load_state(saved)
    assert len(steps) == 1


def test_loaded_weights_are_those_that_were_saved() -> None:
    """An optimizer with a rate of its own would move them in the step that makes its state."""
    words = ["optimizer=adafactor", "optimizer.weight_decay=0.1"]
    option = load_config(words).config.optimizer
    torch.manual_seed(0)
    first = engine(Toy(), optimizer=option)
    ids, labels = ragged(1, 8)[0]
    first.forward_backward(window(ids, labels, 8))
    first.update(None)
    saved = {name: value.clone() for name, value in tensors(first).items()}
    second = engine(Toy(), optimizer=option)
    second.load_state(saved)
    for name, value in tensors(second).items():
        assert torch.equal(value, saved[name]), name
