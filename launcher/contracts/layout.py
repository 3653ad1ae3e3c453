"""The mesh of ranks: which axes there are, and which ranks read different data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
"""Mesh axes, slowest first: neighbouring ranks differ in `tp`, which communicates most."""
DATA_AXES = ("dp_replicate", "dp_shard")
"""Axes along which ranks read different data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Sizes of the mesh axes.

    Attributes:
        pp: Pipeline stages.
        dp_replicate: Data-parallel groups that each hold whole parameters.
        dp_shard: Data-parallel ranks that share the parameters of one group.
        cp: Ranks that share the positions of a sequence.
        tp: Ranks that share the matrices of a layer.
    """

    pp: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1

    @property
    def ranks(self) -> int:
        """Number of ranks in the mesh."""
        return math.prod(asdict(self).values())

    @property
    def data_ranks(self) -> int:
        """Number of ranks that read different data."""
        return self.dp_replicate * self.dp_shard

    def coordinates(self, rank: int) -> dict[str, int]:
        """Return a rank's position on every axis."""
        found: dict[str, int] = {}
        for axis, size in reversed(asdict(self).items()):
            rank, found[axis] = divmod(rank, size)
        return found

    def data_rank(self, rank: int) -> int:
        """Return which share of the data a rank reads, from 0 to data_ranks - 1."""
        place = self.coordinates(rank)
        return place["dp_replicate"] * self.dp_shard + place["dp_shard"]

    def is_first_of(self, axis: str, rank: int) -> bool:
        """Return True on the ranks with position 0 on an axis."""
        return self.coordinates(rank)[axis] == 0
