from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.config import multirun
from launcher.config.load import LoadedConfig
from launcher.errors import ConfigError, Interrupted, NonFinite, Preempted


def sweep(launch: Jobs, argv: Sequence[str]) -> int:
    return multirun.run_multirun(launch, argv, admit=lambda jobs: True)


class Jobs:
    """A launch that records its config and trains nothing; a special seed raises an error."""

    def __init__(self, **errors: Exception) -> None:
        self.errors = errors
        self.seen: list[tuple[LoadedConfig, list[str]]] = []
        self.places: list[multirun.Place | None] = []

    def __call__(
        self, one: LoadedConfig, overrides: Sequence[str], place: multirun.Place | None
    ) -> float:
        self.places.append(place)
        self.seen.append((one, list(overrides)))
        if error := self.errors.get(f"seed{one.config.seed}"):
            raise error
        return 1.0

    @property
    def seeds(self) -> list[int]:
        return [one.config.seed for one, _ in self.seen]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_grid_runs_job_by_job(here: Path) -> None:
    jobs = Jobs()
    argv = ["-m", "seed=1,2", "optimizer.lr=0.5", "--config-name", "config"]
    before = (list(sys.argv), dict(os.environ))
    assert sweep(jobs, argv) == 0
    assert (list(sys.argv), dict(os.environ)) == before
    assert jobs.seeds == [1, 2]
    assert [(place.number, place.of) for place in jobs.places if place] == [(1, 2), (2, 2)]
    one, overrides = jobs.seen[1]
    assert overrides == ["seed=2", "optimizer.lr=0.5"]
    assert one.config.optimizer.lr == 0.5
    assert one.provenance["optimizer.lr"] == "command line: optimizer.lr=0.5"
    assert one.provenance["max_steps"].startswith("conf/config.yaml:")


def test_hydra_leaves_one_folder_next_to_the_runs(here: Path) -> None:
    sweep(Jobs(), ["-m", "seed=1,2", "name=n", "run_root='my runs'"])
    files = [path.relative_to(here) for path in here.rglob("*") if path.is_file()]
    [file] = files
    assert file.parts[:2] == ("my runs", "n")
    assert file.parts[2].startswith("sweep-")
    assert file.name == "multirun.yaml"


def test_words_may_stand_on_both_sides_of_flags(here: Path) -> None:
    jobs = Jobs()
    sweep(jobs, ["seed=1,2", "-m", "max_steps=5", "-cn", "config"])
    assert jobs.seeds == [1, 2]
    assert jobs.seen[0][0].config.max_steps == 5


def test_no_job_starts_when_one_is_wrong(here: Path) -> None:
    jobs = Jobs()
    with pytest.raises(ConfigError) as caught:
        sweep(jobs, ["-m", "optimizer.lr=1,-2,x"])
    assert len(caught.value.problems) == 2
    assert jobs.seen == []
    assert list(here.iterdir()) == []


def test_a_job_that_fails_does_not_stop_the_others(here: Path) -> None:
    jobs = Jobs(seed1=NonFinite("step 3"))
    with pytest.raises(NonFinite, match="step 3"):
        sweep(jobs, ["-m", "seed=1,2"])
    assert jobs.seeds == [1, 2]


@pytest.mark.parametrize("stop", [Interrupted("Ctrl-C"), Preempted("SIGTERM")])
def test_a_stop_ends_the_sweep(here: Path, stop: Exception) -> None:
    jobs = Jobs(seed1=stop)
    with pytest.raises(type(stop)):
        sweep(jobs, ["-m", "seed=1,2"])
    assert jobs.seeds == [1]


def test_a_users_folder_reaches_the_jobs(here: Path, user_dir: Path) -> None:
    (user_dir / "recipe").mkdir()
    (user_dir / "recipe" / "mine.yaml").write_text("# @package _global_\nmax_steps: 3\n")
    jobs = Jobs()
    sweep(jobs, ["-m", "recipe=mine,quick", "--config-dir", str(user_dir)])
    assert [one.config.max_steps for one, _ in jobs.seen] == [3, 50]


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["--cfg", "job", "optimizer=sgd"], "kind: sgd"),
        (["--cfg", "job", "--package", "optimizer"], "# @package optimizer"),
        (["--cfg", "hydra"], "output_subdir: null"),
        (["--info", "searchpath"], "recipes://"),
        (["--info", "defaults", "recipe=quick"], "recipe/quick"),
        (["--hydra-help"], "== Flags =="),
    ],
)
def test_hydras_own_flags(argv: list[str], shown: str) -> None:
    """In a process of its own: `--info` makes Hydra log for good."""
    import subprocess

    code = (
        "import sys; from launcher.config import multirun;"
        "sys.exit(multirun.run_multirun("
        "lambda one, words: 1 / 0, sys.argv[1:], admit=lambda jobs: True))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    out = subprocess.run(
        [sys.executable, "-c", code, *argv],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    assert shown in out.stdout


@pytest.mark.parametrize("sweeper", [[], ["hydra/sweeper=other"]])
def test_hydra_builds_nothing_that_a_config_names(
    here: Path, user_dir: Path, sweeper: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (user_dir / "hydra" / "sweeper").mkdir(parents=True)
    (user_dir / "hydra" / "sweeper" / "other.yaml").write_text("params: null\n")
    (user_dir / "recipe").mkdir()
    (user_dir / "recipe" / "evil.yaml").write_text(
        "# @package _global_\nhydra:\n  callbacks:\n    x:\n      _target_: evil_callback.Evil\n"
    )
    (here / "evil_callback.py").write_text("open('ran', 'w')\n")
    monkeypatch.syspath_prepend(here)
    for flags in (["-m"], []):
        with pytest.raises(ConfigError, match="_target_ is not allowed"):
            sweep(Jobs(), [*flags, "recipe=evil", *sweeper, "--config-dir", str(user_dir)])
    assert not (here / "ran").exists()


def test_what_is_not_admitted_does_not_start(here: Path) -> None:
    jobs = Jobs()
    seen: list[int] = []

    def admit(every: Sequence[LoadedConfig]) -> bool:
        seen.extend(one.config.seed for one in every)
        return False

    assert multirun.run_multirun(jobs, ["-m", "seed=1,2"], admit=admit) == 0
    assert seen == [1, 2]
    assert jobs.seen == []
    assert list(here.iterdir()) == []
