from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from launcher.task import _language_model
from launcher.task._language_model import byte_references
from tests.toy.shared import Texts


def baselines(*texts: str) -> dict[str, float]:
    return byte_references(Texts(*texts))


@pytest.mark.parametrize(
    ("texts", "bits"),
    [(["aaaa"], 0.0), (["ab", "ab"], 1.0), (["aabc"], 1.5), (["éé"], 1.0)],
)
def test_unigram_entropy_is_that_of_the_bytes(texts: list[str], bits: float) -> None:
    assert baselines(*texts)["unigram_bits_per_byte"] == pytest.approx(bits)


def test_no_text_has_no_baselines() -> None:
    assert baselines() == {}
    assert baselines("") == {}


@pytest.mark.skipif(shutil.which("xz") is None, reason="needs xz")
def test_xz_is_the_size_that_the_program_reaches() -> None:
    text = "".join(
        map(chr, np.random.default_rng(0).choice([97, 98, 99], 50_000, p=[0.7, 0.2, 0.1]))
    )
    packed = subprocess.run(
        ["xz", "-9", "--threads=1", "-c"], input=text.encode(), capture_output=True, check=True
    ).stdout
    ours = baselines(text)["xz_bits_per_byte"] / 8 * len(text)
    assert ours == pytest.approx(len(packed), abs=8)


def test_random_bytes_do_not_compress_and_repetition_does() -> None:
    noise = "".join(map(chr, np.random.default_rng(0).integers(0, 128, 30_000)))
    assert 6.9 < baselines(noise)["xz_bits_per_byte"] < 7.7
    assert baselines("again and " * 3000)["xz_bits_per_byte"] < 0.1


def test_xz_reads_only_the_beginning_of_long_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_language_model, "_XZ_LIMIT", 5000)
    text = "again and " * 500
    assert baselines(text + "x" * 9999)["xz_bits_per_byte"] == baselines(text)["xz_bits_per_byte"]
