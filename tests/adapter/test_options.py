"""Refusals of adapters, and the check that each tensor is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from launcher.config.load import load_config
from launcher.contracts import UNSHARDED, Head, canonical_name
from launcher.errors import ConfigError
from launcher.parallelism._gradient_check import GradientCheck
from tests.networks import small_llama


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(list(words))
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("adapter=dora", "adapter.init=pissa"), "adapter.init: must be kaiming"),
        (("adapter=qlora", "adapter.init=olora"), "changes the frozen matrices"),
        (("adapter=lora", "adapter.lr_ratio=4", "optimizer=adafactor"), "adapter.lr_ratio"),
        (
            ("adapter=qlora", "parallelism=fsdp", "launch.processes=2"),
            "cannot shard the 4-bit weights",
        ),
        (
            (
                "adapter=lora",
                "adapter.base_dtype=bfloat16",
                "parallelism=zero1",
                "launch.processes=2",
            ),
            "adapter.base_dtype: must be null",
        ),
    ],
)
def test_combinations_that_cannot_work_are_refused(words: tuple[str, ...], reason: str) -> None:
    assert reason in refused(*words)


def adapt(module: nn.Module, *words: str) -> Any:
    option = load_config(["adapter=lora", *words]).config.adapter
    return option.adapt(module, Head("causal_lm"), 0)


def test_a_pattern_must_match_a_module() -> None:
    with pytest.raises(
        ConfigError, match=r"adapter\.targets\.1: 'q_porj' matches no module.*q_proj"
    ):
        adapt(small_llama(), "adapter.targets=[v_proj,q_porj]")
    with pytest.raises(ConfigError, match="leaves no module"):
        adapt(small_llama(), "adapter.targets=[v_proj]", "adapter.exclude=[self_attn]")


def test_tied_weights_are_refused_as_targets() -> None:
    tied = small_llama(tie_word_embeddings=True)
    with pytest.raises(ConfigError, match=r"lm_head shares its weights with .*embed_tokens"):
        adapt(tied, "adapter.modules_to_save=[lm_head]")


def test_names_are_those_of_the_network() -> None:
    module = small_llama()
    before = {name for name, _ in module.named_parameters()}
    made = adapt(module, "adapter.targets=[q_proj]", "adapter.modules_to_save=[norm$]")
    after = {canonical_name(name): param for name, param in module.named_parameters()}
    assert "model.layers.0.self_attn.q_proj.weight" in before & after.keys()
    assert set(made.trained) == {name for name, param in after.items() if param.requires_grad}
    assert "model.layers.0.self_attn.q_proj.lora_A.weight" in made.trained
    assert sorted(made.saved) == sorted(made.trained)


def test_the_meta_device_has_the_same_names_and_formats() -> None:
    with torch.device("meta"):
        plain, quantized = small_llama(), small_llama()
    made = adapt(plain, "adapter.base_dtype=bfloat16")
    assert all(param.is_meta for param in plain.parameters())
    assert made.trained == adapt(small_llama()).trained
    assert made.stored_bytes["lm_head.weight"] == 2 * 384 * 16
    four_bit = adapt(quantized, "adapter=qlora", "adapter.double_quant=false")
    assert four_bit.stored_bytes["model.layers.0.self_attn.q_proj.weight"] == 128 + 4 * 4


def check(gradients: Sequence[Sequence[float | None]], lrs: list[float]) -> None:
    """Give two parameters these gradients, step by step."""
    params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    names: Any = {params[0]: "a.lora_A.weight", params[1]: "a.lora_B.weight"}
    checking = GradientCheck(names.values(), UNSHARDED)
    for step, lr in zip(gradients, lrs, strict=True):
        for param, value in zip(params, step, strict=True):
            param.grad = None if value is None else torch.full((2,), value)
        checking(params, names, lr)


def test_each_tensor_must_have_a_gradient_in_the_first_updates() -> None:
    # The first matrix has one when the second is no longer zero.
    check([[0.0, 1.0], [0.0, 1.0], [0.5, 0.0]], [1.0, 1.0, 1.0])
    for idle in (0.0, None):
        with pytest.raises(ConfigError, match=r"1 of 2 tensors.*3 updates: a\.lora_A\.weight"):
            check([[idle, 1.0]] * 3, [1.0] * 3)
    # Nothing changes in steps with a learning rate of zero.
    check([[0.0, 1.0]] * 2 + [[0.0, 1.0]] * 2 + [[1.0, 1.0]], [0.0, 0.0, 1.0, 1.0, 1.0])
