"""Lengths of the parts of a schedule, in steps or in other units."""

import math
import re
from decimal import Decimal
from typing import Annotated, TypeVar

from pydantic import PlainValidator

from launcher.contracts import Horizon, ScheduleError

_TEXT = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<scale>[kMGBT]?)\s*(?P<unit>%|[a-z]*)")
_SCALES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_UNITS = {
    "%": "%",
    **dict.fromkeys(("step", "steps"), "steps"),
    **dict.fromkeys(("ep", "epoch", "epochs"), "epochs"),
    **dict.fromkeys(("sample", "samples"), "samples"),
    **dict.fromkeys(("tok", "token", "tokens"), "tokens"),
}
_Items = TypeVar("_Items")
_HOW = "write 300, 0.05, '5%', '2 epochs', '1000 samples', '10M tokens' or '300 steps'"
# Below 2^53, so that every step is exact as a float.
_LIMIT = 10**15


def _parsed(text: str) -> tuple[Decimal, str]:
    match = _TEXT.fullmatch(text.strip())
    unit = _UNITS.get(match["unit"]) if match else None
    if not match or unit is None or (unit == "%" and match["scale"]):
        raise ValueError(f"{text!r} is not a length; {_HOW}")
    # Decimal: 0.07 of 100 would be 8 steps in floating point, rounded up.
    amount = Decimal(match["number"]) * _SCALES[match["scale"]]
    if amount > _LIMIT:
        raise ValueError(f"a length must be at most {_LIMIT:.0e}, but is {text!r}")
    return amount, unit


def _checked(value: object) -> int | float | str:
    # The value is returned as written: the unit stays in config.json, and a resume with another
    # batch size resolves it again.
    if isinstance(value, str):
        _parsed(value)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        # Not a TypeError: pydantic collects only ValueErrors.
        raise ValueError(f"{value!r} is not a length; {_HOW}")  # noqa: TRY004
    elif value < 0:
        raise ValueError(f"a length must not be negative, but is {value}")
    elif isinstance(value, float) and not value < 1:
        raise ValueError(
            "a length with a decimal point is a fraction of the run and must be below 1, "
            f"but is {value}; {_HOW}"
        )
    elif value > _LIMIT:
        raise ValueError(f"a length must be at most {_LIMIT:.0e}, but is more")
    return value


Length = Annotated[
    int | float | str, PlainValidator(_checked, json_schema_input_type=int | float | str)
]
"""Optimizer steps (an integer), a fraction of the run (a float below 1), or an amount with a unit:
`5%`, `2 epochs`, `2ep`, `1000 samples`, `10M tokens`, `300 steps`."""


def not_empty(values: tuple[_Items, ...]) -> tuple[_Items, ...]:
    """Refuse a tuple without items."""
    # pydantic's `min_length` would count items that are wrong as missing.
    if not values:
        raise ValueError("must not be empty")
    return values


def resolve(name: str, length: float | str, horizon: Horizon) -> int:
    """Return the length in optimizer steps, rounded up.

    Raises:
        ScheduleError: Epochs, and the horizon does not know their length: it is NaN.
    """
    if isinstance(length, int):
        return length
    if isinstance(length, float):
        # In floating point as Transformers does it: 0.07 of 100 steps are 8, though "7%" are 7.
        return math.ceil(horizon.max_steps * length)
    amount, unit = _parsed(length)
    match unit:
        case "%":
            steps = amount * horizon.max_steps / 100
        case "epochs":
            if math.isnan(horizon.steps_per_epoch):
                raise ScheduleError(
                    name,
                    f"is {length}, which has no known number of steps before the data is read; "
                    "give the size of the training set",
                )
            # Rounded to a billionth: an epoch that divides evenly must not gain a step.
            steps = round(amount * Decimal(horizon.steps_per_epoch), 9)
        case "samples":
            steps = amount / horizon.samples_per_step
        case "tokens":
            steps = amount / horizon.tokens_per_step
        case _:
            steps = amount
    return math.ceil(steps)


def is_zero(length: float | str) -> bool:
    """Return True if a length is zero, however long the run is."""
    return not (_parsed(length)[0] if isinstance(length, str) else length)


def resolve_positive(name: str, length: float | str, horizon: Horizon) -> int:
    """Return the length in optimizer steps; raise ScheduleError if it comes to none."""
    steps = resolve(name, length, horizon)
    if steps < 1:
        raise ScheduleError(name, f"must be at least one step, but is {describe(length, steps)}")
    return steps


def describe(length: float | str, steps: int) -> str:
    return str(length) if isinstance(length, int) else f"{length} ({steps} steps)"
