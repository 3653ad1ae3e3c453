import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from launcher.contracts import Horizon
from launcher.scheduler._length import Length, resolve, resolve_positive

LENGTH: TypeAdapter[Any] = TypeAdapter(Length)
HORIZON = Horizon(max_steps=1000, samples_per_step=16, tokens_per_step=2048, steps_per_epoch=62.5)


@pytest.mark.parametrize(
    ("written", "steps"),
    [
        (0, 0),
        (300, 300),
        (0.0, 0),
        (0.05, 50),
        (0.0501, 51),
        ("5%", 50),
        ("5.01%", 51),
        ("0%", 0),
        ("100%", 1000),
        ("33.4 %", 334),
        ("2 epochs", 125),
        ("2ep", 125),
        ("1 epoch", 63),
        ("0.5 ep", 32),
        ("1000 samples", 63),
        ("1k samples", 63),
        ("16 sample", 1),
        ("2048 tokens", 1),
        ("10M tokens", 4883),
        ("0.01 B tokens", 4883),
        ("300 steps", 300),
        ("1 step", 1),
        ("1.5k steps", 1500),
        (" 7 steps ", 7),
    ],
)
def test_every_unit_comes_to_whole_steps(written: float | str, steps: int) -> None:
    assert resolve("x", LENGTH.validate_python(written, strict=True), HORIZON) == steps


@pytest.mark.parametrize("steps", [7, 30, 100, 1000, 12345])
@pytest.mark.parametrize("fraction", [0.01, 0.03, 0.07, 0.1, 0.29, 0.999])
def test_a_fraction_is_transformers(fraction: float, steps: int) -> None:
    # TrainingArguments.get_warmup_steps
    assert resolve("x", fraction, Horizon(steps, 1, 1, 1.0)) == math.ceil(steps * fraction)


def test_text_is_exact_where_floats_are_not() -> None:
    horizon = Horizon(100, 1, 1, 1.0)
    assert resolve("x", 0.07, horizon) == 8
    assert resolve("x", "7%", horizon) == 7


def test_an_epoch_that_divides_evenly_gains_no_step() -> None:
    assert resolve("x", "3 epochs", Horizon(1000, 30, 1, 100 / 30)) == 10


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (-1, "must not be negative, but is -1"),
        (-0.1, "must not be negative"),
        (1.0, "must be below 1, but is 1.0"),
        (300.0, "fraction of the run"),
        (True, "True is not a length"),
        (None, "None is not a length"),
        ([5], "is not a length"),
        ("", "'' is not a length"),
        ("five", "write 300, 0.05, '5%'"),
        ("5 weeks", "'5 weeks' is not a length"),
        ("-5%", "is not a length"),
        ("5k%", "is not a length"),
        ("1e3 steps", "is not a length"),
        ("300", "'300' is not a length; write 300"),
        ("5 M", "'5 M' is not a length"),
        ("nan", "is not a length"),
        ("∞ steps", "is not a length"),
        ("٣ steps", "is not a length"),
        (math.nan, "below 1"),
        (math.inf, "below 1"),
    ],
)
def test_what_is_no_length_is_refused(written: object, message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        LENGTH.validate_python(written, strict=True)
    assert message in str(refused.value)
    assert refused.value.error_count() == 1


def test_a_part_that_must_have_steps_says_what_it_came_to() -> None:
    with pytest.raises(ValueError, match=r"T_0 must be at least one step, but is 0% \(0 steps\)"):
        resolve_positive("T_0", "0%", HORIZON)


@pytest.mark.parametrize("written", [5, 0.05, "5%", "2 epochs"])
def test_a_length_is_written_back_as_it_was_read(written: float | str) -> None:
    assert LENGTH.validate_json(LENGTH.dump_json(written)) == written
