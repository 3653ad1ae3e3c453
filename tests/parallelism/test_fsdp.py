"""`fsdp` alone: blocks, uneven and empty shards, models of transformers, state, refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from typing_extensions import override

from launcher.blocks import sharded_blocks
from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.contracts import (
    BatchPlan,
    EngineParts,
    EngineState,
    Head,
    Layout,
    LocalShard,
    OptimizerOption,
    ParallelismOption,
    PrecisionOption,
    Request,
    World,
    named_tensors,
)
from launcher.errors import ConfigError
from launcher.model import build_module
from launcher.parallelism import (
    TorchEngine,
    _fsdp_engine,  # noqa: F401 - imported before ranks are forked
)
from launcher.training.batches import Windows
from launcher.training.parts import build
from tests.contract.engine_bench import (
    CLIPPINGS,
    LENGTH,
    VOCABULARY,
    InFormat,
    NextToken,
    Ragged,
    optimizer_option,
    option,
)
from tests.distributed import run_on_ranks
from tests.tasks import RANDOM

STEPS = 3
SAMPLES_PER_STEP = 12


class Block(nn.Module):
    """A layer with fewer rows than ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(1))

    @override
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.scale * torch.tanh(self.dense(hidden))


class Tied(nn.Module):
    """Tied embeddings of an odd number of rows, two blocks, a frozen layer and a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.layers = nn.ModuleList([Block(), Block()])
        self.frozen = nn.Linear(8, 8).requires_grad_(requires_grad=False)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    @override
    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.frozen(self.embed(ids))
        for layer in self.layers:
            hidden = layer(hidden)
        logits: Tensor = self.head(self.norm(hidden.transpose(1, 2)).transpose(1, 2))
        return logits


def gpt2() -> nn.Module:
    sizes = {"n_positions": LENGTH, "n_embd": 8, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, **sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    found: nn.Module = transformers.GPT2LMHeadModel(config)
    return found


def t5() -> nn.Module:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(vocab_size=VOCABULARY, **sizes, dropout_rate=0)
    found: nn.Module = transformers.T5ForConditionalGeneration(config)
    return found


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    found: nn.Module = transformers.BertForMaskedLM(config)
    return found


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
    )
    found: nn.Module = transformers.MixtralForCausalLM(config)
    return found


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "tied": Tied,
    "gpt2": gpt2,
    "t5": t5,
    "bert": bert,
    "mixtral": mixtral,
}


class AnyModel(NextToken):
    """Predicts the labels with a model of transformers, or a module that returns logits."""

    def __init__(self, network: str) -> None:
        self._network = network

    @override
    def forward_inputs(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        ids = inputs["ids"]
        if self._network == "tied":
            return {"ids": ids}
        return {"input_ids": ids} | ({"decoder_input_ids": ids} if self._network == "t5" else {})

    @override
    def loss(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        return super().loss(getattr(outputs, "logits", outputs).float(), inputs)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A short training run."""

    parallelism: ParallelismOption
    network: str = "tied"
    optimizer: OptimizerOption = field(default_factory=partial(optimizer_option, "adamw"))
    precision: PrecisionOption = field(
        default_factory=lambda: InFormat(kind="in_format", float64=False)
    )


@dataclass
class Found:
    """Results of a job on one rank."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]
    held: int = 0


def fsdp(*words: str, ranks: int = 2, preset: str = "fsdp") -> ParallelismOption:
    batch = [f"accumulation.samples_per_step={SAMPLES_PER_STEP}", "accumulation.micro_batch_size=1"]
    found: ParallelismOption = option(
        "parallelism", f"parallelism={preset}", f"launch.processes={ranks}", *words, *batch
    )
    return found


def start(job: Job) -> tuple[TorchEngine, Windows]:
    size = dist.get_world_size()
    world = World(dist.get_rank(), size, dist.get_rank(), "cpu", job.parallelism.layout(size))
    plan = BatchPlan(1, SAMPLES_PER_STEP // size, size, LENGTH)
    torch.manual_seed(0)
    parts = EngineParts(
        module=NETWORKS[job.network](),
        task=AnyModel(job.network),
        optimizer=job.optimizer,
        precision=job.precision,
        clipping=CLIPPINGS["norm"],
        skip_nonfinite=False,
        world=world,
        plan=plan,
        requests=lambda: Request.NONE,
    )
    engine = job.parallelism.build(parts)
    assert isinstance(engine, TorchEngine)
    samples = Ragged(SAMPLES_PER_STEP * 2 * STEPS, seed=7)
    windows = Windows(samples, plan, RANDOM, seed=0, data_rank=world.data_rank, start=0, stop=None)
    return engine, windows


def train(engine: TorchEngine, windows: Windows, steps: int = STEPS) -> Found:
    found = Found([], [], {})
    for _ in range(steps):
        found.losses.append(engine.forward_backward(next(windows)).item())
        found.norms.append(engine.update(1e-2).grad_norm.item())
    with engine.full_module() as module:
        if module is not None:
            found.weights = {k: v.clone() for k, v in named_tensors(module).items()}
    found.held = sum(
        value.tensor.numel()
        for name, value in engine.state().items()
        if isinstance(value, LocalShard) and name.startswith("model.")
    )
    return found


def run(jobs: Sequence[Job]) -> list[Found]:
    found = []
    for job in jobs:
        engine, windows = start(job)
        found.append(train(engine, windows))
        engine.close()
    return found


SETTINGS = {
    "reduced in each micro-batch": ["parallelism.reduce_every_micro_batch=true"],
    "wrapped by pattern": ["parallelism.wrap=['layers\\.\\d+\\.dense$', '^frozen$']"],
    "offloaded": ["parallelism.reshard_after_forward=false", "parallelism.offload=true"],
}
FORMATS = {"bf16": 0.02, "fp16": 0.005, "bf16_pure": 0.05}
"""Allowed relative difference of losses: ranks add up gradients in another order."""
TRANSFORMERS = ("gpt2", "t5", "bert", "mixtral")


def jobs(parallelism: Callable[..., ParallelismOption]) -> dict[str, Job]:
    found = {name: Job(parallelism=parallelism(*words)) for name, words in SETTINGS.items()}
    for name in TRANSFORMERS:
        # Adafactor does not divide rounding errors by their own size, as Adam does.
        optimizer = optimizer_option("adafactor")
        found[name] = Job(parallelism=parallelism(), network=name, optimizer=optimizer)
    for name in FORMATS:
        precision = option("precision", f"precision={name}")
        found[name] = Job(parallelism=parallelism(), network="gpt2", precision=precision)
    for name in ("adamw", "adafactor", "lamb"):
        found[name] = Job(parallelism=parallelism(), optimizer=optimizer_option(name))
    return found


@cache
def results(ranks: int, *names: str) -> dict[str, Found]:
    """Return rank 0's results of some jobs, in one world; on one rank those of `single`."""
    if ranks == 1:
        listed = jobs(lambda *_: option("parallelism", "parallelism=single"))
    else:
        listed = jobs(partial(fsdp, ranks=ranks))
    chosen = list(names or listed)
    [found, *_] = run_on_ranks(run, [listed[name] for name in chosen], ranks=ranks)
    return dict(zip(chosen, found, strict=True))


def check(found: Found, reference: Found, *, rel: float = 1e-5, weights: float = 1e-4) -> None:
    assert found.losses == pytest.approx(reference.losses, rel=rel)
    assert found.norms == pytest.approx(reference.norms, rel=10 * rel)
    assert list(found.weights) == list(reference.weights)
    for name, weight in reference.weights.items():
        # Ranks count batches, and take running means, of their own samples.
        if name.startswith("norm.") and not name.endswith(("weight", "bias")):
            continue
        torch.testing.assert_close(found.weights[name], weight, rtol=0, atol=weights)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lamb"])
def test_uneven_empty_tied_and_frozen_parameters(optimizer: str) -> None:
    check(results(3, "adamw", "adafactor", "lamb")[optimizer], results(1)[optimizer])


@pytest.mark.parametrize("network", TRANSFORMERS)
def test_models_of_transformers(network: str) -> None:
    check(results(2)[network], results(1)[network])


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_trains_the_same(setting: str) -> None:
    check(results(2)[setting], results(1)[setting])


@pytest.mark.parametrize(("precision", "rel"), FORMATS.items())
def test_number_formats(precision: str, rel: float) -> None:
    found, reference = results(2)[precision], results(1)[precision]
    assert found.losses == pytest.approx(reference.losses, rel=rel)
    assert found.norms == pytest.approx(reference.norms, rel=10 * rel)


def test_each_rank_holds_its_part() -> None:
    found = run_on_ranks(run, [Job(parallelism=fsdp(), network="gpt2")], ranks=2)
    held = [own.held for [own] in found]
    elements = sum(p.numel() for p in gpt2().parameters())
    assert sum(held) == elements
    assert abs(held[0] - held[1]) < elements / 10


def copied(state: EngineState) -> dict[str, Tensor | LocalShard]:
    return {
        name: LocalShard(value.tensor.clone(), value.shard)
        if isinstance(value, LocalShard)
        else value.clone()
        for name, value in state.items()
    }


def same(one: EngineState, other: EngineState) -> bool:
    def tensor(value: Tensor | LocalShard) -> Tensor:
        return value.tensor if isinstance(value, LocalShard) else value

    return one.keys() == other.keys() and all(
        torch.equal(tensor(value), tensor(other[name])) for name, value in one.items()
    )


def resume(job: Job) -> tuple[bool, bool]:
    """Save after some steps, continue, load and continue again: the same state, bit for bit."""
    engine, windows = start(job)
    train(engine, windows, 2)
    saved = copied(engine.state())
    train(engine, windows, 2)
    expected = copied(engine.state())
    again, windows = start(job)
    for _ in range(2):
        next(windows)
    template = again.state()
    same_form = {n: type(v) for n, v in template.items()} == {n: type(v) for n, v in saved.items()}
    again.load_state(saved)
    train(again, windows, 2)
    return same_form, same(again.state(), expected)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_resume_on_the_same_ranks_is_exact(optimizer: str) -> None:
    job = Job(parallelism=fsdp(), optimizer=optimizer_option(optimizer))
    assert run_on_ranks(resume, job) == [(True, True)] * 2


def evaluate_between(job: Job) -> tuple[list[float], list[float]]:
    """Losses with and without an evaluation between the steps."""
    losses = []
    for evaluates in (False, True):
        engine, windows = start(job)
        samples = Ragged(4, seed=8)
        own = []
        for _ in range(STEPS):
            own.append(engine.forward_backward(next(windows)).item())
            engine.update(1e-2)
            if evaluates:
                micro_batches = [samples.micro_batch([0, 1], 0)]
                for _ in engine.evaluate(micro_batches, lambda out, _: {"logits": out.logits}):
                    pass
        losses.append(own)
    return losses[0], losses[1]


@pytest.mark.parametrize("preset", ["fsdp", "fsdp_grad_op"])
def test_a_step_after_an_evaluation_sees_the_new_weights(preset: str) -> None:
    job = Job(parallelism=fsdp(preset=preset), network="gpt2")
    for without, between in run_on_ranks(evaluate_between, job):
        assert between == without


def blocks(network: str, patterns: Sequence[str] | None = None) -> list[str]:
    return sorted(sharded_blocks(NETWORKS[network](), patterns, "parallelism.wrap"))


def test_blocks_are_found() -> None:
    assert blocks("tied") == ["layers.0", "layers.1"]
    assert blocks("gpt2") == ["transformer.h.0", "transformer.h.1"]
    # The embeddings are tied to the head.
    assert blocks("bert") == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    assert blocks("mixtral") == ["model.layers.0", "model.layers.1"]
    stacks = ("encoder", "decoder")
    assert blocks("t5") == sorted(f"{stack}.block.{i}" for stack in stacks for i in (0, 1))
    assert blocks("tied", ["dense$", "^embed$"]) == ["layers.0.dense", "layers.1.dense"]
    with pytest.raises(ConfigError, match=r"wrap\[0\].*'blocks' matches no module"):
        blocks("tied", ["blocks"])


class Scalar(Tied):
    """A network with a parameter that has no dim to shard."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))


NETWORKS["scalar"] = Scalar


def start_scalar(job: Job) -> str:
    with pytest.raises(ConfigError) as error:
        start(job)
    return str(error.value)


def test_a_scalar_parameter_is_refused_by_name() -> None:
    for message in run_on_ranks(start_scalar, Job(parallelism=fsdp(), network="scalar")):
        assert "temperature is a scalar" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer=galore"], "galore cannot update shards of parameters"),
        (["precision=bf16_full_eval"], "full_eval rounds a copy of the whole parameters"),
        (["parallelism.replicas=3"], "replicas=3 needs 6, 9, 12, ... ranks, but launch starts 2"),
        (["launch.device=mps"], "fsdp needs cpu or cuda"),
    ],
)
def test_what_cannot_work_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(["parallelism=fsdp", "launch.processes=2", *words])


def test_layouts() -> None:
    assert fsdp(ranks=3).layout(3) == Layout(dp_shard=3)
    assert fsdp(preset="fsdp_hybrid", ranks=4).layout(4) == Layout(dp_replicate=2, dp_shard=2)


def build_from_meta(config: RunConfig) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
    """Elements of this rank; whole tensors of the engine, and buffers of its module."""
    size = dist.get_world_size()
    world = World(dist.get_rank(), size, dist.get_rank(), "cpu", config.parallelism.layout(size))
    engine = build(config, world, lambda: Request.NONE).engine
    assert isinstance(engine, TorchEngine)
    held = sum(p.numel() for group in engine.optimizer.param_groups for p in group["params"])
    with engine.full_module() as module:
        whole = {} if module is None else named_tensors(module)
    return held, whole, dict(engine.module.named_buffers())


def test_a_module_on_the_meta_device_gets_the_weights_of_one_process() -> None:
    sizes = [
        "hidden_size=16",
        "intermediate_size=24",
        "num_layers=2",
        "num_heads=2",
        "num_kv_heads=1",
    ]
    words = [*(f"model.{size}" for size in sizes), "parallelism=fsdp", "launch.processes=2"]
    config = load_config([*words, "task.seq_len=16"]).config
    expected = build_module(config.model, Head("causal_lm"), config.seed)
    (first, whole, buffers), (second, none, _) = run_on_ranks(build_from_meta, config)
    assert none == {}
    assert first + second == sum(p.numel() for p in expected.parameters())
    assert abs(first - second) < first / 10
    assert list(whole) == list(named_tensors(expected))
    assert all(torch.equal(whole[name], t) for name, t in named_tensors(expected).items())
    assert all(torch.equal(buffers[name], b) for name, b in expected.named_buffers())
    assert buffers
