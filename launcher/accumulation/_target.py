"""From a wanted global batch to the number of micro-batches that makes it."""

from launcher.contracts import BatchPlan


def plan_for(
    target: int, *, name: str, micro_batch_size: int, ranks: int, seq_len: int, unit: int
) -> BatchPlan:
    """The plan whose step is exactly the target.

    Args:
        target: Wanted global batch, in samples or tokens.
        name: The setting that holds the target, for the message.
        micro_batch_size: Samples that pass through one device at once.
        ranks: Processes that each take their own samples.
        seq_len: Tokens in one sample.
        unit: Units of `target` in one sample: 1 for samples, `seq_len` for tokens.

    Raises:
        ValueError: No whole number of micro-batches makes the target.
    """
    smallest = micro_batch_size * ranks * unit
    if target % smallest == 0:
        return BatchPlan(micro_batch_size, target // smallest, ranks, seq_len)
    below = target // smallest * smallest
    per_sample = f" × seq_len {seq_len}" if unit != 1 else ""
    fitting = f"{below} and {below + smallest}" if below else f"{smallest}"
    sizes = _fitting_micro_batches(target, ranks * unit, micro_batch_size)
    other = f", or set micro_batch_size to {' or '.join(map(str, sizes))}" if sizes else ""
    raise ValueError(
        f"{name} = micro_batch_size {micro_batch_size} × accumulation × ranks {ranks}{per_sample} "
        f"must hold for a whole accumulation, so {name} must be a multiple of {smallest}, "
        f"but is {target}; nearest: {fitting}{other}"
    )


def _fitting_micro_batches(target: int, divisor: int, wanted: int) -> list[int]:
    """The sizes nearest to the wanted one, below and above, with which the target works."""
    if target % divisor:
        return []
    per_rank = target // divisor
    fitting = [size for size in range(1, per_rank + 1) if per_rank % size == 0]
    below = [size for size in fitting if size < wanted][-1:]
    above = [size for size in fitting if size > wanted][:1]
    return below + above
