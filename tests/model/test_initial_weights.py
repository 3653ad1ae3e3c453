"""Initial weights: the same for every way of building the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from typing_extensions import override

from launcher.model._initial_weights import initialize_weights

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
}


def llama(**changes: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, **changes))


def tied_llama() -> Any:
    return llama(tie_word_embeddings=True)


def scaled_rope_llama() -> Any:
    rope = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 10}
    return llama(rope_parameters=rope)


def gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=20)
    )


def masked_bert() -> Any:
    return BertForMaskedLM(BertConfig(**SIZES))


def classifying_bert() -> Any:
    return BertForSequenceClassification(BertConfig(**SIZES, num_labels=3))


def t5(**changes: Any) -> Any:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, **changes)
    )


def untied_t5() -> Any:
    return t5(tie_word_embeddings=False)


def mixtral() -> Any:
    return MixtralForCausalLM(
        MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2)
    )


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 4, 2),
        nn.BatchNorm1d(4),
        nn.LSTM(5, 6),
        nn.MultiheadAttention(8, 2),
        nn.TransformerEncoderLayer(8, 2, 16),
        nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 4), nn.LayerNorm(4)),
    )


FAMILIES = [
    llama, tied_llama, scaled_rope_llama, gpt2, masked_bert, classifying_bert, t5, untied_t5,
    mixtral, plain,
]  # fmt: skip
Make = Callable[[], nn.Module]


def on_meta(make: Make) -> nn.Module:
    with torch.device("meta"):
        return make()


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def drawn(make: Make, seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    module = on_meta(make)
    initialize_weights(module, seed, **changes)
    return tensors(module)


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("make", FAMILIES)
def test_a_meta_module_and_a_module_with_memory_get_equal_weights(make: Make) -> None:
    torch.manual_seed(99)
    built = make()
    initialize_weights(built, 0, overwrite=True)
    assert_equal(drawn(make), tensors(built))


@pytest.mark.parametrize("make", FAMILIES)
def test_the_seed_decides_and_the_global_generator_does_not(make: Make) -> None:
    torch.manual_seed(1)
    first = drawn(make, 7)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert_equal(drawn(make, 7), first)
    assert torch.equal(torch.get_rng_state(), state)
    other = drawn(make, 8)
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


@pytest.mark.parametrize("make", FAMILIES)
def test_the_distributions_and_constants_are_those_of_the_library(make: Make) -> None:
    torch.manual_seed(0)
    theirs, ours = tensors(make()), drawn(make)
    assert theirs.keys() == ours.keys()
    for name, expected in theirs.items():
        found = ours[name]
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert found.requires_grad == expected.requires_grad
        if expected.numel() < 100 and expected.is_floating_point() and expected.std() > 0:
            continue  # too few numbers to compare distributions
        if expected.is_floating_point() and expected.std() > 0 and "inv_freq" not in name:
            assert found.std().item() == pytest.approx(expected.std().item(), rel=0.35), name
            assert not torch.equal(found, expected), name
        else:
            assert torch.equal(found, expected), name


@pytest.mark.parametrize("make", FAMILIES)
def test_a_submodule_can_be_initialized_without_the_others(make: Make) -> None:
    whole = drawn(make)
    for child in [name for name, _ in on_meta(make).named_modules()][::7]:
        module = on_meta(make)
        initialize_weights(module, 0, only=[child])
        for name, tensor in tensors(module).items():
            if not child or name.startswith(f"{child}."):
                assert torch.equal(tensor, whole[name]), (child, name)
            else:
                tied = any(t is tensor and n.startswith(f"{child}.") for n, t in all_names(module))
                assert tensor.is_meta or tied, (child, name)


def all_names(module: nn.Module) -> list[tuple[str, Tensor]]:
    return list(module.named_parameters(remove_duplicate=False))


@pytest.mark.parametrize("make", [tied_llama, gpt2, t5, masked_bert])
def test_tied_weights_stay_tied(make: Make) -> None:
    module = on_meta(make)
    before = len(all_names(module)) - len(tensors(module)) + len(list(module.buffers()))
    initialize_weights(module, 0)
    after = len(all_names(module)) - len(tensors(module)) + len(list(module.buffers()))
    assert before == after > 0


def test_the_forward_pass_is_that_of_a_module_built_with_memory() -> None:
    for make in (scaled_rope_llama, gpt2, mixtral, masked_bert):
        built: Any = make()
        initialize_weights(built, 3, overwrite=True)
        other: Any = on_meta(make)
        initialize_weights(other, 3)
        ids = torch.arange(20).view(2, 10)
        assert torch.equal(built.eval()(ids).logits, other.eval()(ids).logits)


def test_equal_layers_get_different_weights() -> None:
    found = drawn(llama)
    first, second = (found[f"model.layers.{i}.mlp.up_proj.weight"] for i in (0, 1))
    assert not torch.equal(first, second)


def test_tensors_with_memory_keep_their_values() -> None:
    module: Any = on_meta(gpt2)
    kept = torch.full((16, 16), 7.0)
    layer = module.transformer.h[0]
    # GPT-2's MLP and attention draw the weights of these children once more.
    layer.attn.c_proj.weight = nn.Parameter(kept.clone())
    initialize_weights(module, 0)
    assert torch.equal(layer.attn.c_proj.weight, kept)
    whole = drawn(gpt2)
    del whole["transformer.h.0.attn.c_proj.weight"]
    rest = tensors(module)
    del rest["transformer.h.0.attn.c_proj.weight"]
    assert_equal(rest, whole)


class Unfilled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.linear = nn.Linear(3, 3)


def test_a_tensor_that_nothing_fills_is_an_error() -> None:
    with pytest.raises(ValueError, match="meta device: scale; add a reset_parameters method"):
        initialize_weights(on_meta(Unfilled), 0)
    module = Unfilled()
    initialize_weights(module, 0)
    assert torch.equal(module.scale, torch.ones(3))


class Orthogonal(nn.Linear):
    @override
    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight)
        with torch.no_grad():
            self.bias.copy_(torch.randn(self.out_features))


def test_numbers_that_are_drawn_elsewhere_and_copied_belong_to_the_module() -> None:
    def make() -> nn.Module:
        return nn.Sequential(Orthogonal(4, 4), Orthogonal(4, 4))

    found = drawn(make)
    assert not torch.equal(found["0.weight"], found["1.weight"])
    assert not torch.equal(found["0.bias"], found["1.bias"])
    module = on_meta(make)
    initialize_weights(module, 0, only=["1"])
    assert torch.equal(module.get_parameter("1.bias"), found["1.bias"])
    assert torch.equal(module.get_parameter("1.weight"), found["1.weight"])
