"""The run directory: names of its files, its identity, atomic writes.

runs/<name>/<id>/
    config.json       the resolved config: all that a rank reads
    run.json          the run's id, the checksum of config.json, changes that a crash would undo
    provenance.json   for every key, which file and line or command-line word set it
    overrides.txt     the overrides as typed, one a line
    decisions.txt     the same with what was decided at launch written out (accumulation=auto)
    env.json          folder, machine, packages, git commit, and start and end of each launch
    uncommitted.diff  changes of tracked files at the launch, if there were any
    command.sh        the command that started the run
    run.lock          held by the launcher and its ranks while they run
    result.json       written by the launcher at the end: status, step, scores, or the error
    result/rank-0.json    the same of each rank
    restarts.jsonl    one object per restart of the ranks after a failure: cause, step
    task.json         what the task took from the training records: labels
    references.json   the task's baselines on the held-out data, kept for resumed runs
    base_model.json   hashes of the frozen weights, which checkpoints of an adapter do not have
    metrics.jsonl     one object per logged step
    logs/rank-0.log
    job.sh, slurm.json    launch=slurm: the script for sbatch, and the job's number
    trials/micro-batch-16/    trials of accumulation=auto: config, log and outcome
    checkpoints/step-00001000/
    tensorboard/
    export/           the trained model as transformers loads it
"""

import hashlib
import json
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import LaunchError

_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class RunDir:
    """Directory of a run, by the absolute path of `runs/<name>/<id>`."""

    path: Path

    def is_run(self) -> bool:
        """Return True if this is the directory of a run."""
        # config.json alone does not tell: the folder of an exported model has one.
        return self.config.is_file() and (self.record.is_file() or self.command.is_file())

    @property
    def id(self) -> str:
        """Identity of the run, also after its directory was moved, copied or linked to."""
        # The folder's name only for a run whose run.json is lost: it can still be resumed.
        known = self.read_record().get("id")
        return known if isinstance(known, str) and known else self.path.name

    @property
    def record(self) -> Path:
        """Identity of the run and checksum of its config."""
        return self.path / "run.json"

    def read_record(self) -> dict[str, Any]:
        """Return the values of run.json; none if it is missing or damaged."""
        return _read_object(self.record)

    def read_provenance(self) -> dict[str, str]:
        """Return the origin of each value; none if the file is missing or damaged."""
        return {key: str(value) for key, value in _read_object(self.provenance).items()}

    def write_config(self, text: str, **record: object) -> None:
        """Replace config.json, and record its checksum and further entries in run.json."""
        before = self.read_record()
        # Both checksums: after a crash between the two writes the old config is there, and valid.
        known = before.get("config_sha256")
        checksums = [checksum(text), *(known[:1] if isinstance(known, list) else [])]
        values = {**before, "id": self.id, "config_sha256": checksums, **record}
        write_atomically(self.record, json.dumps(values, indent=1) + "\n")
        write_atomically(self.config, text)

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.json"

    @property
    def provenance(self) -> Path:
        """Origin of each value."""
        return self.path / "provenance.json"

    @property
    def overrides(self) -> Path:
        """The overrides as typed."""
        return self.path / "overrides.txt"

    @property
    def decisions(self) -> Path:
        """Overrides that compose the same run, with the values that were chosen at launch."""
        return self.path / "decisions.txt"

    @property
    def references(self) -> Path:
        """The task's baselines on the held-out data."""
        return self.path / "references.json"

    @property
    def base_model(self) -> Path:
        """Hashes of the pretrained weights that an adapter was trained on."""
        return self.path / "base_model.json"

    @property
    def learned(self) -> Path:
        """File of what the task took from the training records, such as labels."""
        return self.path / "task.json"

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
        """Lock file: the launcher and the ranks hold a flock on it during the run."""
        return self.path / "run.lock"

    @property
    def result(self) -> Path:
        """Status, scores or error of the run."""
        return self.path / "result.json"

    def rank_result(self, rank: int) -> Path:
        """Status, scores or error of one rank."""
        return self.path / "result" / f"rank-{rank}.json"

    @property
    def restarts(self) -> Path:
        """One JSON object per restart of the ranks after a failure."""
        return self.path / "restarts.jsonl"

    @property
    def job_script(self) -> Path:
        """Batch script of `launch=slurm`."""
        return self.path / "job.sh"

    @property
    def slurm(self) -> Path:
        """The Slurm job that was submitted last."""
        return self.path / "slurm.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    def has_rows(self) -> bool:
        """Return True if the run has logged a step."""
        try:
            return self.metrics.stat().st_size > 0
        except OSError:
            return False

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def export(self) -> Path:
        """The model, in the format of transformers."""
        return self.path / "export"

    def log(self, rank: int) -> Path:
        """The log of one rank."""
        return self.path / "logs" / f"rank-{rank}.log"

    def trial(self, micro_batch_size: int) -> "RunDir":
        """Return the directory of a trial of a micro-batch size."""
        return RunDir(self.path / "trials" / f"micro-batch-{micro_batch_size}")

    def checkpoint(self, step: int) -> Path:
        """Return the path of a step's checkpoint, which may not exist."""
        return self.checkpoints / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int | None:
    """Return the step of a checkpoint folder's name; None for any other name."""
    match = _STEP.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else None


def create(root: Path, name: str) -> RunDir:
    """Create a new run directory below `root/name` that no other launch can share."""
    parent = (root / name).absolute()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            # mkdir fails if the folder exists, so that one of two launches wins. The time alone is
            # not enough: jobs of a sweep start in the same second.
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


def _read_object(path: Path) -> dict[str, Any]:
    # Empty for a damaged file: the caller knows what the run needs of it.
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def checksum(text: str) -> str:
    """Return the SHA-256 of a text, as in run.json."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Replace a file atomically: after a crash it has the old text or the new."""
    # fsync before the rename: otherwise the new name may have an empty file after a power cut. The
    # process id, because two processes must not write to one temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
