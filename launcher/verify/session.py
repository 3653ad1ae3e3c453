"""Runs the cells in groups of ranks that the launcher starts, and judges them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.config.schema import RunConfig
from launcher.contracts import ParallelismOption
from launcher.errors import (
    ConfigError,
    Interrupted,
    LaunchError,
    Preempted,
    Problem,
    TrainctlError,
)
from launcher.launch import run_program
from launcher.run_dir import RunDir
from launcher.verify.cells import REFERENCE, Cell, cell_of, reference_cuts
from launcher.verify.compare import (
    NO_FLOOR,
    Deviation,
    Difference,
    Reference,
    deviation,
    first_difference,
    floor_of,
    unstable,
)
from launcher.verify.files import CELLS, record_file, started_file
from launcher.verify.measure import allowed, limits_of
from launcher.verify.trajectory import Trajectory

_PROGRAM = "launcher.verify._rank"


@dataclass(frozen=True, slots=True)
class CellResult:
    """Result of a cell.

    Attributes:
        engine: Name of the engine.
        ranks: Number of processes.
        accumulation: Micro-batches of each data rank in a full window.
        status: `equal`, `different`, `refused` or `crashed`.
        role: `reference`, `floor` (its second cut), or `cell`.
        reason: Why it is refused or crashed, or what differs first; "" for an equal cell.
        deviation: Distances from the reference; None where it did not run to its end.
        difference: The first thing that differs; None where nothing does.
        seconds: Duration on the slowest rank.
    """

    engine: str
    ranks: int
    accumulation: int
    status: str
    role: str = "cell"
    reason: str = ""
    deviation: Deviation | None = None
    difference: Difference | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cells of a config, and what they were compared with."""

    cells: Sequence[CellResult]
    reference: Reference
    limits: Deviation
    """Deviations that were allowed; that of the weights is the one without a floor."""


@dataclass(slots=True)
class Session:
    """Runs cells in one folder, which is removed unless a cell crashed.

    Attributes:
        max_records: Most records of each part of the data; None for all.
        report: Called with each result.
    """

    config: RunConfig
    samples_per_step: int
    steps: int
    folder: Path
    max_records: int | None = None
    report: Callable[[CellResult], None] = lambda _: None
    _worlds: int = 0
    _crashed: bool = field(default=False)

    def run(
        self,
        engines: dict[str, ParallelismOption],
        reference: ParallelismOption,
        ranks: Sequence[int],
        accumulations: Sequence[int],
    ) -> Comparison:
        """Run the reference, its second cut and every cell."""
        try:
            return self._run(engines, reference, ranks, accumulations)
        finally:
            # After a crash the logs of its ranks are what the user needs.
            if not self._crashed:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _run(
        self,
        engines: dict[str, ParallelismOption],
        single: ParallelismOption,
        ranks: Sequence[int],
        accumulations: Sequence[int],
    ) -> Comparison:
        cuts = reference_cuts(self.samples_per_step, accumulations)
        alone = [self._cell(REFERENCE, single, 1, cut) for cut in cuts if cut is not None]
        for cell in alone:
            if cell.refusal is not None:
                message = f"the reference cannot be run: {cell.refusal}"
                raise ConfigError([Problem("", message)])
        # First, because every other cell is compared with their weights on the disk.
        reference, results = self._references(alone)
        cells = [
            self._cell(name, option, size, accumulation)
            for size in ranks
            for name, option in engines.items()
            for accumulation in accumulations
        ]
        done = {(each.engine, each.ranks, each.accumulation) for each in results}
        # One process on `single` is asked for by `--ranks 1`, but is the reference itself.
        cells = [c for c in cells if (c.engine, c.ranks, c.accumulation) not in done]
        for cell in cells:
            if cell.refusal is not None:
                results.append(self._reported(_result(cell, "refused", cell.refusal)))
        # All cells of a size share their ranks: starting a rank takes longer than a small cell.
        for size in sorted(set(ranks)):
            world = [cell for cell in cells if cell.ranks == size and cell.config is not None]
            results += self._judged(world, size, reference)
        limits, floor = reference.limits, reference.floor
        found = Deviation(
            loss=allowed(limits.curve, floor.loss),
            norm=allowed(limits.curve, floor.norm),
            weights=limits.weights,
            score=allowed(limits.score, floor.score),
        )
        order = {(c.engine, c.ranks, c.accumulation): place for place, c in enumerate(cells)}
        results.sort(key=lambda r: order.get((r.engine, r.ranks, r.accumulation), -1))
        return Comparison(results, reference, found)

    def _cell(self, engine: str, option: ParallelismOption, ranks: int, accumulation: int) -> Cell:
        return cell_of(
            self.config,
            option,
            engine=engine,
            ranks=ranks,
            accumulation=accumulation,
            samples_per_step=self.samples_per_step,
        )

    def _references(self, alone: Sequence[Cell]) -> tuple[Reference, list[CellResult]]:
        runs = dict(self._world(alone, 1, stored=1))
        for found in runs.values():
            if isinstance(found, TrainctlError):
                raise found
        [base], *others = (_trajectories(runs[cell.id]) for cell in alone)
        objective = self.config.objective
        floor = floor_of(base, others[0][0], objective) if others else NO_FLOOR
        reference = Reference(base, floor, limits_of(base.number_format), objective)
        results = [self._reported(_result(alone[0], "equal", role="reference", run=[base]))]
        if others:
            wrong = unstable(reference)
            results.append(
                self._reported(
                    CellResult(
                        REFERENCE,
                        1,
                        alone[1].accumulation,
                        "different" if wrong else "equal",
                        "floor",
                        wrong.text if wrong else "",
                        deviation(others[0], reference),
                        wrong,
                        others[0][0].seconds,
                    )
                )
            )
        return reference, results

    def _judged(
        self, cells: Sequence[Cell], ranks: int, reference: Reference
    ) -> Iterator[CellResult]:
        by_id = {cell.id: cell for cell in cells}
        for name, found in self._world(cells, ranks, stored=0):
            cell = by_id[name]
            if isinstance(found, TrainctlError):
                # What a config cannot do is a refusal, even if only the ranks can see it.
                refused = isinstance(found, ConfigError | LaunchError)
                status = "refused" if refused else "crashed"
                yield self._reported(_result(cell, status, _text(found)))
                continue
            wrong = first_difference(found, reference)
            yield self._reported(
                CellResult(
                    cell.engine,
                    cell.ranks,
                    cell.accumulation,
                    "different" if wrong else "equal",
                    reason=f"step {wrong.step}: {wrong.text}" if wrong else "",
                    deviation=deviation(found, reference),
                    difference=wrong,
                    seconds=max(own.seconds for own in found),
                )
            )

    def _world(
        self, cells: Sequence[Cell], ranks: int, *, stored: int
    ) -> Iterator[tuple[str, list[Trajectory] | TrainctlError]]:
        """Run cells on new ranks; after a failure, run those that are left on further new ranks.

        The first `stored` cells are references, which store their weights.
        """
        pending = list(cells)
        while pending:
            run_dir = self._prepare(pending, stored)
            config = pending[0].config
            assert config is not None, "refused cells are not run"  # noqa: S101
            error: TrainctlError | None = None
            try:
                run_program(config, run_dir, _PROGRAM)
            except (Interrupted, Preempted):
                # The user's signal ends the verification, not only this cell.
                raise
            except TrainctlError as failure:
                error = failure
            finished = [cell for cell in pending if _finished(run_dir, cell, ranks)]
            for cell in finished:
                files = (record_file(run_dir, cell.id, rank) for rank in range(ranks))
                yield cell.id, [Trajectory.read(file) for file in files]
            rest = [cell for cell in pending if cell not in finished]
            if rest and error is None:
                error = LaunchError("the ranks ended without a record of the cell")
            if isinstance(error, LaunchError) and not finished and not _began(run_dir, rest):
                # No cell would find more ranks or devices.
                for cell in rest:
                    yield cell.id, error
                return
            if rest and (not finished or not started_file(run_dir, rest[0].id).exists()):
                # The ranks were new for this cell, or failed before it began: no earlier cell can
                # be the cause. In the other case it runs once more, on new ranks.
                assert error is not None, "set above"  # noqa: S101
                self._crashed = self._crashed or not isinstance(error, ConfigError)
                yield rest[0].id, error
                rest = rest[1:]
            pending, stored = rest, max(0, stored - len(finished))

    def _prepare(self, cells: Sequence[Cell], stored: int) -> RunDir:
        self._worlds += 1
        # A new directory for each start: the logs of an earlier crash stay readable.
        run_dir = RunDir(self.folder / f"world-{self._worlds}")
        weights = self.folder / "reference"
        first = cells[0].config
        assert first is not None, "refused cells are not run"  # noqa: S101
        job: dict[str, Any] = {
            "steps": self.steps,
            "max_records": self.max_records,
            "reference": str(weights),
            "cells": [
                {
                    "id": cell.id,
                    "config": json.loads(cell.config.to_json()),
                    "stored": place < stored,
                }
                for place, cell in enumerate(cells)
                if cell.config is not None
            ],
        }
        try:
            weights.mkdir(parents=True, exist_ok=True)
            run_dir.path.mkdir()
            run_dir.config.write_text(first.to_json(), encoding="utf-8")
            (run_dir.path / CELLS).write_text(json.dumps(job), encoding="utf-8")
        except OSError as error:
            raise LaunchError(f"cannot write to {run_dir.path}: {error.strerror}") from error
        return run_dir

    def _reported(self, result: CellResult) -> CellResult:
        self.report(result)
        return result


def _result(
    cell: Cell,
    status: str,
    reason: str = "",
    *,
    role: str = "cell",
    run: Sequence[Trajectory] = (),
) -> CellResult:
    zero = Deviation(0.0, 0.0, 0.0, None) if run else None
    seconds = max((own.seconds for own in run), default=0.0)
    return CellResult(
        cell.engine,
        cell.ranks,
        cell.accumulation,
        status,
        role,
        reason,
        deviation=zero,
        seconds=seconds,
    )


def _began(run_dir: RunDir, cells: Sequence[Cell]) -> bool:
    return any(started_file(run_dir, cell.id).exists() for cell in cells)


def _finished(run_dir: RunDir, cell: Cell, ranks: int) -> bool:
    return all(record_file(run_dir, cell.id, rank).exists() for rank in range(ranks))


def _trajectories(found: list[Trajectory] | TrainctlError) -> list[Trajectory]:
    assert not isinstance(found, TrainctlError), "raised before"  # noqa: S101
    return found


def _text(error: TrainctlError) -> str:
    if isinstance(error, ConfigError):
        return "; ".join(f"{each.key}: {each.message}" for each in error.problems)
    return f"{type(error).__name__}: {error}"
