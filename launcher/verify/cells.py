"""The cells of a verification: an engine, a number of ranks and a cut of the global batch each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import cast

from launcher.config import rules
from launcher.config.presets import preset_names, preset_option
from launcher.config.schema import RunConfig
from launcher.contracts import AccumulationOption, LaunchOption, ParallelismOption
from launcher.errors import ConfigError, Problem
from launcher.suggest import closest, did_you_mean

REFERENCE = "single"
"""Preset of the engine that all others are compared with."""
OWN = "config"
"""Name of the config's own engine where it is no preset as it is packaged."""
ALL = "all"


@dataclass(frozen=True, slots=True)
class Cell:
    """One run to compare.

    Attributes:
        engine: Name of a preset of `parallelism`, or `OWN`.
        ranks: Number of processes.
        accumulation: Micro-batches of each data rank in a full window.
        config: The config to run; None where it is refused.
        refusal: Why it is not run; None where it is.
    """

    engine: str
    ranks: int
    accumulation: int
    config: RunConfig | None = field(default=None, compare=False)
    refusal: str | None = field(default=None, compare=False)

    @property
    def id(self) -> str:
        """Name of the cell's folder."""
        return (
            f"{self.engine.replace('/', '-')}-ranks-{self.ranks}-accumulation-{self.accumulation}"
        )


def engines(
    config: RunConfig, asked: Sequence[str], config_dirs: Sequence[str | Path] = ()
) -> dict[str, ParallelismOption]:
    """Return the engines to compare, by name of their preset."""
    known = preset_names("parallelism", config_dirs)
    names = list(dict.fromkeys(asked))
    if ALL in names:
        names = [*known, OWN]
    for name in names:
        if name not in {*known, OWN}:
            hint = did_you_mean(closest(name, known)) or f"; it can be: {', '.join(known)}, {OWN}"
            raise ConfigError([Problem("--engines", f"no preset of parallelism: {name!r}{hint}")])
    found: dict[str, ParallelismOption] = {
        name: _option(name, config_dirs) for name in names if name != OWN
    }
    # `all` adds the config's own engine only if the user changed a setting of its preset. An
    # unchanged preset is in the list already, and a second run of it would show nothing.
    if OWN in names and (OWN in asked or config.parallelism not in found.values()):
        found[OWN] = config.parallelism
    return found


def reference_option(config_dirs: Sequence[str | Path] = ()) -> ParallelismOption:
    """Return the option of the engine that the others are compared with."""
    return _option(REFERENCE, config_dirs)


def reference_cuts(samples_per_step: int, accumulations: Sequence[int]) -> tuple[int, int | None]:
    """Return the accumulations of the reference and of its second cut; None without a second."""
    # The cuts that the cells use are preferred: rounding depends on the sizes of the matrices, so
    # that the floor is measured where it is applied.
    asked = [each for each in accumulations if samples_per_step % each == 0]
    first = min(asked, default=1)
    if others := [each for each in asked if each != first]:
        return first, others[0]
    divisors = [n for n in range(1, samples_per_step + 1) if samples_per_step % n == 0]
    # About four times as many micro-batches: the second cut must add in a really different order.
    others = [n for n in divisors if n != first]
    return first, min(others, key=lambda n: abs(n - 4 * first), default=None)


def cell_of(
    config: RunConfig,
    option: ParallelismOption,
    *,
    engine: str,
    ranks: int,
    accumulation: int,
    samples_per_step: int,
) -> Cell:
    """Return a cell with its config, or with the reason why it is refused."""
    cell = Cell(engine, ranks, accumulation)
    try:
        data_ranks = option.layout(ranks).data_ranks
    except ValueError as error:
        return _refused(cell, str(error))
    # The global batch is the same in all cells, since another one would be another training. A
    # larger accumulation therefore means a smaller micro-batch.
    total = samples_per_step
    micro_batch_size, rest = divmod(total, data_ranks * accumulation)
    if rest or not micro_batch_size:
        return _refused(
            cell,
            f"a global batch of {total} is no multiple of {data_ranks} data ranks × accumulation "
            f"{accumulation}",
        )
    update = {
        "parallelism": option,
        "accumulation": _batch(total, micro_batch_size),
        "launch": _launch(ranks, _common(config.launch)),
    }
    composed = config.model_copy(update=update)
    if problems := rules.broken(composed):
        found = "; ".join(f"{each.key}: {each.message}" for each in problems)
        return _refused(cell, found)
    return Cell(engine, ranks, accumulation, composed)


def _refused(cell: Cell, reason: str) -> Cell:
    return Cell(cell.engine, cell.ranks, cell.accumulation, None, reason)


def _option(preset: str, config_dirs: Sequence[str | Path]) -> ParallelismOption:
    found = preset_option("parallelism", [f"parallelism={preset}"], config_dirs)
    return cast(ParallelismOption, found)


@cache
def _batch(samples_per_step: int, micro_batch_size: int) -> AccumulationOption:
    # Cached, like `_launch`: Hydra takes tenths of a second to compose a preset, and most cells
    # share theirs.
    words = (
        "accumulation=samples",
        f"accumulation.samples_per_step={samples_per_step}",
        f"accumulation.micro_batch_size={micro_batch_size}",
    )
    return cast(AccumulationOption, preset_option("accumulation", words))


def _common(launch: LaunchOption) -> tuple[str, ...]:
    """Return the settings that every kind of launch has, as command-line words."""
    # The cells run on this machine even if the config starts its ranks elsewhere; only the fields
    # of the base class exist in both kinds.
    values: Mapping[str, object] = launch.model_dump(mode="json")
    fields = [name for name in LaunchOption.model_fields if name != "kind"]
    return tuple(
        f"launch.{name}={'null' if values[name] is None else values[name]}" for name in fields
    )


@cache
def _launch(ranks: int, common: tuple[str, ...]) -> LaunchOption:
    words = ("launch=local", f"launch.processes={ranks}", *common)
    return cast(LaunchOption, preset_option("launch", words))
