"""Adafactor computes the updates of the reference, with any blocks and buckets."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers.optimization import Adafactor as Reference

from launcher.contracts import OptimizerOption
from launcher.optimizer._blockwise import per_tensor
from launcher.optimizer._blockwise.adafactor import AdafactorOptimizer
from launcher.optimizer._blockwise.adafactor_small import SmallTensors
from tests.optimizer.conftest import Problem

GOLDEN = Path(__file__).parent.parent / "golden"
DEFAULTS: dict[str, Any] = {
    "lr": None,
    "eps": (1e-30, 1e-3),
    "clip_threshold": 1.0,
    "decay_rate": -0.8,
    "beta1": None,
    "weight_decay": 0.0,
    "scale_parameter": True,
    "relative_step": True,
    "warmup_init": False,
}
FIXED: dict[str, Any] = {"relative_step": False, "lr": 1e-2}
RATES: dict[str, dict[str, Any]] = {
    "relative": {},
    "relative, warm-up": {"warmup_init": True},
    "relative, unscaled": {"scale_parameter": False},
    "relative, unscaled, warm-up": {"scale_parameter": False, "warmup_init": True},
    "fixed": {**FIXED, "scale_parameter": False},
    "fixed, scaled": FIXED,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("t5", {"relative_step": False, "lr": 1e-3, "scale_parameter": False}),
    ("relative_warmup", {"warmup_init": True}),
    ("relative", {}),
    ("relative_noscale", {"scale_parameter": False}),
    ("scaled_lr", FIXED),
    ("beta1_wd", {**FIXED, "beta1": 0.9, "weight_decay": 0.1, "scale_parameter": False}),
    ("relative_beta1", {"beta1": 0.9}),
    (
        "clip_decay_eps",
        {**FIXED, "clip_threshold": 0.5, "decay_rate": -0.9, "eps": (1e-6, 1e-2)},
    ),
    ("eps2_floor", {"eps": (1e-30, 0.6), "clip_threshold": 2.0}),
]
SHAPES: list[tuple[int, ...]] = [
    (),
    (1,),
    (17,),
    (17,),
    (700,),
    (1, 50),
    (50, 1),
    (30, 70),
    (64, 64),
    (64, 64),
    (3, 5, 7),
    (3, 5, 7),
    (2, 40, 30),
    (8, 4, 3, 3),
    (8, 4, 3, 3),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On busy cores, handing tiny blocks from thread to thread takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["gathered", "cut"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small tensors in common buckets, or every tensor alone, in blocks of few elements."""
    if request.param == "cut":
        monkeypatch.setattr(per_tensor, "group_by_shape", lambda params, **_: [[p] for p in params])
        monkeypatch.setattr(per_tensor, "block_elements", lambda _: 20)
    return str(request.param)


def tensors(dtype: torch.dtype, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter((0.1 * torch.randn(shape, generator=generator)).to(dtype)) for shape in SHAPES
    ]


def run_steps(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], steps: int) -> None:
    """Steps with gradients that depend on nothing but the step."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            size = 4.0 if step == steps - 2 else 0.01
            param.grad = (size * torch.randn(param.shape, generator=generator)).to(param.dtype)
        optimizer.step()


def worst(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Largest difference, relative to each tensor's largest element."""
    return max(
        ((a.detach() - b.detach()).abs().max() / b.detach().abs().max()).item()
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("case", "changes"), CASES)
def test_golden(
    assert_golden: Callable[..., Any], case: str, changes: dict[str, Any], dtype: str
) -> None:
    options = {**DEFAULTS, **changes, "groups": {"no_decay_types": []}}
    assert_golden(f"hf_adafactor_{case}/{dtype}", "adafactor", **options)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(("case", "changes"), CASES[:2])
def test_golden_in_bfloat16(
    assert_golden: Callable[..., Any], case: str, changes: dict[str, Any]
) -> None:
    assert_golden(f"hf_adafactor_{case}/bfloat16", "adafactor", **{**DEFAULTS, **changes})


COMBINATIONS: list[dict[str, Any]] = [
    {
        "beta1": beta1,
        "weight_decay": weight_decay,
        "clip_threshold": clip,
        "decay_rate": decay_rate,
        "eps": eps,
    }
    for beta1, weight_decay, clip, (decay_rate, eps) in product(
        (None, 0.9), (0.0, 0.1), (1.0, 0.3), ((-0.8, (1e-30, 1e-3)), (-0.6, (1e-8, 0.4)))
    )
]


def solved(problem: Problem, build: Callable[..., torch.optim.Optimizer], **options: Any) -> Any:
    """The parameters after ten steps, of which the eighth has the spike; the golden runs go on."""
    optimizer = build(problem.module.parameters(), **options)
    for step in range(18, 28):
        problem.set_gradients(step)
        optimizer.step()
    return problem.values()


@cache
def solved_by_reference(rate: str, dtype: str, number: int) -> Any:
    return solved(Problem(dtype), Reference, **(DEFAULTS | RATES[rate] | COMBINATIONS[number]))


def half(rate: str, dtype: str) -> list[int]:
    """Half of the combinations, with all combinations of any three options.

    The other half is that of the other number format, and of the next rate.
    """
    start = list(RATES).index(rate) + (dtype == "float32")
    return [i for i in range(len(COMBINATIONS)) if (i.bit_count() + start) % 2 == 0]


@pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["half", "every"]
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rate", RATES)
def test_combinations_of_options(pieces: str, rate: str, dtype: str, every: bool) -> None:
    tolerance = {"float64": 1e-12, "float32": 1e-6}[dtype]
    for number in range(len(COMBINATIONS)) if every else half(rate, dtype):
        changes = COMBINATIONS[number]
        options = DEFAULTS | RATES[rate] | changes
        ours = solved(Problem(dtype), AdafactorOptimizer, **options)
        for name, expected in solved_by_reference(rate, dtype, number).items():
            off = abs(ours[name] - expected).max()
            assert off <= tolerance, f"{name} is off by {off:.2e} with {changes}, {pieces}"


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("beta1", [None, 0.9])
def test_shapes(beta1: float | None) -> None:
    options = DEFAULTS | {"beta1": beta1, "weight_decay": 0.1}
    ours, theirs = tensors(torch.float64), tensors(torch.float64)
    optimizer, reference = AdafactorOptimizer(ours, **options), Reference(theirs, **options)
    run_steps(optimizer, ours, 6)
    run_steps(reference, theirs, 6)
    assert worst(ours, theirs) < 1e-12
    for param, other in zip(ours, theirs, strict=True):
        expected = {k: v for k, v in reference.state[other].items() if k.startswith("exp_avg")}
        state = {k: v for k, v in optimizer.state[param].items() if k != "step"}
        assert state.keys() == expected.keys()
        for key, value in state.items():
            assert value.shape == expected[key].shape
            largest = expected[key].abs().max().item()
            torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-12 * largest)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("changes", [{}, {"beta1": 0.9, "weight_decay": 0.1}])
def test_low_precision_weights_have_float32_statistics(
    dtype: torch.dtype, changes: dict[str, Any]
) -> None:
    ours, theirs = tensors(dtype), tensors(dtype)
    optimizer = AdafactorOptimizer(ours, **(DEFAULTS | changes))
    run_steps(optimizer, ours, 6)
    run_steps(Reference(theirs, **(DEFAULTS | changes)), theirs, 6)
    # One float32 rounding may tip an element to the neighbouring low-precision number.
    assert worst(ours, theirs) <= 2 * torch.finfo(dtype).eps
    assert {v.dtype for s in optimizer.state.values() for k, v in s.items() if k != "step"} == {
        torch.float32
    }


def test_unusual_memory_formats() -> None:
    matrices = [torch.randn(40, 30).t(), torch.randn(8, 6, 5, 4).contiguous(), torch.randn(30, 40)]
    grads = [torch.randn(30, 40), torch.randn(8, 6, 5, 4), torch.randn(40, 30).t()]
    matrices[1] = matrices[1].to(memory_format=torch.channels_last)
    results = []
    for form in (torch.preserve_format, torch.contiguous_format):
        params = [nn.Parameter(matrix.clone(memory_format=form)) for matrix in matrices]
        optimizer = AdafactorOptimizer(params, **(DEFAULTS | {"beta1": 0.9}), block_elements=64)
        for _ in range(3):
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad.clone()
            optimizer.step()
        results.append(params)
    assert not results[0][1].is_contiguous()
    assert worst(results[0], results[1]) < 1e-6


@pytest.mark.usefixtures("pieces")
def test_zero_gradients_move_nothing() -> None:
    params = tensors(torch.float32)
    before = [param.detach().clone() for param in params]
    optimizer = AdafactorOptimizer(params, **(DEFAULTS | {"beta1": 0.9}))
    for _ in range(3):
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
    run_steps(optimizer, params, 3)
    assert all(torch.isfinite(param).all() for param in params)


def test_a_schedule_and_the_relative_step_are_one_thing() -> None:
    own, driven = tensors(torch.float64), tensors(torch.float64)
    run_steps(AdafactorOptimizer(own, **DEFAULTS), own, 5)
    optimizer = AdafactorOptimizer(driven, **(DEFAULTS | {"relative_step": False}))
    optimizer.register_step_pre_hook(lambda opt, *_: set_rate(opt))
    run_steps(optimizer, driven, 5)
    assert all(torch.equal(a, b) for a, b in zip(own, driven, strict=True))


def set_rate(optimizer: torch.optim.Optimizer) -> None:
    """Set the learning rate to min(1e-2, 1 / √step), as an engine does before a step."""
    for group in optimizer.param_groups:
        group["lr"] = 1e-2


def test_a_group_scales_the_relative_step() -> None:
    params = [nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    groups = [
        {"params": [param], "lr_scale": scale}
        for param, scale in zip(params, (1, 0.5), strict=True)
    ]
    optimizer = AdafactorOptimizer(groups, **DEFAULTS)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    steps = [(1 - param).mean().item() for param in params]
    assert steps[0] == pytest.approx(1e-2, rel=1e-6)
    assert steps[1] == pytest.approx(5e-3, rel=1e-6)


@pytest.mark.parametrize("name", ["relative_warmup_scale", "relative_scale", "relative_noscale"])
def test_reports_the_rates_of_the_references_schedule(problem: type[Any], name: str) -> None:
    table = json.loads((GOLDEN / "optim_golden.json").read_text())
    [case] = [c for c in table["cases"] if c["id"] == f"adafactor_schedule/{name}/init0.0"]
    solved = problem("float64")
    named = dict(solved.module.named_parameters())
    groups = [{"params": [named[param] for param in group]} for group in case["groups"]]
    optimizer = AdafactorOptimizer(groups, **(DEFAULTS | case["kwargs"]))
    assert optimizer.internal_lr() == [None, None]
    for step, expected in enumerate(case["lr_log"][1:]):
        solved.set_gradients(step)
        optimizer.step()
        rates = [rate.item() for rate in optimizer.internal_lr() if rate is not None]
        assert rates == pytest.approx(expected, rel=1e-12)


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="dense embedding"):
        AdafactorOptimizer(embedding.parameters(), **DEFAULTS).step()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relative_step": True, "lr": 1e-3}, r"lr is 0\.001; set lr to null, or relative_step"),
        ({"relative_step": False}, "there is no learning rate; set lr"),
        ({"relative_step": False, "lr": 1e-3, "warmup_init": True}, "start of the relative step"),
        ({"lr": 1e-3, "warmup_init": True}, "start of the relative step"),
        ({"decay_rate": 0.8}, "less than 0"),
        ({"eps": [0.0, 1e-3]}, "greater than 0"),
    ],
)
def test_contradictions_are_config_errors(
    build_option: Callable[..., OptimizerOption], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        build_option("adafactor", **changes)


def test_a_schedule_may_take_over_unless_the_relative_step_is_asked_for(
    build_option: Callable[..., OptimizerOption],
) -> None:
    assert build_option("adafactor").peak_lr == 1e-2
    assert build_option("adafactor", relative_step=True).peak_lr is None
    assert build_option("adafactor", lr=3e-4).peak_lr == 3e-4
    assert build_option("adafactor_t5").peak_lr == 1e-2
    assert build_option("adafactor").clips_itself


@pytest.mark.parametrize(
    "options", [FIXED, DEFAULTS, {**DEFAULTS, "beta1": 0.9, "weight_decay": 0.1}]
)
def test_small_tensors_together_are_stepped_like_each_alone(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for together in (True, False):
        if not together:
            monkeypatch.setattr(SmallTensors, "of", lambda *_: None)
        params = tensors(torch.float32)
        optimizer = AdafactorOptimizer(params, **{**DEFAULTS, **options})
        run_steps(optimizer, params, 8)
        assert any(small for _, small in optimizer._together.values()) == together
        # A row without gradient, as of a token that the batch does not have.
        for param in params:
            if param.grad is not None and param.dim():
                param.grad[:1].zero_()
        optimizer.step()
        copied = copy.deepcopy(params), copy.deepcopy(optimizer.state_dict())
        fresh = AdafactorOptimizer(copied[0], **{**DEFAULTS, **options})
        fresh.load_state_dict(copied[1])
        for each, of in ((optimizer, params), (fresh, copied[0])):
            run_steps(each, of, 2)
        assert all(torch.equal(a, b) for a, b in zip(params, copied[0], strict=True))
        params[1].grad = None
        optimizer.step()
        ends.append(params)
    assert worst(*ends) < 1e-6


def test_weights_that_are_replaced_after_a_step_are_scaled_by_their_own_size() -> None:
    params, copies = tensors(torch.float32), tensors(torch.float32)
    optimizers = [
        AdafactorOptimizer(params, **{**DEFAULTS, **FIXED}),
        Reference(copies, **{**DEFAULTS, **FIXED}),
    ]
    for optimizer, weights in zip(optimizers, (params, copies), strict=True):
        run_steps(optimizer, weights, 1)
        for weight in weights:
            weight.data = weight.data * 10
        run_steps(optimizer, weights, 1)
    assert worst(params, copies) < 1e-6
