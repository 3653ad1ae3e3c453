import pytest
import torch
from torch import Tensor

from launcher.precision._rounding import Compensated, Rounding, Stochastic

SHAPES = [(), (1,), (7,), (3, 5), (0,), (2, 3, 4)]


def widened(rounding: Rounding, weight: Tensor, kept: dict[str, Tensor]) -> Tensor:
    copy = torch.empty(weight.shape)
    rounding.widen(weight, copy, kept)
    return copy


def wide(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Float32 values of every size, with all their bits in use."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(-30, 30, shape, generator=generator)
    return torch.randn(shape, generator=generator) * torch.pow(2.0, sizes)


@pytest.mark.parametrize("shape", SHAPES)
def test_compensated_loses_nothing(shape: tuple[int, ...]) -> None:
    value = wide(shape)
    weight = torch.empty(shape, dtype=torch.bfloat16)
    kept: dict[str, Tensor] = {}
    Compensated().narrow(value.clone(), weight, kept)
    assert kept["low_bits"].dtype == torch.int16
    assert torch.equal(widened(Compensated(), weight, kept), value)


def test_compensated_rounds_to_nearest() -> None:
    value = wide((100_000,))
    weight = torch.empty_like(value, dtype=torch.bfloat16)
    Compensated().narrow(value.clone(), weight, {})
    halfway = (value.view(torch.int32) & 0xFFFF) == 0x8000  # torch rounds these to even
    assert torch.equal(weight[~halfway], value.bfloat16()[~halfway])
    # Beyond its last bit a bfloat16 of eight bits is at most 2^-8 of itself away.
    assert ((weight.float() - value).abs() <= value.abs() * 2**-8).all()


@pytest.mark.parametrize("low", [0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
@pytest.mark.parametrize("high", [0x0000, 0x3F80, 0x3F81, 0x7F7F, 0x8000, 0xBF80, 0xFF7F])
def test_compensated_at_the_edges(high: int, low: int) -> None:
    bits = high << 16 | low
    value = torch.tensor([bits - (bits >> 31 << 32)], dtype=torch.int32).view(torch.float32)
    weight = torch.empty(1, dtype=torch.bfloat16)
    kept: dict[str, Tensor] = {}
    Compensated().narrow(value.clone(), weight, kept)
    back = widened(Compensated(), weight, kept)
    assert torch.equal(back.view(torch.int32), value.view(torch.int32))


@pytest.mark.parametrize("rounding", [Compensated(), Stochastic()])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_fits_is_not_changed(rounding: Rounding, shape: tuple[int, ...]) -> None:
    weight = wide(shape).bfloat16()
    before = weight.clone()
    kept: dict[str, Tensor] = {}
    for _ in range(3):
        rounding.begin_step()
        rounding.narrow(widened(rounding, weight, kept), weight, kept)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("rounding", [Compensated(), Stochastic()])
def test_weights_need_not_be_contiguous(rounding: Rounding) -> None:
    values = wide((4, 6)).bfloat16()
    weight = torch.empty(6, 4, dtype=torch.bfloat16).t()
    weight.copy_(values)
    rounding.narrow(widened(rounding, weight, {}), weight, {})
    assert torch.equal(weight, values)


@pytest.mark.parametrize("value", [1 + 2**-10, -(1 + 2**-10), 3e-5, 1 + 2**-8 + 2**-9])
def test_stochastic_is_right_on_average(value: float) -> None:
    count = 200_000
    weight = torch.empty(count, dtype=torch.bfloat16)
    Stochastic().narrow(torch.full((count,), value), weight, {})
    rounded = weight.double()
    lower, upper = sorted(set(rounded.tolist()))  # the neighbours, and nothing else
    assert lower < torch.tensor(value).item() < upper
    # Five standard deviations of the mean of that many coin throws.
    assert abs(rounded.mean().item() - value) < 5 * (upper - lower) / 2 / count**0.5


def test_stochastic_draws_differ_by_place_and_step_and_repeat_with_the_state() -> None:
    value = torch.full((1000,), 1 + 2**-9)

    def rounded(rounding: Stochastic) -> Tensor:
        rounding.begin_step()
        weight = torch.empty(1000, dtype=torch.bfloat16)
        rounding.narrow(value.clone(), weight, {})
        return weight

    first = Stochastic()
    steps = [rounded(first) for _ in range(4)]
    assert not torch.equal(steps[0], steps[1])
    assert not torch.equal(steps[0][:500], steps[0][500:])
    second = Stochastic()
    rounded(second)
    second_state = {key: state.clone() for key, state in second.state().items()}
    resumed = Stochastic()
    resumed.load_state(second_state)
    assert all(torch.equal(rounded(resumed), step) for step in steps[1:])


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
@pytest.mark.parametrize("rounding", [Compensated(), Stochastic()])
def test_infinities_stay_what_they_are(rounding: Rounding, value: float) -> None:
    weight = torch.empty(64, dtype=torch.bfloat16)
    rounding.narrow(torch.full((64,), value), weight, {})
    assert torch.equal(weight, torch.full((64,), value, dtype=torch.bfloat16))


# The quiet NaN of x86, the canonical one of CUDA, one whose payload lies in the lower half, and
# their negatives.
NANS = [0x7FC00000, 0x7FFFFFFF, 0x7F800001, 0xFFC00000, 0xFFFFFFFF, 0xFF800001]


@pytest.mark.parametrize("bits", NANS, ids=hex)
@pytest.mark.parametrize("rounding", [Compensated(), Stochastic()])
def test_every_nan_stays_a_nan(rounding: Rounding, bits: int) -> None:
    value = torch.full((64,), bits - (bits >> 31 << 32), dtype=torch.int32).view(torch.float32)
    weight = torch.empty(64, dtype=torch.bfloat16)
    kept: dict[str, Tensor] = {}
    rounding.narrow(value, weight, kept)
    assert weight.isnan().all()
    assert widened(rounding, weight, kept).isnan().all()
