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
    ours = generate(small_llama, letters, settings("def ", 25), max_positions=64)
    assert ours == letters.decode(theirs[0].tolist())
    assert len(ours) > 10


def test_past_the_window_the_beginning_is_forgotten(letters: Tokenizer, small_llama: Any) -> None:
    text = generate(small_llama, letters, settings("abc", 30), max_positions=8)
    ids = letters.encode(text).tolist()
    for place in range(8, len(ids)):
        window = torch.tensor([ids[place - 8 : place]])
        assert int(small_llama(window).logits[0, -1].argmax()) == ids[place]
    assert len(ids) > 20


@pytest.mark.parametrize("training", [True, False])
def test_nothing_outside_is_touched(letters: Tokenizer, small_llama: Any, training: bool) -> None:
    small_llama.train(training)
    before = torch.get_rng_state()
    first = generate(small_llama, letters, settings("a", 20, 1.0), max_positions=64)
    assert torch.equal(torch.get_rng_state(), before)
    assert small_llama.training is training
    torch.manual_seed(99)
    assert generate(small_llama, letters, settings("a", 20, 1.0), max_positions=64) == first
    assert all(p.grad is None for p in small_llama.parameters())


def test_an_empty_prompt_is_the_beginning_of_a_document(
    letters: Tokenizer, small_llama: Any
) -> None:
    text = generate(small_llama, letters, settings("", 1), max_positions=64)
    expected = int(small_llama(torch.tensor([[letters.eos_id]])).logits[0, -1].argmax())
    assert text == letters.decode([expected])


def test_the_end_of_the_document_ends_it(letters: Tokenizer, small_llama: Any) -> None:
    small_llama.lm_head.weight.data.zero_()  # all alike: the first id, which is the end, is taken
    assert generate(small_llama, letters, settings("abc", 50), max_positions=64) == "abc"


def test_rows_that_the_tokenizer_does_not_know_are_never_drawn(
    letters: Tokenizer, small_llama: Any
) -> None:
    letters.vocab_size = 100
    text = generate(small_llama, letters, settings("abc", 40, 5.0), max_positions=64)
    assert max(letters.encode(text)) < 100


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_overflowed_say_nothing_more(
    letters: Tokenizer, small_llama: Any, temperature: float
) -> None:
    small_llama.lm_head.weight.data.fill_(torch.nan)
    assert (
        generate(small_llama, letters, settings("abc", 5, temperature), max_positions=64) == "abc"
    )
