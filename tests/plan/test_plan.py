"""Predicted memory, compared with the literature's table and with real steps."""

from __future__ import annotations

import json

import pytest

from launcher.cli import main
from launcher.config.load import load_config
from launcher.contracts import StateBytes
from launcher.parallelism.fsdp import FSDP
from launcher.plan import Planner, build_network
from scripts.memory_table import CASES, config_of, measured, predicted

GB = 10**9


def test_the_state_of_a_model_of_8_billion_parameters() -> None:
    def state(*words: str) -> StateBytes:
        return build_network(load_config(["model=llama_8b", *words]).config).state

    rounded = state("precision=bf16_pure_stochastic", "optimizer=adamw_8bit")
    assert rounded.weights / GB == pytest.approx(16.06, abs=0.01)
    assert rounded.gradients == rounded.weights
    assert rounded.optimizer["moments in 8 bits"] / GB == pytest.approx(16.06, abs=0.01)
    float32 = state("precision=bf16").optimizer
    assert float32["exp_avg"] == float32["exp_avg_sq"] == 2 * rounded.weights


@pytest.mark.parametrize("name", ["activation=full"])
def test_prediction_is_close_to_the_bytes_of_a_real_step(name: str) -> None:
    config = config_of(CASES[name])
    assert predicted(config) == pytest.approx(measured(config), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
def test_all_predictions_are_close(name: str) -> None:
    config = config_of(CASES[name])
    assert predicted(config) == pytest.approx(measured(config), rel=0.1)


def test_a_larger_micro_batch_needs_what_the_plan_says() -> None:
    config = config_of(["accumulation.micro_batch_size=2"])
    planner = Planner()
    small = planner.plan(config)
    at_four = planner.plan(config_of(["accumulation.micro_batch_size=4"]))
    # Memory between that of four and eight samples: the divisors of a share do not matter here.
    found = planner.plan(config, at_four.peak + 1000).largest_micro_batch
    assert found == pytest.approx(4, abs=1)
    assert planner.plan(config, small.state.weights).largest_micro_batch is None


def test_shards_of_the_state() -> None:
    state = StateBytes(
        weights=800,
        trained=800,
        gradients=800,
        optimizer={"m": 1600},
        buffers=0,
        block=100,
        others=0,
    )
    option = load_config(["parallelism=fsdp", "launch.processes=8"]).config.parallelism
    assert isinstance(option, FSDP)
    placement = option.placement(state, 8)
    assert (placement.weights, placement.gradients, placement.optimizer) == (100, 100, 200)
    assert placement.communication == 4 * 100
    assert placement.sent == (2 * 800 + 800) * 7 // 8


def test_json_has_the_peak_by_part(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["launch.device=cpu", "model.num_layers=1", "task.seq_len=32"]
    assert main(["plan", *words, "--json", "--memory", "1GiB"]) == 0
    plan = json.loads(capsys.readouterr().out)
    peak = plan["peak_bytes"]
    assert plan["fits"]
    assert peak["per_rank"] == peak["total"] == sum(peak["by_part"].values())
    for size in ("lots", "1.2.3GiB"):
        assert main(["plan", *words, "--memory", size]) == 2


@pytest.mark.slow
def test_what_does_not_fit_is_answered_with_changes(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["launch.device=cpu", "model.num_layers=1", "task.seq_len=32"]
    assert main(["plan", *words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    limit = int(0.8 * plan["peak_bytes"]["per_rank"])
    assert main(["plan", *words, "--json", "--search", "--memory", str(limit)]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not plan["fits"]
    change = next(each for each in plan["changes"] if each["fits"])
    assert change["peak_bytes"] <= limit
    assert plan["combination"]["fits"]
