from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from launcher.contracts import PrecisionOption
from launcher.errors import NonFinite
from launcher.precision._autocast import DynamicLossScale

Build = Callable[..., PrecisionOption]


def loss_scale(**changes: float) -> DynamicLossScale:
    values = {"init_scale": 1024.0, "growth_interval": 3, "min_scale": 1.0} | changes
    return DynamicLossScale(
        init_scale=values["init_scale"],
        growth_interval=int(values["growth_interval"]),
        min_scale=values["min_scale"],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_unscaling_gives_back_the_gradient_bit_for_bit(dtype: torch.dtype) -> None:
    grads = [torch.randn(5, 3).to(dtype), torch.randn(()).to(dtype), torch.randn(0).to(dtype)]
    scaled = [grad * 1024 for grad in grads]
    loss_scale().unscale(scaled)
    assert all(torch.equal(a, b) for a, b in zip(grads, scaled, strict=True))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_overflow_is_still_there_after_unscaling(value: float, where: int) -> None:
    grads = [torch.ones(3), torch.ones(2, 2, dtype=torch.float16), torch.ones(4)]
    grads[where].view(-1)[1] = value
    loss_scale().unscale(grads)
    assert [bool(grad.isfinite().all()) for grad in grads] == [i != where for i in range(3)]


def test_there_may_be_no_gradients() -> None:
    loss_scale().unscale([])


def test_the_factor_moves_as_gradscaler_moves_it() -> None:
    ours = loss_scale(init_scale=2.0**40)
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=3)
    param = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([param], lr=0.0)
    generator = torch.Generator().manual_seed(3)
    for overflowed in (torch.rand(60, generator=generator) < 0.25).tolist():
        theirs.scale(param.sum())
        param.grad = torch.full((2,), float("inf") if overflowed else 1.0)
        theirs.step(optimizer)
        theirs.update()
        ours.update(overflowed=overflowed)
        assert ours.value == theirs.get_scale()


def test_the_floor_ends_the_run() -> None:
    scale = loss_scale(init_scale=4.0, min_scale=2.0)
    scale.update(overflowed=True)
    assert scale.value == 2
    with pytest.raises(NonFinite, match="least loss scale, 2"):
        scale.update(overflowed=True)


def test_state_is_tensors_and_goes_on_bit_for_bit() -> None:
    first = loss_scale()
    for overflowed in (True, False, False):
        first.update(overflowed=overflowed)
    second = loss_scale(init_scale=2.0)
    second.load_state({key: value.clone() for key, value in first.state().items()})
    for overflowed in (False, False, True, False):
        first.update(overflowed=overflowed)
        second.update(overflowed=overflowed)
        assert first.value == second.value
    assert {key: value.shape for key, value in first.state().items()} == {
        "loss_scale": (),
        "good_updates": (),
    }


@pytest.mark.parametrize("odd", [{}, {"loss_scale": torch.ones(())}])
def test_a_state_of_something_else_is_refused(odd: dict[str, Tensor]) -> None:
    with pytest.raises(KeyError):
        loss_scale().load_state(odd)


def test_small_gradients_survive_float16_only_with_a_scale(build_option: Build) -> None:
    precision = build_option("fp16").build("cpu")
    assert precision.loss_scale is not None
    weight = nn.Parameter(torch.full((4, 4), 0.5))

    def gradient(scaled: bool) -> Tensor:
        weight.grad = None
        with precision.autocast():
            loss = (torch.ones(1, 4) @ weight).float().mul(1e-9).sum()
        assert precision.loss_scale is not None
        (precision.loss_scale.scale(loss) if scaled else loss).backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        if scaled:
            precision.loss_scale.unscale([weight.grad])
        return weight.grad

    assert not gradient(scaled=False).any()
    torch.testing.assert_close(gradient(scaled=True), torch.full((4, 4), 1e-9), rtol=0.02, atol=0)


def test_the_state_of_fp16_is_that_of_its_scale(build_option: Build) -> None:
    first, second = build_option("fp16").build("cpu"), build_option("fp16").build("cpu")
    assert first.loss_scale is not None
    assert second.loss_scale is not None
    first.loss_scale.update(overflowed=True)
    second.load_state(first.state())
    assert second.loss_scale.value == first.loss_scale.value == 32768


@pytest.mark.parametrize(
    ("field", "value", "hint"),
    [
        ("init_scale", 1000.0, "round, but is 1000; the nearest is 1024"),
        ("min_scale", 0.3, "0.25"),
        ("init_scale", 0.0, "than 0"),
        ("min_scale", 2.0**17, "min_scale 131072 must not be above init_scale 65536"),
    ],
)
def test_a_scale_that_would_round_is_refused(
    build_option: Build, field: str, value: float, hint: str
) -> None:
    with pytest.raises(ValidationError, match=hint):
        build_option("fp16", **{field: value})
