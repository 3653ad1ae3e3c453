"""Compilation: the same numbers and names, reported time, causes of breaks and repetitions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.utils import get_compilation_metrics
from typing_extensions import override

from launcher.compile._compiler import clock, compile_in_place, explained
from launcher.compile._report import CompileReport
from launcher.config.rules import broken
from launcher.config.schema import RunConfig
from launcher.contracts import CompileOption, World
from launcher.errors import ConfigError
from launcher.training.parts import Parts
from tests.contract.witness import option_of, preset, presets
from tests.distributed import run_on_ranks
from tests.levers import largest_difference, tiny, trained
from tests.networks import small_llama

EAGER = ("compile=default", "compile.backend=aot_eager")
# torch reads it of every input, and hides the warning unless warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
REPORT = cast("Any", SimpleNamespace(state=SimpleNamespace(step=1)))


@pytest.fixture(autouse=True)
def one_compiler() -> Iterator[None]:
    """Compiled code of other tests counts towards torch's limit."""
    yield
    torch._dynamo.reset()


def option(name: str, **changes: Any) -> CompileOption:
    return cast("CompileOption", option_of("compile", preset("compile", name) | changes))


def test_off_compiles_nothing() -> None:
    network = small_llama()
    option("off").apply(network)
    assert all(module._compiled_call_impl is None for module in network.modules())


def test_blocks_share_a_compilation(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trainctl")
    expected = trained(tiny())
    report = CompileReport()

    def between(_: int, parts: Parts) -> None:
        report(REPORT)
        # A generated text has another length with each token.
        with tiny(*EAGER).compile.suspended(), torch.no_grad():
            parts.module(input_ids=torch.zeros(1, 5, dtype=torch.long), use_cache=False)

    before = clock.seconds
    found = trained(tiny(*EAGER, "activation=selective"), between=between)
    report(REPORT)
    assert largest_difference(expected, found) < 1e-6
    assert found.weights.keys() == expected.weights.keys()
    assert clock.seconds > before
    # Three blocks: one graph for training, one for the evaluation.
    own = [each for each in caplog.records if each.name == "trainctl.compile"]
    first, second, again = (each.getMessage() for each in own)
    assert "for 1 graphs" in first
    assert "for 1 graphs" in second
    assert again.startswith("compiled again: 0/0: GLOBAL_STATE changed: grad_mode")


class Doubtful(nn.Module):
    """Its forward pass depends on a value, so that it is no single graph."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 4)

    @override
    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.dense(hidden)
        return hidden * 2 if hidden.sum().item() > 0 else hidden


class Plain(nn.Module):
    @override
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.sin() + 1


def compiled(
    module: nn.Module, *, fullgraph: bool = False, dynamic: bool | None = None
) -> nn.Module:
    compile_in_place(
        [module],
        backend="eager",
        mode="default",
        fullgraph=fullgraph,
        dynamic=dynamic,
        cache_dir=None,
    )
    return module


def test_a_break_is_reported_with_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    report = CompileReport()
    compiled(Doubtful())(torch.ones(2, 4))
    report(REPORT)
    report(REPORT)
    [warning] = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert "breaks" in warning
    assert "Tensor.item()" in warning


def test_a_break_is_refused_with_its_cause() -> None:
    module = compiled(Doubtful(), fullgraph=True)
    with (
        pytest.raises(ConfigError, match=r"compile.fullgraph: must be false.*data-dependent"),
        explained(),
    ):
        module(torch.ones(2, 4))


def test_repetitions_are_reported_with_their_cause(caplog: pytest.LogCaptureFixture) -> None:
    report = CompileReport()
    module = compiled(Plain(), dynamic=False)
    for rows in (2, 3, 4, 5):
        module(torch.ones(rows, 4))
        report(REPORT)
    [warning] = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert "for the 4th time" in warning
    assert "size mismatch at index 0" in warning
    assert "compile.dynamic=true" in warning


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no such backend: inductr.*inductor"):
        option("default", backend="inductr").apply(small_llama())


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ([*EAGER, "compile.mode=max-autotune"], "compile.mode"),
        (["compile=max_autotune", "parallelism=fsdp", "launch.processes=2"], "compile.mode"),
        (["compile=reduce_overhead"], "compile.mode"),
        (["compile=default", "compile.scope=model", "activation=offload"], "compile.scope"),
    ],
)
def test_what_does_not_work_is_refused(words: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny(*words)
    assert [problem.key for problem in error.value.problems] == [key]


def on_ranks(configs: list[RunConfig]) -> list[Any]:
    rank, size = dist.get_rank(), dist.get_world_size()
    layouts = [config.parallelism.layout(size) for config in configs]
    worlds = [World(rank, size, rank, "cpu", layout) for layout in layouts]
    return [trained(config, world) for config, world in zip(configs, worlds, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("activation", presets("activation"))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", ["ddp", "fsdp", "fsdp_grad_op", "zero1", "zero2", "zero3"])
def test_every_engine_trains_the_same(engine: str, precision: str, activation: str) -> None:
    shared = (f"parallelism={engine}", "launch.processes=2", f"precision={precision}")
    configs = [tiny(*shared), tiny(*shared, *EAGER, f"activation={activation}")]
    assert not broken(configs[1])
    for expected, found in run_on_ranks(on_ranks, configs):
        assert largest_difference(expected, found) < 1e-6


@pytest.mark.slow
def test_inductor_trains_the_same() -> None:
    expected = trained(tiny())
    for words in (["compile=blocks"], ["compile=default", "compile.scope=model"]):
        assert largest_difference(expected, trained(tiny(*words))) < 1e-6
    # The second time from the cache.
    before = len(get_compilation_metrics())
    torch._dynamo.reset()
    trained(tiny("compile=blocks"))
    assert len(get_compilation_metrics()) > before
