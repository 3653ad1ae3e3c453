"""A global batch of sixteen samples, cut in every way: losses, norms and weights agree to 1e-6."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from launcher.contracts import Clipping, OptimizerOption, Precision, PrecisionOption
from launcher.precision._autocast import Float32
from tests.parallelism.test_single import Toy, engine, optimizer_option, ragged, window

SAMPLES, STEPS = 16, 12

CLIPPINGS = {
    "unclipped": Clipping(None, None),
    "norm": Clipping(0.3, None),
    "value": Clipping(None, 0.02),
    "norm per parameter": Clipping(None, None, 0.2),
    "all": Clipping(0.3, 0.02, 0.2),
}

OPTIMIZERS = {"sgd": optimizer_option("sgd"), "adamw": optimizer_option("adamw")}


class Double(Float32):
    """Float64 throughout: no config offers it, but it distinguishes a wrong sum from a rounded
    one."""

    @property
    @override
    def param_dtype(self) -> torch.dtype:
        return torch.float64


class InDouble(PrecisionOption):
    @override
    def build(self, device_type: str) -> Precision:
        return Double(device_type, None)


def trajectory(
    micro_batch_size: int,
    clipping: Clipping,
    optimizer: OptimizerOption,
    precision: PrecisionOption | None = None,
) -> tuple[list[float], list[float], list[Tensor], list[Tensor]]:
    """Losses and gradient norms of some steps, the weights after them, and all gradients."""
    torch.manual_seed(0)
    under_test = engine(Toy(), clipping=clipping, optimizer=optimizer, precision=precision)
    losses, norms, gradients = [], [], []
    for ids, labels in ragged(STEPS, SAMPLES):
        losses.append(under_test.forward_backward(window(ids, labels, micro_batch_size)).item())
        gradients += [p.grad.clone() for p in under_test.module.parameters() if p.grad is not None]
        norms.append(under_test.update(1e-2).grad_norm.item())
    weights = [p.detach().clone() for p in under_test.module.parameters()]
    return losses, norms, weights, gradients


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("micro_batch_size", [1, 4, 8])
def test_every_cut_trains_alike(micro_batch_size: int, clipping: str, optimizer: str) -> None:
    how = CLIPPINGS[clipping], OPTIMIZERS[optimizer]
    losses, norms, weights, gradients = trajectory(SAMPLES, *how)
    cut_losses, cut_norms, cut_weights, cut_gradients = trajectory(micro_batch_size, *how)
    assert cut_losses == pytest.approx(losses, abs=1e-6, rel=0)
    assert cut_norms == pytest.approx(norms, abs=1e-6, rel=0)
    for cut, whole in zip(cut_weights + cut_gradients, weights + gradients, strict=True):
        torch.testing.assert_close(cut, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_what_differs_is_rounding_and_nothing_else(clipping: str, optimizer: str) -> None:
    """With more digits the cuts agree to as many more."""
    how = CLIPPINGS[clipping], OPTIMIZERS[optimizer], InDouble(kind="float64")
    *_, weights, gradients = trajectory(SAMPLES, *how)
    *_, cut_weights, cut_gradients = trajectory(1, *how)
    assert {value.dtype for value in weights + gradients} == {torch.float64}
    for cut, whole in zip(cut_weights + cut_gradients, weights + gradients, strict=True):
        torch.testing.assert_close(cut, whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("clipping", ["norm", "value", "norm per parameter"])
def test_each_limit_is_met_on_the_way(clipping: str) -> None:
    """Or the test above would show nothing of clipping."""
    _, _, free, _ = trajectory(SAMPLES, CLIPPINGS["unclipped"], OPTIMIZERS["sgd"])
    _, _, limited, _ = trajectory(SAMPLES, CLIPPINGS[clipping], OPTIMIZERS["sgd"])
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(free, limited, strict=True))


def test_the_pieces_are_ragged() -> None:
    """Or the mean of the pieces' means would pass as well."""
    ids, labels = ragged(1, SAMPLES)[0]
    whole = window(ids, labels, SAMPLES)
    counts = [piece.num_targets for piece in window(ids, labels, 1).micro_batches]
    assert counts.count(0) >= 1
    assert max(counts) >= 10
    assert sum(counts) == whole.num_targets
