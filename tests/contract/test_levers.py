"""Options for memory and speed × optimizers × number formats: training as without them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch

from tests.levers import Trained, largest_difference, tiny, trained

# Larger than any difference of rounding in three steps; 0 is bit for bit.
LEVERS = {
    "activation=full": 0.0,
    "activation=every_n": 0.0,
    "activation=selective": 0.0,
    "activation=offload activation.min_bytes=0": 0.0,
    "activation=offload activation.min_bytes=0 activation.recompute=true": 0.0,
    "ema=on ema.in_evaluation=false ema.in_export=false": 0.0,
    "task.loss_chunk_tokens=5": 1e-6,
    "compile=default compile.backend=aot_eager": 1e-6,
    "compile=default compile.backend=aot_eager activation=full task.loss_chunk_tokens=5": 1e-6,
}
# Muon steps in bfloat16, which makes a difference of rounding larger.
OPTIMIZERS = {"adamw": 1, "adafactor": 1, "muon": 100}
PRECISIONS = ("fp32", "bf16")
SAMPLED = [
    ("activation=selective", "adafactor", "bf16"),
    ("activation=offload activation.min_bytes=0", "muon", "fp32"),
    ("task.loss_chunk_tokens=5", "adamw", "fp32"),
]

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")


@pytest.fixture(autouse=True)
def one_compiler() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@cache
def without(optimizer: str, precision: str) -> Trained:
    return trained(tiny(f"optimizer={optimizer}", f"precision={precision}"))


def check(lever: str, optimizer: str, precision: str) -> None:
    words = (f"optimizer={optimizer}", f"precision={precision}", *lever.split())
    expected, found = without(optimizer, precision), trained(tiny(*words))
    limit = LEVERS[lever] * OPTIMIZERS[optimizer]
    if limit and precision == "bf16":
        # Gradients of the head are rounded to bfloat16 chunk by chunk: 3e-5 in the first norm.
        limit = 2e-3
    assert largest_difference(expected, found) <= limit
    if not limit:
        assert all(torch.equal(found.weights[k], v) for k, v in expected.weights.items())


@pytest.mark.parametrize(("lever", "optimizer", "precision"), SAMPLED)
def test_training_is_as_without(lever: str, optimizer: str, precision: str) -> None:
    check(lever, optimizer, precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("lever", LEVERS)
def test_all_trainings_are_as_without(lever: str, optimizer: str, precision: str) -> None:
    check(lever, optimizer, precision)
