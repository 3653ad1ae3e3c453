from __future__ import annotations

from typing import Any

import pytest
import torch

from launcher.contracts import Tokenizer
from launcher.task._generation import GenerationSettings, generate


def settings(prompt: str, num_tokens: int, temperature: float = 0.0) -> GenerationSettings:
    return GenerationSettings(prompt, num_tokens, temperature)


def test_greedy_is_what_transformers_generates(letters: Tokenizer, small_llama: Any) -> None:
    small_llama.eval()
    prompt = torch.tensor([letters.encode("def ").tolist()])
    theirs = small_llama.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=25, do_sample=False
    )
    ours = generate(small_llama, letters, settings("def ", 25), bos_id=None)
    assert ours == letters.decode(theirs[0].tolist())
    assert len(ours) > 10


def test_the_text_ends_where_the_positions_of_the_model_end(
    letters: Tokenizer, small_llama: Any
) -> None:
    for prompt in ("abc", "long " * 30):
        text = generate(small_llama, letters, settings(prompt, 100, 1.0), bos_id=None)
        assert text.startswith(prompt[-50:]) or prompt[-50:] in text
        assert len(text) <= 64


def test_a_bos_token_comes_before_the_prompt(letters: Tokenizer, small_llama: Any) -> None:
    text = generate(small_llama, letters, settings("ab", 1), bos_id=5)
    expected = int(small_llama(torch.tensor([[5, *b"ab"]])).logits[0, -1].argmax())
    assert text == letters.decode([5, *b"ab", expected])


def test_only_the_settings_of_the_task_count(letters: Tokenizer, small_llama: Any) -> None:
    first = generate(small_llama, letters, settings("a", 20, 1.0), bos_id=None)
    for name, value in {
        "top_k": 1,
        "top_p": 0.1,
        "repetition_penalty": 9.0,
        "max_length": 3,
    }.items():
        setattr(small_llama.generation_config, name, value)
    assert generate(small_llama, letters, settings("a", 20, 1.0), bos_id=None) == first


def test_it_runs_in_the_precision_of_the_weights(letters: Tokenizer, small_llama: Any) -> None:
    half = small_llama.to(torch.bfloat16)
    text = generate(half, letters, settings("def ", 1), bos_id=None)
    logits = half(torch.tensor([letters.encode("def ").tolist()])).logits
    assert logits.dtype == torch.bfloat16
    assert text == "def " + letters.decode([int(logits[0, -1].argmax())])


@pytest.mark.parametrize("training", [True, False])
def test_nothing_outside_is_touched(letters: Tokenizer, small_llama: Any, training: bool) -> None:
    small_llama.train(training)
    before = torch.get_rng_state()
    first = generate(small_llama, letters, settings("a", 20, 1.0), bos_id=None)
    assert torch.equal(torch.get_rng_state(), before)
    assert small_llama.training is training
    torch.manual_seed(99)
    assert generate(small_llama, letters, settings("a", 20, 1.0), bos_id=None) == first
    assert all(p.grad is None for p in small_llama.parameters())


def test_an_empty_prompt_starts_a_new_text(letters: Tokenizer, small_llama: Any) -> None:
    text = generate(small_llama, letters, settings("", 1), bos_id=None)
    expected = int(small_llama(torch.tensor([[letters.eos_id]])).logits[0, -1].argmax())
    assert text == letters.decode([expected])


def test_the_end_token_ends_the_text(letters: Tokenizer, small_llama: Any) -> None:
    small_llama.lm_head.weight.data.zero_()  # all alike: the first id, which is the end, is taken
    assert generate(small_llama, letters, settings("abc", 50), bos_id=None) == "abc"


def test_ids_that_the_tokenizer_lacks_are_never_generated(
    letters: Tokenizer, small_llama: Any
) -> None:
    letters.vocab_size = 100
    text = generate(small_llama, letters, settings("abc", 40, 5.0), bos_id=None)
    assert max(letters.encode(text)) < 100


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_non_finite_logits_end_the_text(
    letters: Tokenizer, small_llama: Any, temperature: float
) -> None:
    small_llama.lm_head.weight.data.fill_(torch.nan)
    assert generate(small_llama, letters, settings("abc", 5, temperature), bos_id=None) == "abc"
