"""Samples of similar length together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from launcher.batching._orders import SortedWindows, grouped

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class LengthGrouped(SortedWindows):
    """Samples of similar length in a micro-batch, so that little is padded."""

    kind: Literal["length_grouped"]
    mega_batch_steps: int = Field(gt=0, le=100_000)
    """Windows whose samples are sorted by length together; their order is random. More of them need
    less padding, but the lengths within a window are less random. 1 sorts within each window: the
    windows are those of `batching=random`, and so are their gradients."""

    @override
    def order(
        self, lengths: npt.NDArray[np.int64], *, samples_per_step: int, seed: int
    ) -> npt.NDArray[np.int64]:
        return grouped(
            lengths, steps=self.mega_batch_steps, samples_per_step=samples_per_step, seed=seed
        )
