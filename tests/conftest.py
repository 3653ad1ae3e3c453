"""Runs of trainctl as a user starts them."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import TextIOBase
from pathlib import Path
from typing import IO, Any

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf

# Before torch is imported: two workers of pytest with two threads each would fight for two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from launcher.config._provenance import ConfigFile
from launcher.config.compose import Loader
from tests import fork_server

# `nohup` and shells that start a command in the background ignore these; a launcher that is started
# so does not forward them.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
TOY = ROOT / "tests" / "toy"


@dataclass
class Console:
    """trainctl in a folder of its own, with the toy kinds installed as a third party's.

    Attributes:
        folder: The working directory.
        forked: Fork the processes from one that has imported torch, which is faster; False starts
            them as a user does.
    """

    folder: Path
    forked: bool = True

    @classmethod
    def in_folder(cls, folder: Path, *, forked: bool = True) -> Console:
        """Return the command in an empty folder."""
        info = folder / "site" / "toy-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
        kinds = {
            "model.toy": "options:ToyModel",
            "task.toy": "options:ToyTask",
            "data.toy": "options:ToyData",
            "observer.toy": "observer:ToyObserver",
            "parallelism.toy_ddp": "engines:SpoiledDDP",
            "task.toy_classes": "encoders:ToyClasses",
            "task.toy_masked": "encoders:ToyMasked",
            "data.toy_labels": "encoders:ToyLabels",
        }
        lines = [f"{name} = {source}" for name, source in kinds.items()]
        (info / "entry_points.txt").write_text("\n".join(["[trainctl.options]", *lines, ""]))
        return cls(folder, forked)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of its processes."""
        return os.environ | {
            # The tree under test comes first, wherever another one is installed.
            "PYTHONPATH": os.pathsep.join([str(self.folder / "site"), str(TOY), str(ROOT)]),
            "TRAINCTL_CONFIG_DIR": str(TOY / "conf"),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """Start `trainctl WORDS`."""
        environment = self.environment | variables
        if self.forked:
            return fork_server.start(["-m", "launcher", *words], cwd=self.folder, env=environment)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "launcher", *words],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: str, status: int = 0, **variables: str) -> tuple[str, str]:
        """Run `trainctl WORDS` to its end; what it printed on stdout and stderr."""
        process = self.start(*words, **variables)
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, f"status {process.returncode}\n{out}\n{err}"
        return out, err

    def call(self, function: Callable[..., Any], *args: Any) -> tuple[str, str]:
        """Call a function in a process that has the kinds, and return what was printed."""
        _, out, err = fork_server.call(function, *args, cwd=self.folder, env=self.environment)
        return out, err

    def toy(self, *words: str, **options: Any) -> tuple[str, str]:
        """Run a toy job of 12 steps of 4 samples that evaluates and saves now and then."""
        return self("run", *toy_words(*words), **options)

    def run_dir(self, name: str = "toy") -> Path:
        """The newest run of a name."""
        return max((self.folder / "runs" / name).iterdir(), key=lambda p: p.stat().st_mtime_ns)

    def rows(self, run_dir: Path) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl."""
        return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def toy_words(*words: str) -> Sequence[str]:
    """The overrides of the toy job."""
    settings = (
        "name=toy model=toy task=toy data=toy accumulation=samples accumulation.micro_batch_size=2 "
        "accumulation.samples_per_step=4 max_steps=12 eval_every_steps=5 log_every_steps=1 "
        "checkpoint.every_steps=4 optimizer.lr=0.01 launch.device=cpu logging.tensorboard=false"
    )
    return [*settings.split(), *words]


@pytest.fixture(autouse=True, scope="session")
def composed_once() -> Iterator[None]:
    """Let Hydra merge the same files for the same choice of groups once: it takes 0.15 s of CPU."""
    merge = Loader.compose
    known: dict[object, tuple[bytes, Sequence[tuple[str, ConfigFile]]]] = {}

    def compose(self: Loader, config_name: str, words: Sequence[str]) -> DictConfig:
        sources = [(each.provider, each.path) for each in self.get_search_path().get_path()]
        key = (*sources, config_name, *words, *map(_stamps, sources))
        if key not in known:
            cfg = merge(self, config_name, words)
            known[key] = pickle.dumps(cfg), self.read
            return cfg
        pickled, self.read = known[key]
        again: DictConfig = pickle.loads(pickled)
        return again

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loader, "compose", compose)
        yield


@pytest.fixture(autouse=True, scope="session")
def parsed_once() -> Iterator[None]:
    """Let OmegaConf parse the same text once: YAML is 40 % of the time to load a config."""
    load = OmegaConf.load
    known: dict[str, bytes] = {}

    def parsed(file: str | Path | IO[Any]) -> DictConfig | ListConfig:
        if not isinstance(file, TextIOBase):
            return load(file)
        text = file.read()
        if text not in known:
            file.seek(0)  # the file itself, which an error names
            cfg = load(file)
            known[text] = pickle.dumps(cfg)
            return cfg
        again: DictConfig | ListConfig = pickle.loads(known[text])
        return again

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", staticmethod(parsed))
        yield


def _stamps(source: tuple[str, str | None]) -> frozenset[tuple[str, int, int]]:
    """Return names, times and sizes of the files in a folder of the search path."""
    folder = Path((source[1] or "").partition("://")[2])
    if not folder.is_absolute():
        return frozenset()
    files = ((str(path), path.stat()) for path in folder.rglob("*.yaml"))
    return frozenset((name, stat.st_mtime_ns, stat.st_size) for name, stat in files)


@pytest.fixture
def trainctl(tmp_path: Path) -> Console:
    """The command, in an empty folder."""
    return Console.in_folder(tmp_path)


@pytest.fixture
def trainctl_as_installed(tmp_path: Path) -> Console:
    """The command, in an empty folder; every process imports what it needs itself."""
    return Console.in_folder(tmp_path, forked=False)
