"""Choice of implementations and libraries, and the errors for missing or unsupported ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from launcher.contracts import OptimizerOption, OptimizerTarget
from launcher.errors import ConfigError
from launcher.optimizer._torch.implementation import choose

Build = Callable[..., OptimizerOption]


def test_a_missing_library_names_the_package_that_brings_it(
    build_option: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    soap = build_option("soap")
    monkeypatch.setattr(type(soap), "package", ("no_such_library", "no-such-library"))
    with pytest.raises(ConfigError, match=r"soap needs the package .*: pip install no-"):
        soap.preflight()


def test_a_missing_8bit_library_names_the_extra_that_brings_it(
    build_option: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    lion = build_option("lion_8bit")
    monkeypatch.setattr(type(lion), "classes", {"no_such_library": "Lion8bit"})
    with pytest.raises(ConfigError, match=r"pip install 'trainctl\[8bit\]'"):
        lion.preflight()


def groups(dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.zeros(2, dtype=dtype))]}]


@pytest.mark.parametrize(
    ("configured", "device", "kwargs", "chosen", "logged"),
    [
        ("auto", "cpu", {}, "fused", "one kernel per group on cpu"),
        ("auto", "cuda", {}, "fused", "one kernel per group on cuda"),
        (
            "auto",
            "cuda",
            {"fused": frozenset({"cpu"})},
            "foreach",
            "does not work with device cuda",
        ),
        ("auto", "vulkan", {}, "loop", "foreach is not faster on vulkan"),
        ("loop", "cpu", {}, "loop", "as configured"),
        ("foreach", "cpu", {}, "foreach", "as configured"),
    ],
)
def test_the_implementation_is_chosen_by_device_and_logged(
    caplog: pytest.LogCaptureFixture,
    configured: Any,
    device: str,
    kwargs: dict[str, Any],
    chosen: str,
    logged: str,
) -> None:
    with caplog.at_level(logging.INFO, logger="trainctl.optimizer"):
        flags = choose(configured, groups(), device, kind="adamw", **kwargs)
    assert flags == {"fused": chosen == "fused", "foreach": chosen == "foreach"}
    assert f"adamw: {chosen} implementation" in caplog.text
    assert logged in caplog.text


@pytest.mark.parametrize(("device", "dtype"), [("vulkan", torch.float32), ("cpu", torch.complex64)])
def test_fused_where_there_is_none_is_an_error(device: str, dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match=r"fused adamw does not work with .*; use auto"):
        choose("fused", groups(dtype), device, kind="adamw")


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        (
            "adamw",
            {"bias_correction": False, "capturable": True},
            "must be false without bias",
        ),
        ("adamw", {"betas": [0.9, 1.0]}, "less than 1"),
        ("sgd", {"momentum": 0.0, "nesterov": True}, "needs momentum above 0"),
        ("sgd", {"dampening": 0.1, "nesterov": True}, "dampening 0"),
        ("adam_8bit", {"weight_decay": 0.1}, "use adamw_8bit"),
        ("paged_adamw_8bit", {"library": "torchao"}, "must be bitsandbytes for paged state"),
        ("adam_weight_decay", {"clip_norm": 1.0, "global_clip_norm": 1.0}, "set only one"),
        ("prodigy", {"groups": {"layer_decay": 0.9}}, "one learning rate"),
        (
            "prodigy",
            {"groups": {"overrides": [{"pattern": "x", "lr": 0.1}]}},
            "lr: cannot be set by group",
        ),
        ("schedule_free_adamw", {"betas": [0.0, 0.9]}, "greater than 0"),
        ("schedule_free_radam", {"betas": [0.9, 0.6]}, "greater than 0.6"),
        ("schedule_free_sgd", {"momentum": 0.0}, "greater than 0"),
    ],
)
def test_options_that_contradict_each_other(
    build_option: Build, preset: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        build_option(preset, **changes)


SCHEDULE_FREE = ["schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"]


@pytest.mark.parametrize("preset", SCHEDULE_FREE)
def test_evaluating_does_not_change_what_schedule_free_trains(
    build_option: Build, preset: str
) -> None:
    pytest.importorskip("schedulefree")
    torch.manual_seed(0)
    module = nn.Linear(8, 8)
    optimizer: Any = build_option(preset, lr=1e-2).build(OptimizerTarget(module, "cpu"))
    for _ in range(8):
        module(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = module.weight.detach().clone()
    optimizer.eval()
    optimizer.eval()
    assert not torch.equal(module.weight, trained)
    optimizer.train()
    assert torch.equal(module.weight, trained)


@pytest.mark.parametrize("preset", SCHEDULE_FREE)
def test_schedule_free_has_no_state_before_the_first_step(build_option: Build, preset: str) -> None:
    pytest.importorskip("schedulefree")
    optimizer: Any = build_option(preset).build(OptimizerTarget(nn.Linear(2, 2), "cpu"))
    optimizer.eval()
    optimizer.train()
    assert not optimizer.state


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, 64)
        self.dense = nn.Linear(64, 128)


def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for param in module.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()


def test_8bit_state_by_size_and_pattern(
    build_option: Build, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("bitsandbytes")
    module = Tables()
    option = build_option("adamw_8bit", library="bitsandbytes", keep_32bit=["embed"])
    with caplog.at_level(logging.INFO, logger="trainctl.optimizer"):
        optimizer = option.build(OptimizerTarget(module, "cpu"))
    assert "bitsandbytes (as configured); 2 of 3 parameters keep 32-bit moments" in caplog.text
    step(module, optimizer)
    dtypes = {
        name: optimizer.state[param]["state1"].dtype for name, param in module.named_parameters()
    }
    assert dtypes == {
        "embed.weight": torch.float32,
        "dense.weight": torch.uint8,
        "dense.bias": torch.float32,
    }


LOW_BIT: dict[str, str] = {
    "adam_8bit": "Adam8bit",
    "adamw_8bit": "AdamW8bit",
    "ademamix_8bit": "AdEMAMix8bit",
    "lion_8bit": "Lion8bit",
    "rmsprop_8bit": "RMSprop8bit",
    "adamw_4bit": "AdamW4bit",
}
"""Name of the class in its library."""
COMPILED = pytest.mark.slow  # torchao compiles a kernel per shape
STEPPED = [
    *[(preset, "bitsandbytes") for preset in LOW_BIT if preset != "adamw_4bit"],
    *[
        pytest.param(preset, "torchao", marks=COMPILED)
        for preset in ("adam_8bit", "adamw_8bit", "adamw_4bit")
    ],
]


def low_bit_and_its_library(
    build_option: Build, *, preset: str, library: str = "bitsandbytes"
) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters after eight steps of ours and of the library's own class."""
    classes = pytest.importorskip(f"{library}.optim")
    packaged: Any = build_option(preset)
    chosen = {"library": library, "block_size": 256} if hasattr(packaged, "library") else {}
    mixing = {"t_alpha_beta3": 6} if hasattr(packaged, "t_alpha_beta3") else {}
    option: Any = build_option(preset, **chosen, **mixing, groups={"no_decay_types": []})
    names = ("lr", "betas", "eps", "weight_decay", "alpha")
    values = {name: getattr(option, name) for name in names if hasattr(option, name)}
    if mixing:
        values |= {"t_alpha": 6, "t_beta3": 6}
    ours, theirs = Tables(), Tables()
    theirs.load_state_dict(ours.state_dict())
    own = getattr(classes, LOW_BIT[preset])
    pair = [
        (ours, option.build(OptimizerTarget(ours, "cpu"))),
        (theirs, own(theirs.parameters(), **values)),
    ]
    for seed in range(8):
        for module, optimizer in pair:
            torch.manual_seed(seed)
            for param in module.parameters():
                param.grad = torch.randn_like(param)
            optimizer.step()
    return list(ours.parameters()), list(theirs.parameters())


@pytest.mark.parametrize(("preset", "library"), STEPPED)
def test_low_bit_steps_are_the_librarys_own(build_option: Build, preset: str, library: str) -> None:
    ours, theirs = low_bit_and_its_library(build_option, preset=preset, library=library)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


class Odd(nn.Module):
    """Whole blocks, and a broken one."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Parameter(torch.zeros(32, 256))
        self.broken = nn.Parameter(torch.zeros(5001))
        self.small = nn.Parameter(torch.zeros(256))


def kept_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of moments and scales; step counts and tables of codes aside."""
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, Tensor) and "qmap" not in name and value.ndim
    )


@pytest.mark.parametrize(("preset", "library"), STEPPED)
def test_low_bit_state_is_counted_to_the_byte(
    build_option: Build, preset: str, library: str
) -> None:
    pytest.importorskip(library)
    chosen = {"library": library} if hasattr(build_option(preset), "library") else {}
    option: Any = build_option(preset, **chosen)
    module = Odd()
    optimizer = option.build(OptimizerTarget(module, "cpu"))
    step(module, optimizer)
    counted = option.state_bytes(dict(module.named_parameters()))
    assert sum(counted.values()) == kept_bytes(optimizer)


@pytest.mark.slow  # torchao compiles a kernel per shape
def test_torchao_state_is_plain_and_takes_the_same_choices(build_option: Build) -> None:
    pytest.importorskip("torchao")
    module = Tables()
    option = build_option("adamw_8bit", library="torchao", keep_32bit=["embed"], block_size=128)
    optimizer = option.build(OptimizerTarget(module, "cpu"))
    step(module, optimizer)
    step(module, optimizer)
    state = optimizer.state
    assert set(state[module.embed.weight]) == {"step", "exp_avg", "exp_avg_sq"}
    dense = state[module.dense.weight]
    assert type(dense["exp_avg.codes"]) is torch.Tensor
    assert dense["exp_avg.codes"].dtype == torch.uint8
    assert dense["exp_avg_sq.scale"].shape == (64 * 128 // 128,)
    assert all(isinstance(group["lr"], float) for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("adamw_8bit", {"library": "bitsandbytes", "block_size": 128}, "256 elements"),
        ("adamw_8bit", {"library": "bitsandbytes", "keep_32bit": ["nope"]}, "matches no parameter"),
        ("paged_adamw_8bit", {}, "on CUDA only; use optimizer=adamw_8bit"),
        ("paged_ademamix_8bit", {}, "on CUDA only; use optimizer=ademamix_8bit"),
        ("paged_lion_8bit", {}, "on CUDA only; use optimizer=lion_8bit"),
    ],
)
def test_8bit_says_what_does_not_fit(
    build_option: Build, preset: str, changes: dict[str, Any], message: str
) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ConfigError, match=message):
        build_option(preset, **changes).build(OptimizerTarget(Tables(), "cpu"))


@pytest.mark.parametrize("dampening", [0.0, 0.25])
def test_fused_momentum_of_a_late_parameter_is_that_of_a_loop(
    build_option: Build, dampening: float
) -> None:
    ends = []
    for implementation in ("fused", "loop"):
        torch.manual_seed(0)
        module = nn.Linear(8, 8)
        changes = {
            "dampening": dampening,
            "nesterov": False,
            "weight_decay": 0.1,
            "implementation": implementation,
        }
        optimizer = build_option("sgd", **changes).build(OptimizerTarget(module, "cpu"))
        for number in range(4):
            for param in module.parameters():
                late = param is module.bias and number < 2
                param.grad = None if late else torch.randn_like(param)
            optimizer.step()
        ends.append(module)
    for fused, loop in zip(*(end.parameters() for end in ends), strict=True):
        torch.testing.assert_close(fused, loop, rtol=1e-6, atol=1e-7)


def test_hooks_of_fused_sgd_run_once_a_step(build_option: Build) -> None:
    module = nn.Linear(2, 2)
    # torch adds the calls of hooks to the class of each optimizer that is built.
    torch.optim.SGD(module.parameters())
    changes = {"implementation": "fused"}
    optimizer = build_option("sgd", **changes).build(OptimizerTarget(module, "cpu"))
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step()
    assert calls == ["before", "after"]


@pytest.mark.parametrize("shape", [(6, 4), (3, 2, 4), (1, 5)])
def test_soap_merges_a_parameter_into_one_dim(build_option: Build, shape: tuple[int, ...]) -> None:
    pytest.importorskip("pytorch_optimizer")
    weight = nn.Parameter(torch.ones(shape))
    module = nn.ParameterList([weight])
    optimizer = build_option("soap", merge_dims=True).build(OptimizerTarget(module, "cpu"))
    for _ in range(3):
        weight.grad = torch.arange(1.0, weight.numel() + 1).reshape(shape)
        optimizer.step()
    assert weight.shape == shape
    assert torch.isfinite(weight).all()
    assert (weight != 1).all()
