"""Implementations of attention: the same numbers, or refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from launcher.contracts import Head
from launcher.errors import ConfigError
from launcher.model import attention_of
from launcher.model._attention import set_attention
from tests.levers import built, largest_difference, tiny, trained

HEAD = Head("causal_lm")
# The second sample ends with padding, the third begins with it.
MASK = torch.tensor([[1] * 12, [1] * 7 + [0] * 5, [0] * 4 + [1] * 8])
IDS = torch.arange(36).view(3, 12)


def network(name: str) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    set_attention(config, HEAD, name)
    torch.manual_seed(0)
    found = transformers.AutoModelForCausalLM.from_config(config)
    assert attention_of(found) == name
    return found.eval()


def logits(name: str) -> Any:
    with torch.no_grad():
        return network(name)(input_ids=IDS, attention_mask=MASK).logits[MASK == 1]


def test_padding_is_masked_in_each() -> None:
    assert torch.allclose(logits("eager"), logits("sdpa"), atol=1e-6)
    # The masked tokens have an effect without the mask.
    with torch.no_grad():
        unmasked = network("sdpa")(input_ids=IDS).logits[MASK == 1]
    assert not torch.allclose(unmasked, logits("sdpa"), atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_padding_is_masked_in_flex() -> None:
    assert torch.allclose(logits("eager"), logits("flex"), atol=1e-5)


def test_a_run_trains_the_same_with_each() -> None:
    eager, sdpa = (trained(tiny(f"model.attention={name}")) for name in ("eager", "sdpa"))
    assert largest_difference(eager, sdpa) < 1e-5


def test_the_choice_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "trainctl")
    for name in ("auto", "eager"):
        built(tiny(f"model.attention={name}")).engine.close()
    assert [m for m in caplog.messages if "attention" in m] == [
        "attention: sdpa",
        "attention: eager",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.attention=flash", "precision=bf16"], "flash needs cuda"),
        (["model.attention=flex"], "no backward pass on cpu"),
        (["model.attention=flash", "launch.device=cuda"], "computes in 16 bits"),
    ],
)
def test_what_the_device_or_precision_does_not_have_is_refused(
    words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"model.attention: .*{message}"):
        tiny(*words)


def test_what_is_not_installed_is_refused() -> None:
    option = tiny().model.model_copy(update={"attention": "flash"})
    with pytest.raises(ConfigError, match=r"flash-attn is not installed"):
        option.preflight()


def test_what_the_architecture_does_not_have_is_refused() -> None:
    config = transformers.XLNetConfig(vocab_size=64, d_model=16, n_layer=1, n_head=2, d_inner=16)
    with pytest.raises(ConfigError, match=r"one that XLNetLMHeadModel has .*eager.*but is flex"):
        set_attention(config, HEAD, "flex")
