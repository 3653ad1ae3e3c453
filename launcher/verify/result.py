"""The result of a verification: as a value, as JSON, as text, and as an exit status."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from launcher.config.schema import RunConfig
from launcher.contracts import ParallelismOption
from launcher.errors import NotTheSame
from launcher.verify.measure import FACTOR
from launcher.verify.session import CellResult, Comparison

FORMAT = 1
_PACKAGES = ("trainctl", "torch", "transformers", "deepspeed", "accelerate", "numpy")


@dataclass(frozen=True, slots=True)
class Verification:
    """Comparison of a config's training on several engines.

    Attributes:
        config: The user's config.
        ran: The config that the cells ran (smaller if `shrunk`), before engine and batch were set.
        samples_per_step: Global batch of every cell.
        seconds: Duration of all cells.
        time: End of the last cell, in UTC.
    """

    config: RunConfig
    ran: RunConfig
    shrunk: bool
    engines: Mapping[str, ParallelismOption]
    samples_per_step: int
    comparison: Comparison
    seconds: float
    time: str

    @property
    def cells(self) -> Sequence[CellResult]:
        """All cells: the reference and its second cut first."""
        return self.comparison.cells

    @property
    def wrong(self) -> list[CellResult]:
        """Cells that differ from the reference, or crashed."""
        return [cell for cell in self.cells if cell.status in {"different", "crashed"}]

    @property
    def compared(self) -> list[CellResult]:
        """Cells that ran, without reference and floor."""
        ran = {"equal", "different", "crashed"}
        return [cell for cell in self.cells if cell.status in ran and cell.role == "cell"]

    @property
    def ok(self) -> bool:
        """True if at least one cell ran, and each that ran is equal to the reference."""
        # If every engine refuses the config, nothing was compared and nothing is proved.
        return not self.wrong and bool(self.compared)

    def check(self) -> None:
        """Raise `NotTheSame` unless `ok`."""
        if self.ok:
            return
        if not self.wrong:
            raise NotTheSame("no cell was compared: every engine refuses this config")
        lines = [f"{name(cell)}: {cell.status}: {cell.reason}" for cell in self.wrong]
        count = f"{len(self.wrong)} of {len(self.wrong + self.equal)} cells"
        raise NotTheSame("\n  ".join([f"{count} do not train as the reference does", *lines]))

    @property
    def equal(self) -> list[CellResult]:
        """Cells that are equal to the reference."""
        return [cell for cell in self.cells if cell.status == "equal"]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values; a number that is not finite is text."""
        reference = self.comparison.reference
        values = {
            "format": FORMAT,
            "ok": self.ok,
            "time": self.time,
            "seconds": round(self.seconds, 1),
            "fingerprint": self.config.fingerprint(),
            "config": self.config.model_dump(mode="json"),
            "shrunk": self.shrunk,
            "ran": self.ran.model_dump(mode="json"),
            "versions": versions(),
            "steps": len(reference.run.losses),
            "samples_per_step": self.samples_per_step,
            "number_format": reference.run.number_format,
            "dropout_off": reference.run.dropout,
            "floor": {
                "loss": reference.floor.loss,
                "norm": reference.floor.norm,
                "score": reference.floor.score,
                "weights": self.floor_of_weights(),
            },
            "limits": {**asdict(self.comparison.limits), "factor": FACTOR},
            "reference": {
                "losses": reference.run.losses,
                "norms": reference.run.norms,
                "lrs": reference.run.lrs,
                "scores": reference.run.scores,
            },
            "engines": {
                key: option.model_dump(mode="json") for key, option in self.engines.items()
            },
            "cells": [asdict(cell) for cell in self.cells],
        }
        return {key: _standard(value) for key, value in values.items()}

    def floor_of_weights(self) -> float:
        """Return the largest distance of a parameter between two cuts after the last step."""
        # For a large model only the weights of the last step are stored.
        kept = [each for each in self.comparison.reference.floor.weights if each]
        return max(kept[-1].values(), default=0.0) if kept else 0.0


def name(cell: CellResult) -> str:
    """Return a cell's name for messages."""
    ranks = f"{cell.ranks} rank{'s' if cell.ranks > 1 else ''}"
    return f"{cell.engine}, {ranks}, accumulation {cell.accumulation}"


def headline(found: Verification) -> str:
    """Return what was run, in a line."""
    config, run = found.ran, found.comparison.reference.run
    return (
        f"{config.model.kind}, {config.optimizer.kind}, {run.number_format}: {len(run.losses)} "
        f"steps of {found.samples_per_step} samples"
    )


def summary(found: Verification) -> str:
    """Return the floor and what was allowed, in a line."""
    floor, limits = found.comparison.reference.floor, found.comparison.limits
    return (
        f"floor: loss {floor.loss:.1e}, norm {floor.norm:.1e}, weights "
        f"{found.floor_of_weights():.1e}; allowed: loss {limits.loss:.1e}, norm {limits.norm:.1e}, "
        f"weights {limits.weights:.0e} or {FACTOR:g} times the parameter's floor"
    )


def rows(found: Verification) -> Iterator[tuple[str, ...]]:
    """Yield the matrix as rows of text; the first one has the headings."""
    yield ("engine", "ranks", "accum.", "result", "loss", "norm", "weights", "")
    for cell in found.cells:
        yield row(cell)


def row(cell: CellResult) -> tuple[str, ...]:
    """Return one cell's row of the matrix."""
    moved = cell.deviation
    numbers = ("", "", "")
    if moved is not None and cell.role != "reference":
        numbers = (f"{moved.loss:.1e}", f"{moved.norm:.1e}", f"{moved.weights:.1e}")
    # "equal" would say that the reference was compared with something.
    shown = {"reference": "reference", "floor": "floor"}.get(cell.role, cell.status)
    status = shown if cell.status == "equal" else cell.status
    where = (cell.engine, str(cell.ranks), str(cell.accumulation))
    return (*where, status, *numbers, cell.reason.replace("\n", " "))


def versions() -> dict[str, str]:
    """Return the versions of the packages that the arithmetic depends on."""
    # Of the metadata: `trainctl run` calls this at its start and must not import torch.
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _standard(value: Any) -> Any:
    # JSON has no NaN or infinity; Python would write them, and other programs refuse the file.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _standard(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_standard(each) for each in value]
    return value
