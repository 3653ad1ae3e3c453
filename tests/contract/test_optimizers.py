"""Contract of every kind of optimizer; a new kind is tested as soon as its file exists."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from launcher import registry
from launcher.config import load
from launcher.contracts import OptimizerOption, OptimizerTarget
from launcher.errors import ConfigError
from launcher.parallelism._optimizer_state import (
    load_optimizer,
    optimizer_template,
    optimizer_tensors,
)

CONF = Path(__file__).parent.parent.parent / "conf" / "optimizer"
PRESETS = sorted(path.stem for path in CONF.glob("[!_]*.yaml"))
KINDS = registry.kinds("optimizer")
# 64 × 64 elements: where 8-bit state begins.
DIM = 64


class Network(nn.Module):
    """A model with an embedding, blocks of matrices and vectors, and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, DIM)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"dense": nn.Linear(DIM, DIM), "norm": nn.LayerNorm(DIM)})
            for _ in range(2)
        )
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.head = nn.Linear(DIM, 16, bias=False)
        self.head.weight = self.embed.weight


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network()


@cache
def packaged(preset: str) -> OptimizerOption:
    """Compose the preset, with a schedule that it accepts."""
    words = [f"optimizer={preset}", "max_grad_norm=null"]
    try:
        return load.load_config([*words, "scheduler=constant"]).config.optimizer
    except ConfigError:
        return load.load_config([*words, "scheduler=adafactor"]).config.optimizer


def with_groups(option: OptimizerOption, **changes: Any) -> OptimizerOption:
    values = option.model_dump(mode="json")
    values["groups"] |= changes
    return type(option).model_validate_json(json.dumps(values))


def build(option: OptimizerOption, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer on the CPU; skips where it needs what this machine has not."""
    try:
        option.preflight()
        return option.build(OptimizerTarget(module, "cpu"))
    except ConfigError as error:
        if "needs the package" in str(error) or "on CUDA only" in str(error):
            pytest.skip(str(error.problems[0]))
        raise


def distance(module: nn.Module) -> Tensor:
    """A quadratic whose minimum is at 0.5 for every element, curved differently in each."""
    terms = []
    for param in module.parameters():
        curvature = torch.linspace(0.5, 1.5, param.numel()).reshape(param.shape)
        terms.append((curvature.to(param.device) * (param.float() - 0.5) ** 2).sum().cpu())
    # Gentle enough for plain gradient descent at rates that suit a mean over tokens.
    return 0.1 * torch.stack(terms).sum()


def take_steps(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    option: OptimizerOption,
    steps: int,
) -> list[float]:
    """Steps as an engine takes them; the losses before each."""
    losses = []
    for _ in range(steps):
        loss = distance(module)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            if option.lr is not None:
                group["lr"] = option.lr * group["lr_scale"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def copies(module: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in module.parameters()]


@pytest.mark.parametrize("preset", PRESETS)
def test_yaml_validates(preset: str) -> None:
    assert packaged(preset).kind in KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_has_a_preset_of_its_name(kind: str) -> None:
    assert packaged(kind).kind == kind


@pytest.mark.parametrize("preset", PRESETS)
def test_falls_on_a_quadratic(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = network()
    optimizer = build(packaged(preset), module)
    losses = take_steps(module, optimizer, packaged(preset), 12)
    assert losses[-1] < losses[0]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("preset", PRESETS)
def test_groups_carry_name_and_scale(preset: str) -> None:
    optimizer = build(packaged(preset), network())
    for group in optimizer.param_groups:
        assert group["params"]
        assert isinstance(group["name"], str)
        assert group["lr_scale"] > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_is_deterministic(preset: str) -> None:
    results = []
    for noise in (1, 2):
        module = network()
        optimizer = build(packaged(preset), module)
        torch.manual_seed(noise)
        take_steps(module, optimizer, packaged(preset), 4)
        results.append(copies(module))
    assert same(*results)


@pytest.mark.parametrize("preset", PRESETS)
def test_state_round_trips_bitwise_by_name(preset: str) -> None:
    option = packaged(preset)
    module = network()
    optimizer = build(option, module)
    take_steps(module, optimizer, option, 3)
    names: dict[Tensor, str] = {param: name for name, param in module.named_parameters()}
    weights = copies(module)
    saved = {k: v.detach().clone() for k, v in optimizer_tensors(optimizer, names).items()}
    assert all(type(value) in {Tensor, nn.Parameter} for value in saved.values())
    take_steps(module, optimizer, option, 3)

    other = network(seed=1)
    fresh = build(option, other)
    named: dict[Tensor, str] = {param: name for name, param in other.named_parameters()}
    layout = {k: (v.shape, v.dtype) for k, v in optimizer_template(fresh, named).items()}
    assert layout == {k: (v.shape, v.dtype) for k, v in saved.items()}
    with torch.no_grad():
        for param, weight in zip(other.parameters(), weights, strict=True):
            param.copy_(weight)
    load_optimizer(fresh, named, saved)
    take_steps(other, fresh, option, 3)
    assert same(copies(module), copies(other))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_copy_goes_on_like_the_original(preset: str) -> None:
    option = packaged(preset)
    module = network()
    optimizer = build(option, module)
    take_steps(module, optimizer, option, 2)
    pair = (module, optimizer)
    others = [copy.deepcopy(pair)]
    if not preset.endswith("bit"):  # The libraries' classes with few bits are made when built.
        buffer = io.BytesIO()
        torch.save(pair, buffer)
        buffer.seek(0)
        others.append(torch.load(buffer, weights_only=False))
    take_steps(module, optimizer, option, 3)
    for other, copied in others:
        take_steps(other, copied, option, 3)
        assert same(copies(module), copies(other))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_later_group_is_stepped_or_refused(preset: str) -> None:
    optimizer = build(packaged(preset), network())
    late = nn.Parameter(torch.ones(DIM, DIM))
    values = {"lr": optimizer.param_groups[0]["lr"], "name": "late", "lr_scale": 1.0}
    groups = len(optimizer.param_groups)
    try:
        optimizer.add_param_group({"params": [late], **values})
    except RuntimeError as error:
        assert "build a new one" in str(error)  # noqa: PT017 - either is right
        assert len(optimizer.param_groups) == groups
        return
    for _ in range(5):
        late.grad = torch.ones(DIM, DIM)
        optimizer.step()
    assert not torch.equal(late.detach(), torch.ones(DIM, DIM))


@pytest.mark.parametrize("preset", PRESETS)
def test_steps_next_to_an_empty_parameter(preset: str) -> None:
    module = network()
    module.blocks[0].register_parameter("empty", nn.Parameter(torch.empty(0, DIM)))
    optimizer = build(packaged(preset), module)
    losses = take_steps(module, optimizer, packaged(preset), 12)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_leaves_frozen_parameters_and_those_without_gradient_alone(preset: str) -> None:
    option = with_groups(packaged(preset), frozen=[r"blocks\.0\.dense\.bias"])
    module = network()
    before = {name: param.detach().clone() for name, param in module.named_parameters()}
    optimizer = build(option, module)
    # Some only measure at first: SOAP for one step, the rectified for four.
    for _ in range(5):
        distance(module).backward()  # type: ignore[no-untyped-call]
        module.temperature.grad = None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    after = dict(module.named_parameters())
    assert not after["blocks.0.dense.bias"].requires_grad
    for name in ("blocks.0.dense.bias", "temperature"):
        assert torch.equal(after[name].detach(), before[name])
    assert not torch.equal(after["blocks.1.dense.weight"].detach(), before["blocks.1.dense.weight"])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "half",
    [torch.bfloat16, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)],
    ids=["dtypes", "devices"],
)
def test_steps_on_mixed(preset: str, half: torch.dtype | torch.device) -> None:
    module = network()
    module.blocks[0].to(half)
    optimizer = build(packaged(preset), module)
    before = copies(module)
    take_steps(module, optimizer, packaged(preset), 12)
    for param, old in zip(module.parameters(), before, strict=True):
        assert (param.dtype, param.device) == (old.dtype, old.device)
        assert torch.isfinite(param).all()
    assert distance(module) < distance_of(before, module)


def distance_of(values: Sequence[Tensor], module: nn.Module) -> Tensor:
    """The quadratic at other values of the parameters."""
    now = copies(module)
    with torch.no_grad():
        for param, value in zip(module.parameters(), values, strict=True):
            param.copy_(value)
        result = distance(module).detach()
        for param, value in zip(module.parameters(), now, strict=True):
            param.copy_(value)
    return result
