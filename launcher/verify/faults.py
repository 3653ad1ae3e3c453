"""`trainctl verify --faults`: what is lost when ranks of a run are killed.

A shrunk run of the user's config is run twice below `run_root`, that is on the user's own file
system: once undisturbed, and once with kills, after each of which the launcher restarts the ranks.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from launcher.checkpoint import published
from launcher.config.schema import RunConfig
from launcher.errors import (
    ConfigError,
    Interrupted,
    LaunchError,
    NotTheSame,
    Preempted,
    Problem,
    TrainctlError,
)
from launcher.launch import restarts_of, run_program
from launcher.run_dir import RunDir
from launcher.verify import shrink
from launcher.verify._killer import Kill, Killer
from launcher.verify.cells import OWN, cell_of
from launcher.verify.certificate import folder_of

_PROGRAM = "launcher.verify._rank_faults"
_EVERY = 2
# Steps after the last kill: it must come before the end of the run.
_REST = 6


@dataclass(frozen=True, slots=True)
class Fault:
    """One kill and the restart after it.

    Attributes:
        rank: The killed rank.
        in_save: A checkpoint was being written.
        saved_step: Step of the newest checkpoint at the kill.
        reached_step: Most steps that a rank had done.
        from_step: Step from which the ranks continued.
    """

    rank: int
    in_save: bool
    saved_step: int
    reached_step: int
    from_step: int

    @property
    def repeated(self) -> int:
        """Steps that were computed again."""
        return self.reached_step - self.from_step


@dataclass(frozen=True, slots=True)
class FaultReport:
    """Result of a run with kills.

    Attributes:
        ranks: Number of processes.
        max_steps: Steps of the run.
        every_steps: Steps from one checkpoint to the next.
        file_system: Type of the file system of the run directory; "" if it is not known.
        folder: Where the run was; kept if something was lost.
        faults: The kills, in order.
        damaged: Checkpoints that were found damaged.
        differing: Files of the last checkpoint that differ from those of the undisturbed run.
        error: Error that ended the run; "" if it came to its end.
        seed: Seed of ranks and moments.
        seconds: Duration of both runs.
    """

    ranks: int
    max_steps: int
    every_steps: int
    file_system: str
    folder: Path
    faults: Sequence[Fault]
    damaged: Sequence[str]
    differing: Sequence[str]
    error: str
    seed: int
    seconds: float

    @property
    def losses(self) -> Sequence[str]:
        """Lost work, against what a launch guarantees."""
        found = [f"the run did not come to its end: {self.error}"] if self.error else []
        found += [
            f"kill {number}: the checkpoint of step {fault.saved_step} was lost, the ranks "
            f"continued from step {fault.from_step}"
            for number, fault in enumerate(self.faults, 1)
            if fault.from_step < fault.saved_step
        ]
        found += [f"damaged checkpoint: {name}" for name in self.damaged]
        if self.differing:
            names = ", ".join(self.differing)
            found.append(f"the last state is not that of the undisturbed run: {names} differ")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        faults = [{**asdict(each), "repeated_steps": each.repeated} for each in self.faults]
        own = {**asdict(self), "folder": str(self.folder), "faults": faults}
        return {"ok": not self.losses, "losses": list(self.losses), **own}

    def check(self) -> None:
        """Raise NotTheSame if something was lost that should not have been."""
        if self.losses:
            raise NotTheSame("\n  ".join([*self.losses, f"the run is kept in {self.folder}"]))


def verify_faults(
    config: RunConfig, kills: int, *, ranks: int | None = None, seed: int | None = None
) -> FaultReport:
    """Kill ranks of a shrunk run of a config, and compare it with an undisturbed one.

    Args:
        config: The resolved config.
        kills: Number of kills.
        ranks: Number of processes; None for 2, or 1 where the engine has only one.
        seed: Seed of ranks and moments; None for a random one.

    Raises:
        ConfigError: The config cannot be run so.
        TrainctlError: The undisturbed run failed.
    """
    started, seed = time.monotonic(), secrets.randbelow(2**31) if seed is None else seed
    folder = folder_of(config) / f"faults-{secrets.token_hex(4)}"
    lost = True
    try:
        small = _config(config, kills, ranks, folder)
        expected = _prepared(small, folder / "undisturbed")
        run_program(small, expected, _PROGRAM)
        found = _prepared(small, folder / "killed")
        done, error = _run_killed(small, found, kills, seed)
        report = FaultReport(
            ranks=small.launch.ranks,
            max_steps=small.max_steps or 0,
            every_steps=_EVERY,
            file_system=_file_system(folder),
            folder=folder,
            faults=_faults(done, restarts_of(found)),
            damaged=[path.name for path in sorted(found.checkpoints.glob("*.corrupt"))],
            differing=[] if error else _differing(expected, found),
            error=error,
            seed=seed,
            seconds=round(time.monotonic() - started, 1),
        )
        lost = bool(report.losses)
        return report
    finally:
        if not lost:
            shutil.rmtree(folder, ignore_errors=True)


def _config(config: RunConfig, kills: int, ranks: int | None, folder: Path) -> RunConfig:
    steps = _EVERY * 2 * kills + _REST
    if config.checkpoint.every_steps is None and config.checkpoint.every_minutes is None:
        message = f"must save during the run, but is {config.checkpoint.kind} without an interval"
        raise ConfigError([Problem("checkpoint", f"{message}; write checkpoint=directory")])
    small = shrink.shrunk(config, steps, folder / "model")
    saves = {"every_steps": _EVERY, "every_minutes": None, "export": False}
    small = small.model_copy(
        update={
            "max_steps": steps,
            "max_epochs": None,
            "run_root": str(folder),
            "checkpoint": config.checkpoint.model_copy(update=saves),
        }
    )
    refusal = None
    for count in (2, 1) if ranks is None else (ranks,):
        batch = shrink.samples_per_step(config, [count], [1])
        cell = cell_of(
            small,
            config.parallelism,
            engine=OWN,
            ranks=count,
            accumulation=1,
            samples_per_step=batch,
        )
        if cell.config is not None:
            return cell.config
        refusal = refusal or cell.refusal
    raise ConfigError([Problem("", f"the shrunk run cannot be started: {refusal}")])


def _prepared(config: RunConfig, path: Path) -> RunDir:
    run_dir = RunDir(path)
    try:
        path.mkdir(parents=True)
        run_dir.write_config(config.to_json())
    except OSError as error:
        raise LaunchError(f"cannot write to {path}: {error.strerror}") from error
    return run_dir


def _run_killed(
    config: RunConfig, run_dir: RunDir, kills: int, seed: int
) -> tuple[Sequence[Kill], str]:
    """Return the kills, and the error that ended the run."""
    error = ""
    with Killer(run_dir, kills, _EVERY, seed) as killer:
        try:
            run_program(config, run_dir, _PROGRAM, restarts=kills)
        except (Interrupted, Preempted):
            raise
        except TrainctlError as failure:
            error = f"{type(failure).__name__}: {failure}"
    if not error and len(killer.kills) < kills:
        error = f"it was at its end after {len(killer.kills)} of {kills} kills"
    return killer.kills, error


def _faults(kills: Sequence[Kill], restarts: Sequence[dict[str, Any]]) -> Sequence[Fault]:
    return [
        Fault(kill.rank, kill.in_save, kill.saved_step, each["reached_step"], each["from_step"])
        for kill, each in zip(kills, restarts, strict=False)
    ]


def _differing(expected: RunDir, found: RunDir) -> list[str]:
    """Return the names of the tensors' files and counters that differ at the end."""
    ends = [_digests(run_dir) for run_dir in (expected, found)]
    names = sorted({name for end in ends for name in end})
    return [name for name in names if ends[0].get(name) != ends[1].get(name)]


def _digests(run_dir: RunDir) -> dict[str, str]:
    saved = published(run_dir)
    if not saved:
        raise LaunchError(f"{run_dir.path} has no checkpoint at its end")
    path = saved[-1].path
    files = [*path.glob("state/*.distcp"), path / "train_state.json"]
    digests = {str(file.relative_to(path)): sha256(file.read_bytes()).hexdigest() for file in files}
    return {"step": str(saved[-1].step), **digests}


def _file_system(folder: Path) -> str:
    """Return the type of a folder's file system, e.g. `nfs4`."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    mounts = [line.split()[1:3] for line in lines]
    above = [each for each in mounts if folder.resolve().is_relative_to(each[0])]
    return max(above, key=lambda each: len(each[0]), default=["", ""])[1]


def rows(report: FaultReport) -> Sequence[tuple[str, ...]]:
    """Return the lines of a table of the kills."""
    head = ("kill", "rank", "moment", "newest checkpoint", "reached", "continued from", "repeated")
    lines = [
        (
            str(number),
            str(fault.rank),
            "in a save" if fault.in_save else "training",
            f"step {fault.saved_step}",
            f"step {fault.reached_step}",
            f"step {fault.from_step}",
            f"{fault.repeated} steps",
        )
        for number, fault in enumerate(report.faults, 1)
    ]
    return [head, *lines]


def summary(report: FaultReport) -> str:
    """Return the result in one line."""
    kills = f"{_count(len(report.faults), 'kill')} of {_count(report.ranks, 'rank')}"
    kills = f"{kills} on {report.file_system}" if report.file_system else kills
    if report.losses:
        return f"{kills}: {_count(len(report.losses), 'problem')} (--seed {report.seed})"
    most = max((fault.repeated for fault in report.faults), default=0)
    return (
        f"{kills}: no checkpoint lost or damaged, at most {most} steps repeated (it saves every "
        f"{report.every_steps} steps), the last state is bitwise that of an undisturbed run"
    )


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def as_json(report: FaultReport) -> str:
    """Return the report as the text of a JSON file."""
    return json.dumps(report.to_json(), indent=1) + "\n"
