"""Accumulation in a loop of one's own, against TensorFlow's class and against one big batch."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
from torch import Tensor, nn

from launcher import gradient_accumulator
from launcher.gradient_accumulator import GradientAccumulator


def values(gradients: list[Tensor | None]) -> list[list[float] | None]:
    return [None if g is None else g.tolist() for g in gradients]


def test_it_does_what_transformers_class_for_tensorflow_does() -> None:
    """TensorFlow 2.15 with transformers 4.37: adding [1, 2] and [3, 4] makes step 2 and the sum
    [4, 6]; after reset, step 0."""
    param = nn.Parameter(torch.zeros(2))
    accumulator = GradientAccumulator([param])
    with pytest.raises(ValueError, match="nothing was added"):
        _ = accumulator.gradients
    accumulator.add([torch.tensor([1.0, 2.0])], 1)
    accumulator.add([torch.tensor([3.0, 4.0])], 1)
    assert accumulator.num_added == 2
    assert param.grad is not None
    assert param.grad.tolist() == [4.0, 6.0]
    assert values(accumulator.gradients) == [[2.0, 3.0]]
    with pytest.raises(ValueError, match="expected 1 gradients"):
        accumulator.add([torch.zeros(2)] * 2, 1)
    accumulator.reset()
    accumulator.reset()
    assert accumulator.num_added == 0
    assert param.grad is None
    accumulator.add([torch.tensor([5.0, 6.0])], 1)
    assert values(accumulator.gradients) == [[5.0, 6.0]]


def test_an_absent_gradient_stays_absent_until_one_comes() -> None:
    params = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    accumulator = GradientAccumulator(params)
    accumulator.add([torch.tensor([4.0]), None], 2)
    assert values(accumulator.gradients) == [[2.0], None]
    accumulator.add([None, torch.tensor([4.0])], 2)
    assert values(accumulator.gradients) == [[1.0], [1.0]]


def test_what_is_added_may_be_written_to_afterwards() -> None:
    accumulator = GradientAccumulator([nn.Parameter(torch.zeros(1))])
    mine = torch.tensor([3.0])
    accumulator.add([mine], 1)
    mine.zero_()
    assert values(accumulator.gradients) == [[3.0]]


@pytest.mark.parametrize("counts", ["numbers", "tensors"])
@pytest.mark.parametrize("cut", [1, 3, 12])
def test_any_cut_of_a_ragged_batch_is_the_whole(cut: int, counts: str) -> None:
    torch.manual_seed(0)
    module = nn.Linear(5, 9)
    inputs, labels = torch.randn(12, 5), torch.randint(9, (12,))
    labels[::4] = -100
    labels[9:] = -100  # the last pieces have no targets at all
    whole = nn.functional.cross_entropy(module(inputs), labels, ignore_index=-100)
    expected = torch.autograd.grad(whole, list(module.parameters()))
    accumulator = GradientAccumulator(module.parameters())
    for x, y in zip(torch.split(inputs, cut), torch.split(labels, cut), strict=True):
        loss_sum = nn.functional.cross_entropy(module(x), y, ignore_index=-100, reduction="sum")
        count = (y != -100).sum()
        accumulator.add(loss_sum, count if counts == "tensors" else int(count))
    for ours, theirs in zip(accumulator.gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-6)
    accumulator.finish()
    for param, theirs in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(param.grad, theirs, atol=1e-7, rtol=1e-6)
    assert [g is p.grad for g, p in zip(accumulator.gradients, module.parameters(), strict=True)]


def test_masked_targets_alone_leave_no_gradient() -> None:
    module = nn.Linear(2, 3)
    accumulator = GradientAccumulator(module.parameters())
    accumulator.add(module(torch.ones(1, 2)).sum() * 0, 0)
    accumulator.finish()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_finish_takes_the_count_of_all_ranks() -> None:
    accumulator = GradientAccumulator([nn.Parameter(torch.zeros(1))])
    accumulator.add([torch.tensor([6.0])], 2)
    accumulator.finish(num_targets=4)
    assert values(accumulator.gradients) == [[1.5]]


def test_what_was_divided_is_neither_divided_nor_added_to_again() -> None:
    accumulator = GradientAccumulator([nn.Parameter(torch.zeros(1))])
    accumulator.add([torch.ones(1)], 1)
    accumulator.finish()
    with pytest.raises(ValueError, match="reset"):
        accumulator.finish()
    with pytest.raises(ValueError, match="reset"):
        accumulator.add([torch.ones(1)], 1)


def test_a_loss_that_was_not_summed_is_refused() -> None:
    param = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"one sum, but has the shape \(3,\)"):
        GradientAccumulator([param]).add(param * 2, 3)


def test_frozen_parameters_take_no_part() -> None:
    frozen, free = nn.Parameter(torch.zeros(1), requires_grad=False), nn.Parameter(torch.zeros(1))
    accumulator = GradientAccumulator([frozen, free])
    accumulator.add(frozen.sum() + 2 * free.sum(), 1)
    assert values(accumulator.gradients) == [[2.0]]
    with pytest.raises(ValueError, match="no parameter"):
        GradientAccumulator([frozen])


@pytest.mark.parametrize("counts", ["numbers", "tensors"])
def test_targets_may_have_weights_that_sum_to_less_than_one(counts: str) -> None:
    accumulator = GradientAccumulator([nn.Parameter(torch.zeros(1))])
    for weight in (0.125, 0.0, 0.25):
        count = torch.tensor(weight) if counts == "tensors" else weight
        accumulator.add([torch.tensor([3.0 * weight])], count)
    assert values(accumulator.gradients) == [[3.0]]
    accumulator.finish()
    assert values(accumulator.gradients) == [[3.0]]


def test_a_gradient_of_another_shape_is_refused_before_anything_is_added() -> None:
    params = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2, 3))]
    accumulator = GradientAccumulator(params)
    accumulator.add([torch.ones(1), torch.ones(2, 3)], 1)
    with pytest.raises(
        ValueError, match=r"gradient 1 has the shape \(3,\), its parameter \(2, 3\)"
    ):
        accumulator.add([torch.ones(1), torch.ones(3)], 1)
    assert values(accumulator.gradients)[0] == [1.0]


def test_the_example_of_the_documentation_is_the_loop_over_whole_batches() -> None:
    torch.manual_seed(0)
    module = nn.Linear(5, 9)
    whole = copy.deepcopy(module)
    batches = [(torch.randn(12, 5), torch.randint(9, (12,))) for _ in range(3)]
    for _, labels in batches:
        labels[:4] = -100
    optimizer = torch.optim.AdamW(whole.parameters(), lr=0.1)
    for inputs, labels in batches:
        loss = nn.functional.cross_entropy(whole(inputs), labels, ignore_index=-100)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(whole.parameters(), max_norm=1.0)
        optimizer.step()
    names = {
        "GradientAccumulator": GradientAccumulator,
        "module": module,
        "optimizer": torch.optim.AdamW(module.parameters(), lr=0.1),
        "micro_batches": [
            piece
            for x, y in batches
            for piece in zip(torch.split(x, 3), torch.split(y, 3), strict=True)
        ],
        "cross_entropy": nn.functional.cross_entropy,
        "clip_grad_norm_": nn.utils.clip_grad_norm_,
    }
    assert gradient_accumulator.__doc__ is not None
    example = doctest.DocTestParser().get_doctest(
        gradient_accumulator.__doc__, names, "example", None, None
    )
    assert doctest.DocTestRunner().run(example).failed == 0
    for ours, theirs in zip(module.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
