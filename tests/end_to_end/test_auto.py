"""`trainctl run accumulation=auto` on the CPU: its result, its records and its errors."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Console, toy_words
from tests.end_to_end.test_resume import trace, weights

# Each sample takes some 6 MiB in this model, and the model itself little. The C library's allocator
# makes peaks of resident memory vary by tens of MiB.
WIDE = ("model.width=40000", "data.documents=90", "max_steps=2", "optimizer.lr=1e-4")
SHORT_OF_MIB = 120
MIB_PER_GIB = 1024


def auto_words(*words: str) -> tuple[str, ...]:
    """The toy job, its micro-batch to be found."""
    kept = [word for word in toy_words() if not word.startswith("accumulation")]
    return (*kept, "accumulation=auto", "accumulation.memory_margin=0", *words)


def trials(run_dir: Path) -> dict[int, dict[str, Any]]:
    """Return the records of the first rank, by micro-batch size."""
    return {
        int(path.parent.name.rpartition("-")[2]): json.loads(path.read_text())
        for path in run_dir.glob("trials/*/rank-0.json")
    }


def stored(run_dir: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((run_dir / "config.json").read_text())
    return config


def squeezed(trainctl: Console, device: str) -> tuple[Path, str, float]:
    """Run with a little less memory than the whole share takes.

    Returns:
        The run directory, its output and the limit in MiB.
    """
    wide = auto_words(*WIDE, "accumulation.samples_per_step=32", f"launch.device={device}")
    trainctl("run", *wide, "name=large", "max_steps=1")
    large = trials(trainctl.run_dir("large"))
    # The whole share fits: one trial is enough.
    assert list(large) == [32]
    assert stored(trainctl.run_dir("large"))["accumulation"]["micro_batch_size"] == 32
    limit_mib = large[32]["peak_mib"] - SHORT_OF_MIB
    limit = f"accumulation.memory_limit_gib={limit_mib / MIB_PER_GIB}"
    out, _ = trainctl("run", *wide, limit, "name=tight")
    return trainctl.run_dir("tight"), out, limit_mib


@pytest.mark.gpu
def test_a_gpu_is_filled_and_not_overfilled(trainctl: Console) -> None:
    run_dir, _, limit_mib = squeezed(trainctl, "cuda")
    found = stored(run_dir)["accumulation"]["micro_batch_size"]
    tried = trials(run_dir)
    assert 1 <= found < 32
    assert tried[found]["peak_mib"] <= limit_mib
    assert not tried[2 * found]["fits"]
    # What torch holds in use is part of what it has reserved.
    assert max(row["memory_mib"] for row in trainctl.rows(run_dir)) <= limit_mib


def test_the_printed_overrides_give_the_same_run(trainctl: Console) -> None:
    run_dir, out, limit_mib = squeezed(trainctl, "cpu")
    decided = stored(run_dir)["accumulation"]
    found = decided["micro_batch_size"]
    assert decided == {"kind": "samples", "micro_batch_size": found, "samples_per_step": 32}
    tried = trials(run_dir)
    assert 1 <= found < 32
    assert tried[found]["fits"]
    assert tried[found]["peak_mib"] <= limit_mib
    assert not tried[2 * found]["fits"]
    [line] = [line for line in out.splitlines() if line.startswith("accumulation=auto: ")]
    assert f"{found} fits" in line
    assert line.endswith(f"accumulation.micro_batch_size={found} accumulation.samples_per_step=32")
    origins = json.loads((run_dir / "provenance.json").read_text())
    assert f"{found} is the largest that fits" in origins["accumulation.micro_batch_size"]
    assert "command line" in origins["accumulation.samples_per_step"]
    assert not [key for key in origins if key.startswith("accumulation.memory")]

    words = (run_dir / "decisions.txt").read_text().splitlines()
    assert "accumulation=auto" in (run_dir / "overrides.txt").read_text().splitlines()
    assert not [word for word in words if "auto" in word or "memory" in word]
    trainctl("run", *words, "name=plain")
    plain = trainctl.run_dir("plain")
    assert not (plain / "trials").exists()
    assert stored(plain) == {**stored(run_dir), "name": "plain"}
    assert trace(trainctl, plain) == trace(trainctl, run_dir)
    assert weights(plain) == weights(run_dir)

    out, _ = trainctl("resume", str(run_dir), "max_steps=3")
    assert "accumulation=auto" not in out
    assert stored(run_dir)["accumulation"] == decided


def test_nothing_fits(trainctl: Console) -> None:
    words = auto_words("accumulation.samples_per_step=2", "accumulation.memory_limit_gib=0.05")
    _, err = trainctl("run", *words, status=11)
    assert "not even a micro-batch of 1 fits" in err
    assert "accumulation.memory_limit_gib" in err
    assert "Traceback" not in err
    run_dir = trainctl.run_dir()
    assert "MiB of 51 MiB" in (run_dir / "trials/micro-batch-1/result.json").read_text()
    # Nothing is decided: a resume with more memory is possible.
    assert stored(run_dir)["accumulation"]["kind"] == "auto"
    assert not (run_dir / "decisions.txt").exists()


def test_an_error_that_no_micro_batch_size_avoids(trainctl: Console) -> None:
    words = auto_words("accumulation.samples_per_step=64", "data.documents=50")
    _, err = trainctl("run", *words, status=13)
    assert "50 samples" in err
    assert "Traceback" not in err


def test_a_signal_ends_the_search_and_a_resume_repeats_it(trainctl: Console) -> None:
    words = auto_words("accumulation.samples_per_step=2", "max_steps=2", "task.step_s=2.0")
    process = trainctl.start("run", *words)
    deadline = time.monotonic() + 60
    while not list(trainctl.folder.glob("runs/toy/*/trials/*/logs/rank-0.log")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 75, err
    run_dir = trainctl.run_dir()
    assert stored(run_dir)["accumulation"]["kind"] == "auto"
    assert "trainctl resume" in err
    out, _ = trainctl("resume", str(run_dir), "task.step_s=0", "--allow", "task.step_s")
    assert "micro-batch 2 fits" in out
    assert stored(run_dir)["accumulation"]["micro_batch_size"] == 2
    assert [row["step"] for row in trainctl.rows(run_dir)] == [1, 2]


def test_verbs_that_start_nothing_run_no_trial(trainctl: Console) -> None:
    words = auto_words("accumulation.samples_per_step=16")
    for verb in (["check"], ["run", "--dry-run"], ["config", "explain", "accumulation.kind"]):
        out, _ = trainctl(*verb, *words)
        assert "16 samples (192 tokens) per step" in out
        assert "found at launch, at most 16" in out
    fixed = toy_words("accumulation.samples_per_step=16")
    assert trainctl("lr", "--json", *words)[0] == trainctl("lr", "--json", *fixed)[0]
    assert not (trainctl.folder / "runs").exists()
