"""Moving average of the weights: its values, its place in evaluations, exports and checkpoints."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from launcher.config.schema import RunConfig
from launcher.contracts import EmaOption, LocalShard, WeightAverage, World
from launcher.errors import ConfigError
from launcher.training.parts import Parts
from tests.contract.witness import option_of, preset
from tests.distributed import run_on_ranks
from tests.levers import ALONE, scores, tiny, trained

ON = ("ema=on", "ema.decay=0.5", "ema.warmup=false")


def average(param: Tensor, **changes: Any) -> WeightAverage:
    option = cast("EmaOption", option_of("ema", preset("ema", "on") | changes))
    found = option.build({"w": param})
    assert found is not None
    return found


def followed(**changes: Any) -> list[float]:
    """The averages of a weight that is 1, 2, 3, …, beginning with 0."""
    param = torch.zeros(1)
    made = average(param, **changes)
    found = []
    for value in range(1, 6):
        param.fill_(value)
        made.update()
        found.append(round(made.averages()["w"].item(), 4))
    return found


def test_off_keeps_no_average() -> None:
    option = cast("EmaOption", option_of("ema", preset("ema", "off")))
    assert option.build({}) is None


def test_the_average_follows_the_weights() -> None:
    half = {"decay": 0.5, "warmup": False}
    assert followed(**half) == [0.5, 1.25, 2.125, 3.0625, 4.0312]
    assert followed(**half, every_steps=2) == [0, 1, 1, 2.5, 2.5]
    assert followed(**half, start_step=3) == [0, 0, 3, 3.5, 4.25]
    # 2 / 11 of the first value is kept, then 3 / 12 of the second, …
    assert followed(decay=0.25)[:3] == [0.8182, 1.7045, 2.6761]
    assert followed(decay=0.0) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exchange_is_exact(dtype: torch.dtype) -> None:
    param = torch.randn(50).to(dtype)
    made = average(param, decay=0.9, warmup=False)
    param.normal_()
    made.update()
    weights, before = param.clone(), made.averages()["w"].clone()
    assert before.dtype == torch.float32
    made.swap()
    assert torch.equal(param, before.to(dtype))
    made.swap()
    assert torch.equal(param, weights)
    assert torch.equal(made.averages()["w"], before)


def full(parts: Parts, prefix: str) -> dict[str, Tensor]:
    """The tensors of the engine's state whose names begin with a prefix, of all ranks."""
    found = {}
    for name, value in parts.engine.state().items():
        if not name.startswith(prefix):
            continue
        if isinstance(value, LocalShard):
            whole = torch.zeros(value.shard.shape)
            value.shard.gather(value.tensor.float(), whole)
            dist.all_reduce(whole)
        else:
            whole = value.clone()
        found[name.removeprefix(prefix)] = whole
    return found


def followed_in_training(config: RunConfig, world: World = ALONE) -> dict[str, Any]:
    """The averages after three steps, and those computed from the weights of each step."""
    expected: dict[str, Tensor] = {}
    found: dict[str, Any] = {"scores": []}

    def between(step: int, parts: Parts) -> None:
        weights = full(parts, "model.")
        for name, value in weights.items():
            before = expected.get(name)
            expected[name] = value if before is None else before.lerp(value, 0.5)
        found["scores"].append(scores(parts, world))
        # An evaluation leaves the weights as they are.
        assert all(torch.equal(v, weights[k]) for k, v in full(parts, "model.").items())
        found["averages"] = full(parts, "ema.")

    result = trained(config, world, between=between)
    found |= {"losses": result.losses, "expected": expected, "export": result.weights}
    return found


def on_ranks(configs: list[RunConfig]) -> list[Any]:
    rank, size = dist.get_rank(), dist.get_world_size()
    layouts = [config.parallelism.layout(size) for config in configs]
    worlds = [World(rank, size, rank, "cpu", layout) for layout in layouts]
    return [
        followed_in_training(config, world)
        for config, world in zip(configs, worlds, strict=True)
    ]  # fmt: skip


def check(found: dict[str, Any], without: dict[str, Any]) -> None:
    assert found["losses"] == without["losses"]
    assert found["scores"] != without["scores"]
    for name, value in found["expected"].items():
        assert torch.allclose(found["averages"][name], value, atol=1e-6), name
    # Rank 0 exports them.
    assert all(torch.equal(found["averages"][k], v) for k, v in found["export"].items())


# The average begins with the weights of the first step.
FIRST = ("ema.start_step=1",)


def test_evaluations_and_exports_use_the_average() -> None:
    check(followed_in_training(tiny(*ON, *FIRST)), followed_in_training(tiny()))


def test_they_need_not() -> None:
    found = followed_in_training(tiny(*ON, "ema.in_evaluation=false", "ema.in_export=false"))
    without = followed_in_training(tiny())
    assert found["scores"] == without["scores"]
    assert all(torch.equal(v, without["export"][k]) for k, v in found["export"].items())


def sharded(engine: str, device: str) -> None:
    shared = (f"parallelism={engine}", "launch.processes=2")
    configs = [tiny(*shared, *ON, *FIRST, f"ema.device={device}"), tiny(*shared)]
    for found, without in run_on_ranks(on_ranks, configs):
        check(found, without)


def test_shards_are_averaged() -> None:
    sharded("fsdp", "same")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["same", "cpu"])
@pytest.mark.parametrize("engine", ["ddp", "fsdp_offload", "zero1", "zero2"])
def test_every_engine_averages(engine: str, device: str) -> None:
    sharded(engine, device)


def test_stage_3_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ema.kind: averages do not reach"):
        tiny("parallelism=zero3", "launch.processes=2", "ema=on")


def resumed(config: RunConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state after four steps, and after two, a new process, and two more."""
    states: list[dict[str, Tensor]] = []

    def keep(step: int, parts: Parts) -> None:
        if step in {1, 3}:
            states.append(full(parts, ""))

    trained(config, steps=4, between=keep)
    saved, last = states

    def load(step: int, parts: Parts) -> None:
        if step == 1:
            for param in parts.module.parameters():
                param.data.zero_()
            parts.engine.load_state(saved)
        keep(step, parts)

    states.clear()
    trained(config, steps=4, between=load)
    return last, states[1]


def test_a_resume_continues_the_average() -> None:
    expected, found = resumed(tiny(*ON, "ema.every_steps=2"))
    assert expected.keys() == found.keys()
    assert any(name.startswith("ema.") for name in found)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
