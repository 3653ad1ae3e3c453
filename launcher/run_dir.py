"""The names of the files of a run, and how a run directory comes to be; nothing else knows a path.

runs/<name>/<id>/
    config.json       the resolved config: all that a rank reads
    provenance.json   for every key, which file and line or command-line word set it
    overrides.txt     the overrides as typed, one a line
    decisions.txt     the same with what was decided at launch written out (accumulation=auto)
    env.json          folder, machine, packages, git commit, and start and end of each launch
    uncommitted.diff  changes of tracked files at the launch, if there were any
    command.sh        the command that started the run
    run.lock          held by the launcher and its ranks as long as they live
    result.json       how the run ended, from the launcher: status, step, scores, or the error
    result/rank-0.json    how each rank ended
    references.json   the task's baselines on the held-out data, kept for resumed runs
    metrics.jsonl     one object per logged step
    logs/rank-0.log
    trials/micro-batch-16/    what accumulation=auto tried: config, log and outcome
    checkpoints/step-00001000/
    tensorboard/
    export/           the trained model as transformers loads it
"""

import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import LaunchError

_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run's directory.

    Attributes:
        path: Absolute path of `runs/<name>/<id>`.
    """

    path: Path

    @property
    def id(self) -> str:
        """The run's identity, kept through every resume."""
        return self.path.name

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.json"

    @property
    def provenance(self) -> Path:
        """Where each value came from."""
        return self.path / "provenance.json"

    @property
    def overrides(self) -> Path:
        """The overrides as typed."""
        return self.path / "overrides.txt"

    @property
    def decisions(self) -> Path:
        """The overrides of the same run with nothing left to decide at launch."""
        return self.path / "decisions.txt"

    @property
    def references(self) -> Path:
        """The task's baselines on the held-out data."""
        return self.path / "references.json"

    @property
    def env(self) -> Path:
        """The machine, the code and the launches of the run."""
        return self.path / "env.json"

    @property
    def command(self) -> Path:
        """The command that started the run."""
        return self.path / "command.sh"

    @property
    def lock(self) -> Path:
        """The file whose flock says that the run is alive."""
        return self.path / "run.lock"

    @property
    def result(self) -> Path:
        """How the run ended."""
        return self.path / "result.json"

    def rank_result(self, rank: int) -> Path:
        """How one rank ended."""
        return self.path / "result" / f"rank-{rank}.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Holds one folder per published checkpoint."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def export(self) -> Path:
        """The model in the form that transformers loads."""
        return self.path / "export"

    def log(self, rank: int) -> Path:
        """The log of one rank."""
        return self.path / "logs" / f"rank-{rank}.log"

    def trial(self, micro_batch_size: int) -> "RunDir":
        """The directory of a trial of a micro-batch: a small run of its own."""
        return RunDir(self.path / "trials" / f"micro-batch-{micro_batch_size}")

    def checkpoint(self, step: int) -> Path:
        """The published checkpoint of a step; it may not exist."""
        return self.checkpoints / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int | None:
    """The step in a checkpoint folder's name; None for any other name."""
    match = _STEP.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else None


def create(root: Path, name: str) -> RunDir:
    """Make a new run directory that no other launch can share.

    Args:
        root: Folder of all runs; made if missing.
        name: The run's name: one folder level below the root.

    Raises:
        LaunchError: The folder cannot be made or written.
    """
    parent = (root / name).absolute()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            # mkdir is the atomic test-and-set; the random part makes a second try rare.
            path = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return RunDir(path)
    except OSError as error:
        where = error.filename or parent
        raise LaunchError(
            f"cannot make a run directory under {parent}: {error.strerror} ({where}); "
            "choose a writable folder with run_root=DIR"
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that a reader, or a crash at any moment, sees the old text or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
