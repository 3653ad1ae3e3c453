"""Random order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from launcher.batching._orders import permutation
from launcher.contracts import BatchingOption

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class RandomOrder(BatchingOption):
    """Another random order in each epoch."""

    kind: Literal["random"]

    @override
    def order(
        self, lengths: npt.NDArray[np.int64], *, samples_per_step: int, seed: int
    ) -> npt.NDArray[np.int64]:
        del samples_per_step
        return permutation(seed, len(lengths))
