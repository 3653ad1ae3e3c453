"""Trials of accumulation=auto on several ranks."""

from __future__ import annotations

from pathlib import Path
from signal import Signals

import pytest
import torch.distributed as dist

from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.contracts import World
from launcher.errors import Preempted
from launcher.launch._trial import _warm_up
from tests.distributed import run_on_ranks


class Growing:
    """Memory that grows for some steps on rank 1, and not at all on rank 0."""

    limit = float("inf")

    def __init__(self) -> None:
        self.asked = 0

    def impose(self) -> None:
        pass

    def peak(self) -> float:
        self.asked += 1
        return 1.5 ** min(self.asked, 14) if dist.get_rank() == 1 else 1.0


def run_trial_of(config: str, signal_on: int | None) -> tuple[int, str]:
    rank = dist.get_rank()
    run_config = RunConfig.from_json(config)
    world = World(rank, 2, rank, "cpu", run_config.parallelism.layout(2))
    memory = Growing()
    try:
        _warm_up(run_config, world, memory, lambda: Signals.SIGTERM if rank == signal_on else None)
    except Preempted as error:
        return 0, str(error)
    return memory.asked, ""


@pytest.fixture
def config(tmp_path: Path) -> str:
    text = tmp_path / "corpus.txt"
    text.write_text("\n\n".join(f"Paragraph {number} of a small text." * 4 for number in range(99)))
    words = (
        "data=text",
        f"data.files={text}",
        "model.hidden_size=16",
        "accumulation=auto",
        "accumulation.samples_per_step=4",
        "task.seq_len=8",
        "parallelism=ddp",
        "launch.processes=2",
    )
    return load_config(words).config.to_json()


def test_all_ranks_take_as_many_steps_as_the_one_that_grows_longest(config: str) -> None:
    first, second = run_on_ranks(run_trial_of, config, None)
    assert first == second
    assert first[0] > 14


def test_a_signal_to_one_rank_ends_the_trial_on_all(config: str) -> None:
    texts = [text for _, text in run_on_ranks(run_trial_of, config, 1)]
    assert texts[0] == texts[1]
    assert "SIGTERM received" in texts[0]
