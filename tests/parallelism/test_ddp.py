"""Features of `ddp` alone: static graphs, buffers that ranks change, unused parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import BatchPlan, EngineParts, OptimizerOption, Request, World
from launcher.errors import ConfigError
from launcher.parallelism import DDPEngine
from launcher.parallelism.ddp import DDP
from launcher.training.batches import Windows
from tests.contract.engine_bench import (
    CLIPPINGS,
    LENGTH,
    VOCABULARY,
    InFormat,
    NextToken,
    Ragged,
    optimizer_option,
)
from tests.distributed import run_on_ranks
from tests.tasks import RANDOM


class Normed(nn.Module):
    """A network with running statistics, and a layer that may take no part in the loss."""

    def __init__(self, *, idle: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, VOCABULARY)
        self.idle = nn.Linear(8, 8) if idle else None

    @override
    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.norm(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        logits: Tensor = self.head(hidden)
        return logits


def ddp(**values: Any) -> DDP:
    common: dict[str, Any] = {
        "kind": "ddp",
        "bucket_mb": 25,
        "gradient_as_bucket_view": True,
        "static_graph": False,
        "find_unused_parameters": False,
        "gradient_compression": None,
    }
    return DDP(**common | values)


@dataclass
class Run:
    """An engine on this rank, and its windows."""

    engine: DDPEngine
    windows: Windows

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.forward_backward(next(self.windows))
            self.engine.update(1e-2)


Options = tuple[DDP, OptimizerOption]


def options(**values: Any) -> Options:
    """The options of an engine, composed once for all ranks."""
    return ddp(**values), optimizer_option("adamw")


def start(chosen: Options, *, steps_done: int = 0, idle: bool = False) -> Run:
    option, optimizer = chosen
    size = dist.get_world_size()
    world = World(dist.get_rank(), size, dist.get_rank(), "cpu", option.layout(size))
    plan = BatchPlan(2, 3, size, LENGTH)
    torch.manual_seed(0)
    parts = EngineParts(
        module=Normed(idle=idle),
        task=NextToken(),
        optimizer=optimizer,
        precision=InFormat(kind="in_format", float64=False),
        clipping=CLIPPINGS["norm"],
        skip_nonfinite=False,
        world=world,
        plan=plan,
        requests=lambda: Request.NONE,
    )
    engine = option.build(parts)
    assert isinstance(engine, DDPEngine)
    done = steps_done * plan.samples_per_step
    windows = Windows(
        Ragged(64, seed=7), plan, RANDOM, seed=0, data_rank=world.data_rank, start=done, stop=None
    )
    return Run(engine, windows)


def copied(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def resumed(chosen: Options) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """States after four steps: in one go, and with a resume after the second."""
    first = start(chosen)
    first.train(2)
    saved = copied(first.engine.state())
    # What a checkpoint holds of a tensor that all ranks have may come from any of them.
    for value in saved.values():
        dist.broadcast(value, src=dist.get_world_size() - 1)
    first.train(2)
    second = start(chosen, steps_done=2)
    second.engine.load_state(saved)
    second.train(2)
    return copied(first.engine.state()), copied(second.engine.state())


@pytest.mark.parametrize("static_graph", [False, True])
def test_a_resume_continues_bitwise(static_graph: bool) -> None:
    by_rank = run_on_ranks(resumed, options(static_graph=static_graph))
    expected, _ = by_rank[0]
    for each in (state for states in by_rank for state in states):
        for name, value in each.items():
            assert torch.equal(value, expected[name]), name


def idle_error(chosen: Options, steps: int) -> str:
    try:
        start(chosen, idle=True).train(steps)
    except ConfigError as error:
        return str(error)
    return ""


def test_a_parameter_that_takes_no_part_is_refused_before_the_first_update() -> None:
    for message in run_on_ranks(idle_error, options(), 1):
        assert "parallelism.find_unused_parameters" in message
        assert "idle.weight" in message


@pytest.mark.parametrize("looks", ["static_graph", "find_unused_parameters"])
def test_a_parameter_that_takes_no_part_is_found_where_torch_looks(looks: str) -> None:
    assert run_on_ranks(idle_error, options(**{looks: True}), 3) == ["", ""]
