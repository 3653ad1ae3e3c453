"""Kinds whose micro-batch size is given, and the plan for a given global batch."""

from pydantic import Field

from launcher.contracts import AccumulationOption, BatchPlan


class FixedMicroBatch(AccumulationOption):
    """A micro-batch size that the user sets, not a search."""

    micro_batch_size: int = Field(gt=0, le=10**9)
    """Samples that pass through one device at once; fewer where a rank's share of the global batch
    is smaller."""


def plan_for(
    target: int, *, name: str, micro_batch_size: int, ranks: int, seq_len: int, unit: int
) -> BatchPlan:
    """Return the plan whose step is exactly `target`, in units of which a sample has `unit`."""
    # A rank whose share is smaller than a micro-batch takes its share at once, so that the same
    # setting serves any number of ranks.
    share, rest = divmod(target, ranks * unit)
    if rest == 0 and 0 < share < micro_batch_size:
        micro_batch_size = share
    smallest = micro_batch_size * ranks * unit
    if target % smallest == 0:
        return BatchPlan(micro_batch_size, target // smallest, ranks, seq_len)
    below = target // smallest * smallest
    nearest = f"fit: {below} and {below + smallest}" if below else f"fits: {smallest}"
    sizes = _fitting_sizes(target, ranks * unit, micro_batch_size)
    other = f"; or set micro_batch_size to {' or '.join(map(str, sizes))}" if sizes else ""
    length = f" × seq_len {seq_len}" if unit != 1 else ""
    raise ValueError(
        f"{name} must be a multiple of {smallest} (micro_batch_size {micro_batch_size} × ranks "
        f"{ranks}{length}), but is {target}; the nearest that {nearest}{other}"
    )


def _fitting_sizes(target: int, divisor: int, size: int) -> list[int]:
    # Without a whole share per rank, no micro-batch size is a solution.
    if target % divisor:
        return []
    per_rank = target // divisor
    below = next((n for n in range(min(size, per_rank), 0, -1) if per_rank % n == 0), None)
    above = next((n for n in range(size + 1, per_rank + 1) if per_rank % n == 0), None)
    return [n for n in (below, above) if n is not None]
