"""Weights that are not finite are neither saved nor exported."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from launcher.checkpoint import published
from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.contracts import LocalShard, Request, World
from launcher.contracts.sharding import Box, Shard
from launcher.errors import Diverged
from launcher.run_dir import RunDir
from launcher.training import runner
from launcher.training.finite import check_weights, nonfinite
from tests.conftest import TOY, Console, toy_words
from tests.distributed import run_on_ranks

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_bad_element_is_found(value: float, dtype: torch.dtype) -> None:
    good = torch.full((7, 33), torch.finfo(dtype).max, dtype=dtype)
    bad = good.clone()
    bad[5, 31] = value
    weights = {"good": good, "bad": bad.T, "empty": good[:0], "ids": torch.tensor([2**62])}
    assert nonfinite(weights, weights.keys()) == ["bad"]
    shard = Shard("bad", (7, 33), (Box((0, 0), (7, 33)),))
    assert nonfinite({"bad": LocalShard(bad, shard)}, ["bad"]) == ["bad"]


def test_a_buffer_may_be_infinite_but_not_nan() -> None:
    assert nonfinite({"mask": torch.tensor([-INF, 0.0])}) == []
    assert nonfinite({"mask": torch.tensor([-INF, NAN])}) == ["mask"]


def test_eight_bit_floats_are_looked_at() -> None:
    weights = {"w": torch.tensor([1.0, NAN]).to(torch.float8_e4m3fn)}
    assert nonfinite(weights, ["w"]) == ["w"]


@pytest.fixture
def train(
    trainctl: Console, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[RunDir, Diverged | None]]:
    """Run the toy job in this process, in the same directory at each call."""
    monkeypatch.syspath_prepend(str(TOY))
    monkeypatch.syspath_prepend(str(trainctl.folder / "site"))
    monkeypatch.setenv("TRAINCTL_CONFIG_DIR", str(TOY / "conf"))
    run_dir = RunDir(trainctl.folder / "run")
    run_dir.path.mkdir()

    def run(*words: str, **changes: Any) -> tuple[RunDir, Diverged | None]:
        config = load_config(toy_words(*words)).config
        # Not by a word: some of these values are refused there.
        optimizer = config.optimizer.model_copy(update=changes)
        config = config.model_copy(update={"optimizer": optimizer})
        run_dir.config.write_text(config.to_json())
        world = World(0, 1, 0, "cpu", config.parallelism.layout(1))
        try:
            runner.run(config, run_dir, world, lambda: None, lambda _phase, _step: None)
        except Diverged as error:
            return run_dir, error
        return run_dir, None

    return run


def steps(run_dir: RunDir) -> list[int]:
    return [checkpoint.step for checkpoint in published(run_dir)]


def test_they_push_out_no_good_checkpoint(
    train: Callable[..., tuple[RunDir, Diverged | None]],
) -> None:
    words = ("checkpoint.every_steps=2", "scheduler=constant", "on_nonfinite=skip")
    run_dir, error = train(*words, "max_steps=4", "checkpoint.export=false")
    assert error is None
    assert steps(run_dir) == [2, 4]
    _, error = train(*words, "max_steps=8", lr=1e39)
    assert error is not None
    assert "step 6: the weights are not finite (in model." in str(error)
    assert "max_grad_norm" in str(error)
    assert "Resume from the newest checkpoint" in str(error)
    assert steps(run_dir) == [2, 4]
    assert not run_dir.export.exists()


def test_the_first_save_has_no_checkpoint_to_resume_from(
    train: Callable[..., tuple[RunDir, Diverged | None]],
) -> None:
    words = ("checkpoint.every_steps=2", "scheduler=constant", "on_nonfinite=skip")
    run_dir, error = train(*words, "max_steps=4", lr=1e39)
    assert error is not None
    assert "no checkpoint was saved before. Start again with a lower" in str(error)
    assert "esume" not in str(error)
    assert steps(run_dir) == []


def test_they_are_not_exported_where_nothing_is_saved(
    train: Callable[..., tuple[RunDir, Diverged | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("max_steps=1", "scheduler=constant")
    # The last save does not look, as in an older release.
    monkeypatch.setattr("launcher.training.execution.check_weights", lambda *_, **__: None)
    run_dir, error = train(*words, lr=1e39)
    assert error is not None
    assert "they are not exported" in str(error)
    assert not run_dir.export.exists()


def test_skipping_gives_up(train: Callable[..., tuple[RunDir, Diverged | None]]) -> None:
    words = ("on_nonfinite=skip", "max_consecutive_skips=3", "checkpoint.every_steps=1")
    poisoned = ("task.poison=3", "accumulation.samples_per_step=50")  # every step meets it
    run_dir, error = train(*words, *poisoned, "max_steps=9")
    assert error is not None
    assert "step 3: the last 3 updates were skipped" in str(error)
    assert steps(run_dir) == [1, 2]
    # The count survives a resume.
    _, error = train(*words, *poisoned, "max_steps=9")
    assert error is not None
    assert "step 3: the last 3 updates were skipped" in str(error)


class Agreeing:
    """Only what check_weights asks of an engine."""

    def agree(self, request: Request) -> Request:
        import torch.distributed as dist

        flags = torch.tensor([request.value])
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return Request(int(flags.item()))


def check_on(bad_rank: int) -> str:
    import torch.distributed as dist

    module = nn.Linear(2, 2)
    if dist.get_rank() == bad_rank:
        nn.init.constant_(module.bias, NAN)
    weights = {name: param.detach() for name, param in module.named_parameters()}
    try:
        check_weights(
            Agreeing(),  # type: ignore[arg-type]
            weights,
            weights.keys(),
            step=4,
            purpose="saved",
            has_checkpoint=lambda: True,
        )
    except Diverged as error:
        return str(error)
    return ""


def test_all_ranks_raise_together() -> None:
    good, bad = run_on_ranks(check_on, 1)
    assert "(on another rank)" in good
    assert "(in bias)" in bad
    assert run_on_ranks(check_on, 2) == ["", ""]


def test_the_limit_is_a_setting() -> None:
    config: RunConfig = load_config(["max_consecutive_skips=null"]).config
    assert config.max_consecutive_skips is None
    assert load_config([]).config.max_consecutive_skips == 50
