"""Common code of Adafactor, StableAdamW and LAMB: buckets and blocks; see test_shards.py for
shards."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.optimization import Adafactor as Reference
from typing_extensions import override

from launcher.contracts import Unsharded
from launcher.optimizer._blockwise import blocks, buckets, per_tensor
from launcher.optimizer._blockwise.adafactor import AdafactorOptimizer
from launcher.optimizer._blockwise.lamb import LambOptimizer
from launcher.optimizer._blockwise.per_tensor import PerTensor
from launcher.optimizer._blockwise.stable_adamw import StableAdamWOptimizer

Make = Callable[..., PerTensor]


def adafactor(params: Iterable[Any], **changes: Any) -> PerTensor:
    options: dict[str, Any] = {
        "lr": None,
        "eps": (1e-30, 1e-3),
        "clip_threshold": 1.0,
        "decay_rate": -0.8,
        "beta1": None,
        "weight_decay": 0.1,
        "scale_parameter": True,
        "relative_step": True,
        "warmup_init": False,
    }
    return AdafactorOptimizer(params, **(options | changes))


def adafactor_with_mean(params: Iterable[Any], **changes: Any) -> PerTensor:
    return adafactor(params, beta1=0.9, **changes)


def stable_adamw(params: Iterable[Any], **changes: Any) -> PerTensor:
    options: dict[str, Any] = {
        "lr": 1e-2,
        "betas": (0.9, 0.99),
        "eps": 1e-6,
        "weight_decay": 0.1,
        "decouple_lr": False,
        "max_lr": None,
        "kahan": True,
    }
    return StableAdamWOptimizer(params, **(options | changes))


def lamb(params: Iterable[Any], **changes: Any) -> PerTensor:
    options: dict[str, Any] = {
        "lr": 1e-2,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.1,
        "bias_correction": True,
        "grad_averaging": True,
        "trust_clip": False,
        "always_adapt": False,
    }
    return LambOptimizer(params, **(options | changes))


every_optimizer = pytest.mark.parametrize(
    "make", [adafactor, adafactor_with_mean, stable_adamw, lamb]
)
SHAPES = [(6, 5), (6, 5), (6, 5), (7,), (7,), (7,), (), (3, 4, 5), (90, 40), (4000,)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On busy cores, handing tiny blocks from thread to thread takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tensors(dtypes: Sequence[torch.dtype] = (torch.float32,)) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for dtype in dtypes
        for shape in SHAPES
    ]


def set_gradients(params: Sequence[nn.Parameter], step: int) -> None:
    """Gradients that depend on the step and the parameter's place alone."""
    for place, param in enumerate(params):
        generator = torch.Generator().manual_seed(1000 * step + place)
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def run_steps(
    optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], steps: Iterable[int]
) -> None:
    for step in steps:
        set_gradients(params, step)
        optimizer.step()


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def nearly_same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Adafactor rounds in another order where it steps small tensors together."""
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(left, right, strict=True))


@every_optimizer
def test_order_and_buckets_do_not_change_a_bit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for order, elements in ((1, 1 << 18), (-1, 1 << 18), (1, 60)):
        monkeypatch.setattr(per_tensor, "BUCKET_ELEMENTS", elements)
        params = tensors(DTYPES)
        optimizer = make(params[::order])
        run_steps(optimizer, params, range(4))
        results.append(params)
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@every_optimizer
def test_cutting_changes_roundings_only(make: Make) -> None:
    whole, cut = tensors([torch.float64]), tensors([torch.float64])
    run_steps(make(whole), whole, range(4))
    run_steps(make(cut, small_elements=0, block_elements=12), cut, range(4))
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@every_optimizer
def test_state_dicts_round_trip_bitwise(make: Make) -> None:
    params = tensors(DTYPES)
    optimizer = make(params)
    run_steps(optimizer, params, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    others = [nn.Parameter(param.detach().clone()) for param in params]
    file.seek(0)
    resumed = make(others)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy((optimizer, params))
    for state, live in zip(resumed.state.values(), optimizer.state.values(), strict=True):
        assert {k: v.dtype for k, v in state.items()} == {k: v.dtype for k, v in live.items()}
    run_steps(optimizer, params, range(3, 6))
    run_steps(resumed, others, range(3, 6))
    run_steps(copied[0], copied[1], range(3, 6))
    assert same(params, others)
    assert same(params, copied[1])


@every_optimizer
def test_state_that_is_changed_in_place_is_used(make: Make) -> None:
    params, others = tensors(), tensors()
    optimizer, fresh = make(params), make(others)
    run_steps(optimizer, params, range(3))
    run_steps(fresh, others, range(7, 8))
    with torch.no_grad():
        for param, other in zip(params, others, strict=True):
            other.copy_(param)
            for key, value in fresh.state[other].items():
                value.copy_(optimizer.state[param][key])
    run_steps(optimizer, params, range(3, 6))
    run_steps(fresh, others, range(3, 6))
    assert same(params, others)


@every_optimizer
def test_parameters_step_only_with_gradients(make: Make) -> None:
    params, alone = tensors(), tensors()
    optimizer = make(params)
    single = [make([param]) for param in alone]
    for step in range(6):
        set_gradients(params, step)
        set_gradients(alone, step)
        for place in range(len(params)):
            if (step + place) % 3 == 1:
                params[place].grad = alone[place].grad = None
        optimizer.step()
        for one in single:
            one.step()
    assert nearly_same(params, alone)
    steps = [int(optimizer.state[param]["step"]) for param in params]
    assert steps == [4] * len(params)


@every_optimizer
def test_groups_may_come_later(make: Make) -> None:
    params, others = tensors(), tensors()
    whole, grown = make(params), make(others[:4])
    set_gradients(params, 0)
    set_gradients(others, 0)
    for param in params[4:]:
        param.grad = None
    whole.step()
    grown.step()
    grown.add_param_group({"params": others[4:]})
    run_steps(whole, params, range(1, 4))
    run_steps(grown, others, range(1, 4))
    assert nearly_same(params, others)


@every_optimizer
def test_a_parameter_that_left_its_group_is_not_stepped(make: Make) -> None:
    params = tensors()
    optimizer = make(params)
    run_steps(optimizer, params, [0])
    left = optimizer.param_groups[0]["params"].pop(1)
    before = left.detach().clone()
    run_steps(optimizer, params, [1])
    assert torch.equal(left, before)
    assert int(optimizer.state[left]["step"]) == 1


@every_optimizer
def test_a_parameter_is_stepped_with_the_options_of_its_present_group(make: Make) -> None:
    params, others = tensors(), tensors()
    moved, built = make(params), make([{"params": others[2:]}, {"params": others[:2]}])
    run_steps(moved, params, [0])
    run_steps(built, others, [0])
    moved.add_param_group({"params": [nn.Parameter(torch.ones(1))], "weight_decay": 0.5})
    run_steps(moved, params, [1])
    run_steps(built, others, [1])
    group = moved.param_groups[0]["params"]
    moved.param_groups[1]["params"] += [group.pop(0), group.pop(0)]
    built.param_groups[1]["weight_decay"] = 0.5
    run_steps(moved, params, [2])
    run_steps(built, others, [2])
    assert nearly_same(params, others)


@every_optimizer
def test_empty_and_gradientless_parameters_are_left_alone(make: Make) -> None:
    params = [nn.Parameter(torch.empty(0, 3)), nn.Parameter(torch.ones(3)), *tensors()]
    optimizer = make(params)
    for step in range(2):
        set_gradients(params, step)
        params[1].grad = None
        optimizer.step()
    assert torch.equal(params[1].detach(), torch.ones(3))
    assert all(torch.isfinite(param).all() for param in params)


def test_integers_are_refused() -> None:
    param = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    param.grad = torch.zeros_like(param)
    with pytest.raises(TypeError, match="complex64"):
        lamb([param]).step()


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's is not typed
    """Records the largest storage that an operation creates or returns, except those known
    before."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.largest: int = 0

    @override
    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage.data_ptr() not in self._known:
                    self.largest = max(self.largest, storage.nbytes())
        return result


def largest_allocation(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter]) -> int:
    """Bytes of the largest piece of memory, scratch included, that a later step touches."""
    run_steps(optimizer, params, range(2))
    grads = [param.grad for param in params if param.grad is not None]
    state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    with Allocations([*params, *grads, *state]) as allocations:
        optimizer.step()
    return int(allocations.largest)


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_needs_no_memory_beyond_a_block(make: Make, dtype: torch.dtype) -> None:
    shapes = [(2000, 1000), (1_000_000,), (40, 300, 200), (256, 300, 3, 3), *[(64, 64)] * 200]
    params = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    bound = 4 * max(blocks.block_elements(torch.device("cpu")), buckets.BUCKET_ELEMENTS)
    assert largest_allocation(make(params), params) <= bound


def test_the_measure_of_memory_sees_what_the_reference_needs() -> None:
    params = [nn.Parameter(torch.randn(2000, 1000))]
    assert largest_allocation(Reference(params), params) == 4 * 2_000_000


def test_copies_keep_their_sharding() -> None:
    """A copy that forgot it would take shards for tensors."""

    class Halves(Unsharded):
        ranks = 2

    halves = Halves()
    optimizer = lamb([nn.Parameter(torch.ones(3))], sharding=halves)
    copied = copy.deepcopy(optimizer)
    assert copied._sharding.ranks == 2


class Alone(Unsharded):
    """The sharding of a rank that shares nothing, seen as if it did."""

    ranks = 2


@every_optimizer
def test_non_contiguous_shards_are_refused(make: Make) -> None:
    param = nn.Parameter(torch.ones(3, 4).T)
    param.grad = torch.ones(4, 3)
    with pytest.raises(ValueError, match="contiguous"):
        make([param], sharding=Alone()).step()


@every_optimizer
def test_scratch_memory_is_not_shared_between_open_updates(make: Make) -> None:
    """All updates of shards are open at once, and bfloat16 weights are converted in scratch."""
    params, others = tensors([torch.bfloat16]), tensors([torch.bfloat16])
    run_steps(make(params, block_elements=100), params, range(4))
    run_steps(make(others, block_elements=100, sharding=Alone()), others, range(4))
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param, other, rtol=2**-7, atol=1e-5)
