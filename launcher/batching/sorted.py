"""Curriculum by length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from launcher.batching._orders import SortedWindows, longest_first, permutation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Sorted(SortedWindows):
    """Samples sorted by length in every epoch; those of equal length in random order."""

    kind: Literal["sorted"]
    descending: bool
    """Begin with the longest samples instead of the shortest."""

    @override
    def order(
        self, lengths: npt.NDArray[np.int64], *, samples_per_step: int, seed: int
    ) -> npt.NDArray[np.int64]:
        del samples_per_step
        found = longest_first(permutation(seed, len(lengths)), lengths)
        return found if self.descending else found[::-1]
