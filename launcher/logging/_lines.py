"""Format rows as text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from launcher.contracts import Row

_WINDOW_ROWS = 20


class Pace:
    """Estimates the remaining time of the run from its last rows."""

    # From the last rows, because the first steps compile and warm up; by elapsed time, so that
    # evaluations and saves are included.

    def __init__(self, start_step: int, max_steps: int) -> None:
        self._max_steps = max_steps
        self._seen: deque[tuple[float, float]] = deque([(start_step, 0.0)], maxlen=_WINDOW_ROWS)

    def eta(self, row: Row) -> str:
        """Return the time left after a row, formatted by `clock`; "" if unknown."""
        step, elapsed = row.get("step"), row.get("elapsed_s")
        if step is None or elapsed is None:
            return ""
        first_step, first_elapsed = self._seen[0]
        self._seen.append((step, elapsed))
        if step <= first_step:
            return ""
        return clock((elapsed - first_elapsed) / (step - first_step) * (self._max_steps - step))


def clock(seconds: float) -> str:
    """Return a duration as `0:42`, `1:02:03` or `2 d 3:04:05`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def training(row: Row) -> list[tuple[str, str]]:
    """Return (label, value) of the training numbers of a row; no label before a unit."""
    parts = [
        ("loss", _number(row.get("loss"), ".4f")),
        ("lr", _number(row.get("lr"), ".2e")),
        ("grad_norm", _number(row.get("grad_norm"), ".3g")),
        ("", f"{_number(row.get('tokens_per_s'), ',.0f')} tok/s"),
    ]
    if (memory := row.get("memory_mib")) is not None:
        parts.append(("", f"{memory:,.0f} MiB"))
    if (scale := row.get("loss_scale")) is not None:
        parts.append(("scale", f"{scale:,g}"))
    if skipped := row.get("skipped"):
        parts.append(("skipped", f"{skipped:,}"))
    return parts


def scores(row: Row) -> list[tuple[str, str]]:
    """Return (label, value) of the validation scores of a row."""
    return [(key, _number(value, ".4f")) for key, value in row.items() if key.startswith("eval_")]


def joined(parts: Sequence[tuple[str, str]]) -> str:
    return "  ".join(f"{label} {value}" if label else value for label, value in parts)


def share(done: int, total: int) -> str:
    return f"{done:,}/{total:,}  {done / total:.0%}"


def position(row: Row, max_steps: int) -> str:
    """Return `step  12/100`, of equal width at every step."""
    total = str(max_steps)
    return f"step {row['step']:>{len(total)}}/{total}"


def _number(value: float | None, form: str) -> str:
    if value is None:
        return "n/a"
    # In fixed notation a diverged loss would fill the line.
    return f"{value:{form}}" if abs(value) < 1e9 else f"{value:.3e}"
