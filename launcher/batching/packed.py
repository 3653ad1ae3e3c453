"""Several samples in a row, which do not see each other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from launcher.batching._orders import permutation
from launcher.contracts import BatchingOption

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from launcher.contracts import Samples, Task

_log = logging.getLogger("trainctl.batching")


class Packed(BatchingOption):
    """Rows of `task.seq_len` tokens from several samples, which do not see each other.

    A step is then a number of rows: `accumulation` counts them. Evaluations are not packed.
    """

    kind: Literal["packed"]

    @override
    def samples(
        self, samples: Samples, task: Task, *, seq_len: int, network: Callable[[], nn.Module]
    ) -> Samples:
        from launcher.batching._rows import packed_rows

        rows = packed_rows(samples, task, capacity=seq_len, network=network)
        empty = 1 - int(rows.lengths.sum()) / (len(rows) * seq_len)
        _log.info(
            "packed %s samples into %s rows of %s tokens; %.2f%% of the rows is empty",
            f"{len(samples):,}",
            f"{len(rows):,}",
            f"{seq_len:,}",
            100 * empty,
        )
        return rows

    @override
    def order(
        self, lengths: npt.NDArray[np.int64], *, samples_per_step: int, seed: int
    ) -> npt.NDArray[np.int64]:
        del samples_per_step
        return permutation(seed, len(lengths))
