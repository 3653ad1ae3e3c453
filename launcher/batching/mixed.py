"""Long and short samples in every window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from launcher.batching._orders import SortedWindows, longest_first, permutation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Mixed(SortedWindows):
    """The same share of long samples in every window, in random order otherwise."""

    kind: Literal["mixed"]
    long_share: float = Field(gt=0, lt=1)
    """Share of the samples that count as long: the longest ones. Every window has this share of
    them, up to one sample."""

    @override
    def order(
        self, lengths: npt.NDArray[np.int64], *, samples_per_step: int, seed: int
    ) -> npt.NDArray[np.int64]:
        import numpy as np

        del samples_per_step
        drawn = permutation(seed, len(lengths))
        count = round(self.long_share * len(lengths))
        is_long = np.zeros(len(lengths), dtype=bool)
        is_long[longest_first(range(len(lengths)), lengths)[:count]] = True
        parts = [drawn[is_long[drawn]], drawn[~is_long[drawn]]]
        # Each part is spread evenly over the epoch.
        places = [(np.arange(len(part)) + 0.5) / max(1, len(part)) for part in parts]
        order = np.argsort(np.concatenate(places), kind="stable")
        found: npt.NDArray[np.int64] = np.concatenate(parts)[order]
        return found
