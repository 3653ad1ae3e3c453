from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from typing_extensions import override

from launcher.contracts import Records, Tokenizer
from launcher.errors import DataError
from launcher.task import _token_stream
from launcher.task._token_samples import NO_TARGET, PackedSamples, TokenSamples, UnpackedSamples
from launcher.task._token_stream import TokenStream, read_tokens
from tests.task.conftest import Letters
from tests.toy.shared import Texts

Layout = Callable[[TokenStream, int], TokenSamples]
LAYOUTS: tuple[Layout, ...] = (PackedSamples, UnpackedSamples)


def records(*texts: str) -> Records:
    return Texts(*texts)


def texts_of(count: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 60, count)
    return ["".join(map(chr, generator.integers(65, 91, n))) for n in lengths]


def packed(tokenizer: Tokenizer, texts: Sequence[str], seq_len: int) -> PackedSamples:
    return PackedSamples(read_tokens(records(*texts), tokenizer, bos_id=None), seq_len)


def unpacked(tokenizer: Tokenizer, texts: Sequence[str], seq_len: int) -> UnpackedSamples:
    return UnpackedSamples(read_tokens(records(*texts), tokenizer, bos_id=None), seq_len)


def targets(samples: TokenSamples) -> list[int]:
    """All targets in order."""
    labels = [samples.micro_batch([i], 0).inputs["labels"].flatten() for i in range(len(samples))]
    joined = torch.cat(labels)
    kept: list[int] = joined[joined != NO_TARGET].tolist()
    return kept


def stream_of(texts: Sequence[str]) -> list[int]:
    return [c for text in texts for c in [*text.encode(), 0]]


@pytest.mark.parametrize("seq_len", [1, 2, 7, 16, 100])
def test_packed_samples_lose_only_the_incomplete_block(letters: Tokenizer, seq_len: int) -> None:
    texts = texts_of(20)
    stream = stream_of(texts)
    samples = packed(letters, texts, seq_len)
    assert len(samples) == len(stream) // seq_len
    assert targets(samples) == stream[: len(samples) * seq_len]


@pytest.mark.parametrize("seq_len", [1, 2, 7, 16, 100])
def test_unpacked_samples_lose_no_token(letters: Tokenizer, seq_len: int) -> None:
    texts = texts_of(20)
    samples = unpacked(letters, texts, seq_len)
    assert len(samples) == sum(-(-(len(text) + 1) // seq_len) for text in texts)
    assert targets(samples) == stream_of(texts)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_are_the_inputs_shifted_by_one(letters: Tokenizer, layout: Layout) -> None:
    samples = layout(read_tokens(records(*texts_of(9)), letters, bos_id=None), 8)
    inputs = samples.micro_batch(range(len(samples)), 0).inputs
    ids, labels = inputs["input_ids"], inputs["labels"]
    assert ids.dtype == labels.dtype == torch.int64
    assert ids.shape == labels.shape == (len(samples), 8)
    assert ids.is_contiguous()
    assert labels.is_contiguous()
    both = labels[:, 1:] != NO_TARGET
    assert torch.equal(ids[:, 1:][both], labels[:, :-1][both])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts_are_known_without_building(letters: Tokenizer, layout: Layout) -> None:
    samples = layout(read_tokens(records(*texts_of(30)), letters, bos_id=None), 13)
    generator = np.random.default_rng(1)
    for size in (1, 2, 5, 40):
        indices = generator.integers(0, len(samples), size).tolist()
        batch = samples.micro_batch(indices, 0)
        real = int((batch.inputs["labels"] != NO_TARGET).sum())
        assert samples.num_targets(indices) == batch.num_targets == real
        assert batch.indices == indices


def test_rows_are_padded_to_the_longest_sample(letters: Tokenizer) -> None:
    samples = unpacked(letters, ["abcdefg", "xy"], 5)
    batch = samples.micro_batch([1, 2], 0)
    assert batch.inputs["input_ids"].tolist() == [list(b"efg"), [0, *b"xy"]]
    assert batch.inputs["labels"].tolist() == [[*b"fg", 0], [*b"xy", 0]]
    ragged = samples.micro_batch([0, 1], 0)
    assert ragged.inputs["labels"][1].tolist() == [*b"fg", 0, NO_TARGET, NO_TARGET]
    assert ragged.inputs["input_ids"][1].tolist() == [*b"efg", 0, 0]
    assert ragged.num_targets == 8


def test_records_do_not_mix_in_unpacked_samples(letters: Tokenizer) -> None:
    samples = unpacked(letters, ["aaaa", "bb", "ccccc"], 4)
    for index in range(len(samples)):
        letters_seen = set(samples.micro_batch([index], 0).inputs["input_ids"].flatten().tolist())
        assert len(letters_seen - {0}) <= 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sample_does_not_depend_on_the_others_in_its_batch(
    letters: Tokenizer, layout: Layout
) -> None:
    samples = layout(read_tokens(records(*texts_of(30)), letters, bos_id=None), 13)
    whole = samples.micro_batch(range(len(samples)), 0).inputs
    for index in (0, 3, len(samples) - 1):
        alone = samples.micro_batch([index], 0).inputs
        width = alone["labels"].shape[1]
        for name in ("input_ids", "labels"):
            assert torch.equal(alone[name][0], whole[name][index, :width])


def test_a_sample_names_its_source(letters: Tokenizer) -> None:
    texts = ["ab\ncd\nef", "", "gh\n\nij"]
    samples = unpacked(letters, texts, 4)
    assert [samples.describe(i) for i in range(len(samples))] == [
        "0.txt, line 1 (byte 1)",
        "0.txt, line 2 (byte 5)",
        "0.txt, line 3 (byte 9)",
        "2.txt, line 1 (byte 1)",
        "2.txt, line 3 (byte 5)",
    ]
    joined = packed(letters, texts, 5)
    assert [joined.describe(i) for i in range(len(joined))] == [
        "0.txt, line 1 (byte 1)",
        "0.txt, line 2 (byte 6)",
        "2.txt, line 1 (byte 2)",
    ]


def test_the_fingerprint_depends_on_text_order_length_and_layout(letters: Tokenizer) -> None:
    texts = texts_of(5)
    prints = [
        packed(letters, texts, 8).fingerprint,
        packed(letters, texts, 9).fingerprint,
        unpacked(letters, texts, 8).fingerprint,
        packed(letters, texts[::-1], 8).fingerprint,
        packed(letters, [*texts[:-1], texts[-1] + "x"], 8).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert packed(letters, texts, 8).fingerprint == prints[0]
    assert len(prints[0]) == 32


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "0 tokens in no records, but one sample needs task.seq_len=10"),
        (["short"], "6 tokens in the one record, 0.txt, but one sample needs task.seq_len=10"),
        (["a", "b", "c"], "6 tokens in 3 records, from 0.txt to 2.txt"),
    ],
)
def test_too_little_text_is_an_error_that_counts(
    letters: Tokenizer, texts: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        packed(letters, texts, 10)


def test_text_that_just_fills_one_block_is_enough(letters: Tokenizer) -> None:
    assert len(packed(letters, ["123456789"], 10)) == 1
    with pytest.raises(DataError, match="9 tokens"):
        packed(letters, ["12345678"], 10)


def test_no_text_has_no_unpacked_samples(letters: Tokenizer) -> None:
    with pytest.raises(DataError, match="no tokens in no records"):
        unpacked(letters, ["", ""], 10)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(384, np.uint16), (2**16, np.uint16), (2**16 + 1, np.int32)]
)
def test_tokens_take_as_few_bytes_as_they_can(
    letters: Tokenizer, vocab_size: int, dtype: type
) -> None:
    letters.vocab_size = vocab_size
    assert read_tokens(records("abc"), letters, bos_id=None).tokens.dtype == dtype


def test_bytes_per_target_counts_only_what_is_a_target(letters: Tokenizer) -> None:
    # 12 targets with their end tokens; in blocks of 5 the last two, "g" and an end, are none.
    texts = ["abcd", "e", "efg", ""]
    assert packed(letters, texts, 5).bytes_per_target == 8 / 10
    assert unpacked(letters, texts, 5).bytes_per_target == 8 / 11


def test_a_bos_token_begins_each_record(letters: Tokenizer) -> None:
    stream = read_tokens(records("ab", "", "cde"), letters, bos_id=9)
    assert stream.tokens.tolist() == [9, *b"ab", 0, 9, *b"cde", 0]
    joined, single = PackedSamples(stream, 4), UnpackedSamples(stream, 2)
    assert targets(joined) == [*b"ab", 0, 9, *b"cde", 0]
    assert targets(single) == [*b"ab", 0, *b"cde", 0]
    inputs = [single.micro_batch([i], 0).inputs["input_ids"][0].tolist() for i in range(4)]
    assert inputs == [[9, *b"a"], [*b"b"], [9, *b"c"], [*b"de"]]
    assert single.bytes_per_target == 5 / 7
    assert joined.describe(1) == "2.txt, line 1 (byte 1)"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_in_a_file_are_those_in_memory(
    letters: Tokenizer, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = texts_of(50)
    in_memory = layout(read_tokens(records(*texts), letters, bos_id=None), 8)
    monkeypatch.setattr(_token_stream, "_IN_MEMORY", 100)
    stream = read_tokens(records(*texts), letters, bos_id=None)
    assert isinstance(stream.tokens, np.memmap)
    in_file = layout(stream, 8)
    assert in_file.fingerprint == in_memory.fingerprint
    assert targets(in_file) == targets(in_memory)


def test_long_texts_are_encoded_in_little_memory_and_show_progress(
    letters: Tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_token_stream, "_IN_MEMORY", 2**20)
    monkeypatch.setattr(_token_stream, "_PROGRESS_S", 0.0)
    text = "some text of a line\n" * 50_000
    many = records(*[text] * 20)
    tracemalloc.start()
    try:
        with caplog.at_level(logging.INFO):
            stream = read_tokens(many, letters, bos_id=None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stream.num_bytes == len(stream.tokens) - 21 == 20 * len(text)
    assert peak < 16 * 2**20 < 2 * stream.num_bytes
    assert "encoded 7 of 20 records (7 MB)" in caplog.text


class LowerCasing(Letters):
    """Forgets which letters were capital ones, and line ends."""

    @override
    def encode(self, text: str) -> npt.NDArray[np.int32]:
        return super().encode(text.lower().replace("\n", " "))


def test_a_tokenizer_that_loses_text_is_found(letters: Tokenizer) -> None:
    assert read_tokens(records("some\ntext", "Some"), letters, bos_id=None).lossy is None
    lossy = LowerCasing()
    assert read_tokens(records("all the same"), lossy, bos_id=None).lossy is None
    found = read_tokens(records("the same", "but Not this"), lossy, bos_id=None)
    assert found.lossy == "1.txt: 'Not this' became 'not this'"
    assert UnpackedSamples(found, 9).bytes_per_target == 0
    deep = read_tokens(
        records("x" * 70_000 + "\n", "x" * 60_000 + "\n" + "x" * 9999), lossy, bos_id=None
    )
    assert deep.lossy is not None
    assert deep.lossy.startswith("1.txt: ")


class Pieces(Texts):
    """Texts, of which every second one continues the one before."""

    @override
    def continues(self, index: int) -> bool:
        return index % 2 == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_that_continue_a_text_are_one_text(letters: Tokenizer, layout: Layout) -> None:
    whole = read_tokens(records("ABCD", "EFG"), letters, bos_id=1)
    split = read_tokens(Pieces("AB", "CD", "EF", "G"), letters, bos_id=1)
    assert split.tokens.tolist() == whole.tokens.tolist()
    assert split.tokens.tolist().count(0) == 2
    assert targets(layout(split, 3)) == targets(layout(whole, 3))
    assert split.describe(3) == "1.txt, line 1 (byte 1)"


def test_a_text_may_begin_or_end_with_records_without_tokens(letters: Tokenizer) -> None:
    split = read_tokens(Pieces("", "AB", "CD", "", "", "", "E"), letters, bos_id=None)
    assert split.tokens.tolist() == [0, *stream_of(["AB", "CD", "E"])]
    assert split.text_ends.tolist() == [3, 6, 8]
