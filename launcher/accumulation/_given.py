"""What the kinds share that are told how much passes through a device at once."""

from pydantic import Field

from launcher.contracts import AccumulationOption


class GivenMicroBatch(AccumulationOption):
    """The micro-batch is given, and not found."""

    micro_batch_size: int = Field(gt=0, le=10**9)
    """Samples that pass through one device at once; fewer where a rank's share of the global batch
    is smaller."""
