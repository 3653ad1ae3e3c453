"""`trainctl config memory` does the textbook's arithmetic."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.cli import memory

LLAMA_8B = 8_030_261_248


def measured(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert memory.main([*words, "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def test_8b_in_bfloat16_with_adamw(capsys: pytest.CaptureFixture[str]) -> None:
    facts = measured(capsys, "model=llama_8b", "precision=bf16_pure_stochastic", "optimizer=adamw")
    assert facts["parameters"] == facts["trained"] == LLAMA_8B
    assert facts["weights"] == facts["gradients"] == 2 * LLAMA_8B
    assert facts["optimizer"]["exp_avg"] == facts["optimizer"]["exp_avg_sq"] == 4 * LLAMA_8B
    assert facts["total"] == pytest.approx(12 * LLAMA_8B, rel=1e-6)


def test_8b_with_8bit_adamw(capsys: pytest.CaptureFixture[str]) -> None:
    facts = measured(
        capsys, "model=llama_8b", "precision=bf16_pure_stochastic", "optimizer=adamw_8bit"
    )
    assert facts["optimizer"]["moments in 8 bits"] == pytest.approx(2 * LLAMA_8B, rel=1e-3)
    assert sum(facts["optimizer"].values()) < 2.04 * LLAMA_8B


@pytest.mark.parametrize(
    ("words", "bytes_per_element"),
    [
        (["optimizer=sgd", "optimizer.momentum=0.0", "optimizer.nesterov=false"], 0),
        (["optimizer=sgd"], 4),
        (["optimizer=adamw", "optimizer.amsgrad=true"], 12),
        (["optimizer=adam_mini"], 4),
        (["optimizer=ademamix"], 12),
        # Codes, and a scale of four bytes for each block of each moment.
        (["optimizer=lion_8bit"], 1 + 4 / 256),
        (["optimizer=rmsprop_8bit"], 1 + 4 / 256),
        (["optimizer=paged_ademamix_8bit"], 3 * (1 + 4 / 256)),
        (["optimizer=adamw_4bit"], 2 * (1 / 2 + 4 / 128)),
        (["optimizer=adamw", "precision=bf16_pure"], 10),
        # What runs on a GPU only is counted anywhere.
        (["optimizer=adamw", "precision=tf32"], 8),
        (["optimizer=adamw", "precision=fp8"], 8),
    ],
)
def test_state_per_element(
    capsys: pytest.CaptureFixture[str], words: list[str], bytes_per_element: float
) -> None:
    facts = measured(capsys, "model=llama_60m", *words)
    state = sum(facts["optimizer"].values()) / facts["parameters"]
    assert state == pytest.approx(bytes_per_element, rel=5e-3)


def test_prodigys_state_though_its_step_reads_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("prodigyopt")
    facts = measured(capsys, "model=llama_60m", "optimizer=prodigy", "scheduler=constant")
    assert sum(facts["optimizer"].values()) == 16 * facts["parameters"]


def test_frozen_weights_have_neither_gradient_nor_state(
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts = measured(capsys, "optimizer.groups.frozen=[embed,lm_head]")
    frozen = 2 * 384 * 96
    assert facts["trained"] == facts["parameters"] - frozen
    assert facts["gradients"] == 4 * facts["trained"]
    assert facts["weights"] == 4 * facts["parameters"]


def test_the_text_says_what_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main(["model=llama_8b", "precision=bf16_pure_stochastic"]) == 0
    out = capsys.readouterr().out
    assert "8,030,261,248 parameters" in out
    assert "16.06 GB  bfloat16" in out
    assert "without activations" in out
