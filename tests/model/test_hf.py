from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetLMHeadModel,
)

from launcher.config.load import load_config
from launcher.contracts import Head, ModelLimits
from launcher.errors import ConfigError, DataError
from launcher.model import build_module, cast_parameters
from launcher.model._network import auxiliary_losses
from launcher.model._tokenizers import ByteTokenizer
from launcher.model.hf import HuggingFace
from tests.networks import small_llama

CAUSAL_LM = Head("causal_lm")
EMBEDDING = "model.embed_tokens.weight"


def hf(folder: Path, **changes: Any) -> HuggingFace:
    values = {
        "kind": "hf",
        "path": str(folder),
        "init": "pretrained",
        "tokenizer": None,
        "attention": "auto",
    }
    return HuggingFace.model_validate_json(json.dumps({**values, **changes}))


def small_gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=384, n_embd=16, n_layer=1, n_head=2, n_positions=50)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    small_llama().save_pretrained(path)
    ByteTokenizer().save(path)
    return path


@pytest.mark.parametrize("make", [small_llama, small_gpt2])
def test_pretrained_weights_are_loaded_in_float32(tmp_path: Path, make: Callable[[], Any]) -> None:
    saved = make().to(torch.bfloat16)
    saved.save_pretrained(tmp_path)
    ByteTokenizer().save(tmp_path)
    option = hf(tmp_path)
    option.preflight()
    loaded = option.build(CAUSAL_LM, "cpu")
    assert loaded.training
    theirs = saved.float().state_dict()
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, theirs[name])
    assert option.limits() == ModelLimits(vocab_size=384, max_positions=50)
    assert option.build_tokenizer().vocab_size == 384


def test_embeddings_saved_tied_are_loaded_tied(tmp_path: Path) -> None:
    small_llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    loaded: Any = hf(tmp_path, tokenizer="byt5").build(CAUSAL_LM, "cpu")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_random_weights_come_from_the_seed(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "bfloat16"}))
    option = hf(folder, init="random")
    option.preflight()
    first, second, other = (build_module(option, CAUSAL_LM, seed) for seed in (3, 3, 4))
    assert first.training
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)
    assert not torch.equal(first.get_parameter(EMBEDDING), other.get_parameter(EMBEDDING))


def test_the_meta_device_loads_nothing(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert all(p.is_meta for p in hf(folder).build(CAUSAL_LM, "meta").parameters())


def test_only_the_weights_of_a_new_head_are_drawn(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = Head("sequence_classification", ("bad", "good"))
    with caplog.at_level(logging.WARNING):
        first, second = (build_module(hf(folder), head, seed) for seed in (0, 1))
    assert "no weights of a sequence_classification head; drawn: score.weight" in caplog.text
    saved = load_file(folder / "model.safetensors")
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]) == (name != "score.weight"), name
        assert name == "score.weight" or torch.equal(value, saved[name]), name
    assert first.training


def encoders() -> dict[str, Any]:
    sizes = {"vocab_size": 384, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    common = {**sizes, "num_attention_heads": 2}
    xlnet = XLNetConfig(vocab_size=384, d_model=16, n_layer=2, n_head=2, d_inner=32)
    return {
        "bert": BertForMaskedLM(BertConfig(**common)),
        "roberta": RobertaForMaskedLM(RobertaConfig(**common)),
        # No masked language model, but it looks ahead where no permutation forbids it.
        "xlnet": XLNetLMHeadModel(xlnet),
    }


@pytest.mark.parametrize("init", ["pretrained", "random"])
@pytest.mark.parametrize("name", ["bert", "roberta", "xlnet"])
def test_a_model_that_sees_later_tokens_is_refused(tmp_path: Path, name: str, init: str) -> None:
    encoders()[name].save_pretrained(tmp_path)
    option = hf(tmp_path, init=init, tokenizer="byt5")
    with pytest.raises(DataError, match=r"a token sees those after it, .* set is_decoder to true"):
        build_module(option, CAUSAL_LM, 0)
    if name == "bert":
        build_module(option, Head("masked_lm"), 0)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_an_encoder_with_is_decoder_sees_earlier_tokens_only(tmp_path: Path, name: str) -> None:
    encoders()[name].save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "is_decoder": True}))
    module: Any = build_module(hf(tmp_path, tokenizer="byt5"), CAUSAL_LM, 0).eval()
    ids = torch.randint(0, 384, (1, 9))
    changed = ids.clone()
    changed[0, 5] = (ids[0, 5] + 1) % 384
    before, after = module(ids).logits, module(changed).logits
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def small_t5() -> Any:
    config = T5Config(vocab_size=384, d_model=16, d_ff=32, num_layers=1, num_heads=2, d_kv=8)
    return T5ForConditionalGeneration(config)


def small_mixtral(**changes: Any) -> Any:
    sizes = {"vocab_size": 384, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads, **changes))


@pytest.mark.parametrize("make", [small_llama, small_gpt2, small_mixtral])
def test_a_decoder_passes_and_nothing_outside_is_touched(
    tmp_path: Path, make: Callable[[], Any]
) -> None:
    make().save_pretrained(tmp_path)
    before = torch.get_rng_state()
    module = build_module(hf(tmp_path, tokenizer="byt5"), CAUSAL_LM, 0)
    assert module.training
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_router_loss_is_weighted_as_transformers_does(tmp_path: Path) -> None:
    ids = torch.randint(0, 384, (2, 9))
    for asked in (True, False):
        small_mixtral(output_router_logits=asked, router_aux_loss_coef=0.3).save_pretrained(
            tmp_path
        )
        option = hf(tmp_path, tokenizer="byt5")
        module: Any = build_module(option, CAUSAL_LM, 0).eval()
        found = option.auxiliary_losses(module, module(ids))
        assert set(found) == ({"router_aux_loss"} if asked else set())
        theirs = module(ids, labels=ids).loss
        plain = module(ids, labels=ids, output_router_logits=False).loss
        torch.testing.assert_close(plain + sum(found.values()), theirs)
        assert not asked or found["router_aux_loss"] > 0.1


def test_the_z_loss_is_weighted_as_transformers_does() -> None:
    config = BambaConfig(
        vocab_size=384,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        attn_layer_indices=[0],
        mamba_n_heads=4,
        mamba_d_head=8,
        z_loss_coefficient=0.1,
    )
    module: Any = BambaForCausalLM(config).eval()
    ids = torch.randint(0, 384, (2, 9))
    outputs = module(ids, labels=ids)
    [(name, z_loss)] = auxiliary_losses(module, outputs).items()
    assert name == "z_loss"
    module.z_loss_coefficient = 0.0
    torch.testing.assert_close(module(ids, labels=ids).loss + z_loss, outputs.loss)


@pytest.mark.parametrize(
    ("dtype", "init", "expected"),
    [
        (torch.bfloat16, "pretrained", "bfloat16"),
        (torch.float16, "pretrained", "float16"),
        (torch.float32, "pretrained", "float32"),
        (torch.bfloat16, "random", "bfloat16"),
        (torch.float64, "pretrained", None),
        (torch.float64, "random", None),
    ],
)
def test_the_source_dtype_is_that_of_the_weights(
    tmp_path: Path, dtype: torch.dtype, init: str, expected: str | None
) -> None:
    small_llama().to(dtype).save_pretrained(tmp_path)
    assert hf(tmp_path, init=init).source_dtype() == expected


def test_parameters_are_cast_and_buffers_and_ties_stay() -> None:
    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))
            self.tied = self.weight
            self.register_buffer("mean", torch.ones(2))

    module = Small()
    cast_parameters(module, "bfloat16")
    assert module.weight is module.tied
    assert module.weight.dtype == torch.bfloat16
    assert module.get_buffer("mean").dtype == torch.float32


def test_a_format_that_cannot_hold_the_weights_is_not_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = torch.nn.Linear(2, 2)
    module.bias.data.fill_(1e5)
    cast_parameters(module, "float16")
    assert module.weight.dtype == torch.float32
    assert "bias does not fit into float16: exported as trained" in caplog.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: encoders()["bert"], r"model.path: holds an encoder \(BertForMaskedLM\)"),
        (small_t5, r"model.path: holds an encoder and a decoder \(T5ForConditionalGeneration\)"),
    ],
)
def test_an_encoder_for_a_causal_task_is_a_problem_of_the_config(
    tmp_path: Path, make: Callable[[], Any], message: str
) -> None:
    make().save_pretrained(tmp_path)
    words = ["model=hf", f"model.path={tmp_path}", "model.tokenizer=byt5", "optimizer.lr=1e-4"]
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(words)
    assert len(str(caught.value)) < 600


def test_a_head_that_the_architecture_lacks_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError, match="llama has no seq2seq head, which the task needs"):
        hf(folder).build(Head("seq2seq"), "cpu")


def test_the_tokenizer_may_come_from_elsewhere(folder: Path, bpe_folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match="no tokenizer here"):
        hf(folder).preflight()
    for name in ("byt5", str(bpe_folder)):
        option = hf(folder, tokenizer=name)
        option.preflight()
        option.build_tokenizer()


def drop_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.norm.weight"]
    save_file(weights, path, {"format": "pt"})


def add_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), "extra": torch.ones(1)}, path, {"format": "pt"})


def reshape_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), "model.norm.weight": torch.ones(3)}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_weight, r"1 missing \(such as model.norm.weight\)"),
        (add_weight, r"1 unexpected \(such as extra\)"),
        (reshape_weight, r"1 of another shape \(such as .*model.norm.weight"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99),
            "is truncated or not",
        ),
    ],
)
def test_weights_that_do_not_fit_are_an_error(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message):
        hf(folder).build(CAUSAL_LM, "cpu")


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def remote_code(folder: Path) -> None:
    config = {"model_type": "mine", "vocab_size": 384, "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('code of the folder was run')")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pickle_weights, r"the weights are pickled \(pytorch_model.bin\)"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"no \*.safetensors file"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: is not JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "no vocab_size"),
        (lambda folder: folder.rename(folder.with_name("gone")), "there is no such folder"),
    ],
)
def test_preflight_names_what_is_wrong(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message):
        hf(folder).preflight()


def test_preflight_names_a_file_in_the_folders_place(folder: Path) -> None:
    with pytest.raises(DataError, match="is a file, not a folder"):
        hf(folder / "config.json").preflight()


def test_no_code_of_the_folder_is_run(folder: Path) -> None:
    remote_code(folder)
    for init in ("random", "pretrained"):
        with pytest.raises(DataError, match="no model can be built"):
            hf(folder, init=init).build(CAUSAL_LM, "cpu")


@pytest.mark.parametrize(
    ("config", "limits"),
    [
        ({"vocab_size": 9, "n_positions": 4}, ModelLimits(9, 4)),
        ({"vocab_size": 9}, ModelLimits(9, None)),
        (
            {"text_config": {"vocab_size": 9, "max_position_embeddings": 7}},
            ModelLimits(9, 7),
        ),
    ],
)
def test_limits_are_read_from_configs_of_several_forms(
    tmp_path: Path, config: dict[str, Any], limits: ModelLimits
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert hf(tmp_path).limits() == limits
