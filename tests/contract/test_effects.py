"""Every leaf of conf/ has an effect: two values of it, and something that differs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from typing_extensions import override

from launcher.cli.run import minimised
from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.contracts import (
    Engine,
    EngineParts,
    ExportTarget,
    Head,
    LaunchOption,
    Layout,
    LogContext,
    LoggingOption,
    ObserverOption,
    Reads,
    Request,
    World,
)
from launcher.errors import NonFinite
from launcher.launch._watch import Watch
from launcher.parallelism import DDPEngine
from launcher.parallelism._fsdp_engine import FSDPEngine
from launcher.parallelism.ddp import DDP
from launcher.parallelism.fsdp import FSDP
from launcher.run_dir import RunDir
from launcher.training import rng
from launcher.training.batches import Windows
from launcher.training.parts import build
from launcher.training.runner import run
from tests.contract.witness import (
    CHECK,
    Hint,
    fingerprint,
    option_of,
    preset,
    presets,
    without_witness,
)
from tests.networks import small_llama
from tests.tasks import RANDOM
from tests.toy.options import ToyData, ToyModel, ToyTask

WORLD = World(rank=0, size=1, local_rank=0, device="cpu", layout=Layout())


@cache
def toy() -> RunConfig:
    """A run of three steps that takes some hundredths of a second."""
    words = ["logging=quiet", "checkpoint=none", "scheduler=constant", "optimizer.lr=0.1"]
    task = ToyTask(kind="toy", seq_len=12, poison=None, overflow=None, step_s=0.0)
    return load_config([*words, "launch.device=cpu"]).config.model_copy(
        update={
            "model": ToyModel(kind="toy", width=8, dropout=0.1),
            "task": task,
            "data": ToyData(kind="toy", documents=50),
            "accumulation": option_of(
                "accumulation", {"kind": "samples", "micro_batch_size": 2, "samples_per_step": 4}
            ),
            "max_steps": 3,
            "eval_every_steps": 2,
            "log_every_steps": 1,
        }
    )


def run_of(config: RunConfig) -> Any:
    """Return the output of a run: rows without times, files and their sizes, the error that ended
    it."""
    with TemporaryDirectory() as folder:
        error = ""
        try:
            run(config, RunDir(Path(folder)), WORLD, lambda: None, lambda *_: None)
        except NonFinite as failure:
            error = str(failure)
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        rows = [
            {k: v for k, v in json.loads(line).items() if not re.search("second|time|memory", k)}
            for line in lines
        ]
        files = sorted(
            path.relative_to(folder).as_posix()
            for path in Path(folder).rglob("*")
            if path.is_file() and "tfevents" not in path.name
        )
    return rows, files, error


def in_toy(**changes: Any) -> Any:
    """Run the toy with other settings."""
    return run_of(toy().model_copy(update=changes))


# --- the run itself


def root(values: Mapping[str, Any]) -> RunConfig:
    """The toy with other settings of the run itself."""
    groups = {group: getattr(toy(), group) for group, _ in toy().options()}
    return RunConfig.model_validate({**values, **groups})


def poisoned(config: RunConfig) -> Any:
    """The run when a sample gives a loss that is not a number."""
    task = cast("ToyTask", config.task).model_copy(update={"poison": 3})
    return run_of(config.model_copy(update={"task": task, "max_steps": 12}))


ROOT_HINTS = {
    "name": Hint(("other",), observe="folder"),
    "run_root": Hint(("other",), observe="folder"),
    "objective": Hint(("eval_perplexity",), observe="sweep"),
    "objective_mode": Hint(observe="sweep"),
    "max_epochs": Hint((0.1,)),
    "max_grad_norm": Hint((1e-3,)),
    "max_grad_norm_per_parameter": Hint((1e-3,)),
    "max_grad_value": Hint((1e-3,)),
    "eval_max_samples": Hint((1, 2)),
    "final_eval_max_samples": Hint((1, 2)),
    "on_nonfinite": Hint(observe="poisoned"),
}


def test_every_setting_of_the_run_has_an_effect() -> None:
    names = {group for group, _ in toy().options()}
    values = {key: value for key, value in dict(toy()).items() if key not in names}
    observe = {
        "": run_of,
        "poisoned": poisoned,
        "folder": lambda config: Path(config.run_root, config.name),
        "sweep": lambda config: minimised(config, {"eval_loss": 1.0, "eval_perplexity": 2.7}),
    }
    assert without_witness(root, values, observe, ROOT_HINTS) == []


# --- groups


def toy_with(group: str) -> Any:
    """Run the toy with another option of a group."""
    return lambda option: in_toy(**{group: option})


PRECISION_HINTS = {
    "init_scale": Hint((1024.0,)),
    "min_scale": Hint((32768.0,), observe="plan"),
    "growth_interval": Hint((1,)),
    "chunk_mib": Hint((1,), observe="plan"),
    "skip": Hint((["q_proj"],)),
}


@pytest.mark.parametrize("name", presets("precision"))
def test_every_leaf_changes_the_numbers(name: str) -> None:
    make = partial(option_of, "precision")
    values = preset("precision", name)
    observe = {"": toy_with("precision"), "plan": plan_of_precision}
    # The numbers of others need a GPU: only what they are made with is seen here.
    if make(values).unsupported_on("cpu"):
        observe[""] = plan_of_precision
    assert without_witness(make, values, observe, PRECISION_HINTS) == []


def plan_of_precision(option: Any) -> Any:
    """The arguments that the formats are made with."""
    # The device on which memory is estimated; it allows TF32 in the whole process.
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        made = option.build("meta" if option.unsupported_on("cpu") else "cpu")
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn
    return [vars(part) for part in (made, getattr(made, "loss_scale", None)) if part is not None]


def stops(option: ObserverOption) -> Any:
    """The steps after which an observer ends runs whose scores get better or worse."""
    context = cast("Any", SimpleNamespace(start=SimpleNamespace(observers={})))
    found = []
    for slope in (-0.01, 0.01):
        [observer] = option.observers(context)
        for step in range(12):
            score = 2 + slope * step
            scores = {"eval_loss": score, "eval_other": 1 - score}
            report = cast("Any", SimpleNamespace(scores=scores, state=SimpleNamespace(step=step)))
            if observer(report) is not None:
                found.append((slope, step))
                break
    return found


@pytest.mark.parametrize("name", sorted({*presets("observer")} - {"none"}))
def test_every_leaf_changes_when_a_run_is_stopped(name: str) -> None:
    make = partial(option_of, "observer")
    hints = {"metric": Hint(("eval_other",)), "min_delta": Hint((0.05,))}
    assert without_witness(make, preset("observer", name), {"": stops}, hints) == []


def adapted(option: Any) -> Any:
    """The network with its pairs, rates and modes, and what a run exports."""
    torch.manual_seed(0)
    module: Any = small_llama()
    made = option.adapt(module, Head("causal_lm"), 0)
    made.prepare(module)
    layers = {
        name: (
            getattr(part, "scaling", None),
            getattr(part, "p", None),
            getattr(part, "compute_dtype", None),
        )
        for name, part in module.named_modules()
    }
    optimizer = option.adjusted(toy().optimizer)
    with TemporaryDirectory() as folder:
        weights = {name: value.clone() for name, value in module.state_dict().items()}
        written = ExportTarget(
            folder=Path(folder),
            write=lambda _, path: module.save_pretrained(path),
            inputs=lambda: {"input_ids": torch.arange(8).view(1, 8)},
        )
        option.write(module.eval(), written)
        files = sorted(path.name for path in Path(folder).rglob("*.safetensors"))
    return weights, layers, optimizer.groups.overrides, files, dict(made.stored_bytes)


ADAPTER_HINTS = {
    "targets": Hint((["q_proj"],)),
    "exclude": Hint((["q_proj"],)),
    "modules_to_save": Hint((["lm_head"],)),
    "init": Hint(("gaussian", "orthogonal"), where={"rank": 4}),
    "block_size": Hint((128,)),
}


@pytest.mark.parametrize("name", sorted({*presets("adapter")} - {"none"}))
def test_every_leaf_changes_the_adapter(name: str) -> None:
    make = partial(option_of, "adapter")
    found = without_witness(make, preset("adapter", name), {"": adapted}, ADAPTER_HINTS)
    assert found == []


def sinks(option: LoggingOption) -> Any:
    """The sinks of a run, and the files that they make."""
    with TemporaryDirectory() as folder:
        context = LogContext(RunDir(Path(folder)), 0, 3, [])
        made = option.build(context)
        seen = [(type(sink).__name__, type(getattr(sink, "_view", None)).__name__) for sink in made]
        for sink in made:
            sink.close()
        return seen, sorted(p.name.partition(".")[0] for p in Path(folder).rglob("*"))


@pytest.mark.parametrize("name", presets("logging"))
def test_every_leaf_changes_what_is_written(name: str) -> None:
    make = partial(option_of, "logging")
    assert without_witness(make, preset("logging", name), {"": sinks}, {}) == []


def store(option: Any) -> Any:
    """The arguments that the checkpoints are made with."""
    with TemporaryDirectory() as folder:
        made = option.build(RunDir(Path(folder)), WORLD)
        seen = {key: value for key, value in vars(made).items() if isinstance(value, int | float)}
        made.close()
    return seen, option.copies_state


CHECKPOINT_HINTS = {
    "every_steps": Hint((1,)),
    "every_minutes": Hint((1e-9,)),
    "keep": Hint((3,), where={"every_steps": 1}),
    "asynchronous": Hint(observe="store"),
    "timeout_s": Hint(observe="store"),
}


@pytest.mark.parametrize("name", presets("checkpoint"))
def test_every_leaf_changes_what_is_saved(name: str) -> None:
    observe = {"": toy_with("checkpoint"), "store": store}
    values = preset("checkpoint", name)
    hints = dict(CHECKPOINT_HINTS)
    if values["kind"] == "none":
        # Must be null: that they are refused is their effect.
        hints |= dict.fromkeys(("every_steps", "every_minutes"), Hint((1,), observe=CHECK))
    found = without_witness(
        partial(option_of, "checkpoint"), values, {**observe, CHECK: store}, hints
    )
    assert found == []


def processes(option: LaunchOption) -> Any:
    """The processes that are started, on which devices, and how long one may be silent."""
    watch = Watch(cast("Any", None), option.timeout_s)
    run_dir = RunDir(Path("/runs/toy/id"))
    try:
        waits = option.await_end(run_dir)
    except OSError:  # no job was submitted
        waits = True
    command = option.preview(run_dir)
    if getattr(option, "master_port", 0) is None:
        command = re.sub(r"--master_port=\d+", "", command)  # a free one
    return (
        command,
        waits,
        option.ranks,
        option.restarts,
        option.rank_environments(),
        option.environment(),
        option.possible_devices(),
        watch.timeout_s,
    )


RENDEZVOUS = {"nodes": 2, "rdzv_endpoint": "node0:29400"}
LAUNCH_HINTS = {
    "timeout_s": Hint((1.0,)),
    "threads": Hint((2,)),
    "processes": Hint((2,)),
    "nodes": Hint((2, 3)),
    "interface": Hint(("eth0",), where={"nodes": 2}),
    "flags": Hint((["--one"],)),
    "rdzv_backend": Hint(("static",), where=RENDEZVOUS),
    "rdzv_endpoint": Hint(("node1:29400",), where={"nodes": 2}),
    "rdzv_id": Hint(("job",), where=RENDEZVOUS),
    "rdzv_conf": Hint(("is_host=1",), where=RENDEZVOUS),
    "min_nodes": Hint((1,), where=RENDEZVOUS),
    "hostfile": Hint(("hosts",)),
    "include": Hint(("node0",)),
    "exclude": Hint(("node0",)),
    "launcher": Hint(("openmpi",), where={"hostfile": "hosts"}),
    "master_addr": Hint(("10.0.0.1",)),
    "time": Hint(("1-00:00:00",)),
    "mem": Hint(("64G",)),
    **dict.fromkeys(("partition", "account", "qos", "constraint"), Hint(("name",))),
    "signal": Hint((None, "TERM@60")),
}


@pytest.mark.parametrize("name", presets("launch"))
def test_every_leaf_changes_what_is_launched(name: str) -> None:
    make = partial(option_of, "launch")
    assert without_witness(make, preset("launch", name), {"": processes}, LAUNCH_HINTS) == []


class OneRank(DDP):
    """ddp that is itself on one rank too."""

    @override
    def build(self, parts: EngineParts) -> Engine:
        return DDPEngine(parts, self)


def communication(option: Any) -> Any:
    """The arguments that reach DistributedDataParallel, and the gradients that come back."""
    config = toy().model_copy(update={"parallelism": OneRank.model_validate(option.model_dump())})
    rng.seed_everything(0)
    parts = build(config, WORLD, lambda: Request(0))
    engine = parts.engine
    assert isinstance(engine, DDPEngine)
    windows = Windows(parts.train, parts.plan, RANDOM, seed=0, data_rank=0, start=0, stop=None)
    engine.forward_backward(next(iter(windows)))
    wrapped: Any = engine.wrapped
    names = "bucket_bytes_cap gradient_as_bucket_view static_graph find_unused_parameters"
    seen: list[Any] = [getattr(wrapped, name) for name in names.split()]
    gradients = [param.grad for param in parts.module.parameters()]
    found = fingerprint(gradients)
    engine.close()
    return seen, found


def test_every_leaf_reaches_the_engine() -> None:
    store = HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        make = partial(option_of, "parallelism")
        found = without_witness(make, preset("parallelism", "ddp"), {"": communication}, {})
    finally:
        dist.destroy_process_group()
    assert found == []


ZERO = ["zero1", "zero2", "zero3", "zero_offload"]
FSDP_PRESETS = ["fsdp", "fsdp_grad_op", "fsdp_hybrid", "fsdp_offload"]
ACCELERATE = ["accelerate", "accelerate_deepspeed", "accelerate_fsdp"]
PARALLELISM = [*ACCELERATE, "ddp", *FSDP_PRESETS, "single", *ZERO]


@pytest.mark.parametrize("name", ACCELERATE)
def test_every_leaf_reaches_the_engine_that_accelerate_wraps(name: str, tmp_path: Path) -> None:
    """But those that a plugin ignores, and says so."""

    def same_engine(option: Any) -> Any:
        return type(option.engine_option()), option.engine_option().model_dump()

    file = tmp_path / "accelerate.yaml"
    file.write_text(
        "distributed_type: FSDP\n"
        "fsdp_config: {fsdp_version: 2, fsdp_offload_params: true}\n"
        "deepspeed_config: {zero_stage: 1}\n"
    )
    values = preset("parallelism", name)
    option = option_of("parallelism", values)
    launch = option_of("launch", preset("launch", "local") | {"processes": 2})
    config = toy().model_copy(update={"launch": launch, "parallelism": option})
    hints = {"config_file": Hint((str(file),)), "plugin": Hint(("ddp", "fsdp", "deepspeed"))}
    make = partial(option_of, "parallelism")
    found = without_witness(make, values, {"": same_engine}, hints)
    assert sorted(found) == sorted(option.not_applicable(config))


@pytest.mark.parametrize("name", ZERO)
def test_every_leaf_reaches_deepspeed(name: str, tmp_path: Path) -> None:
    """But those that a stage ignores, and says so."""

    def generated(option: Any) -> Any:
        return option.deepspeed_config(10**12)

    file = tmp_path / "deepspeed.json"
    file.write_text('{"wall_clock_breakdown": true}')
    option = option_of("parallelism", preset("parallelism", name))
    offloads = option.model_dump()["offload_params"]
    launch = option_of("launch", preset("launch", "local") | {"processes": 2})
    config = toy().model_copy(update={"launch": launch, "parallelism": option})
    found = without_witness(
        partial(option_of, "parallelism"),
        option.model_dump(),
        {"": generated},
        {
            "config_file": Hint((str(file),)),
            "nvme_path": Hint((str(tmp_path),), where={"offload_params": offloads}),
        },
    )
    assert sorted(found) == sorted(option.not_applicable(config))


class ShardedOnOneRank(FSDP):
    """fsdp that is itself on one rank too."""

    @override
    def build(self, parts: EngineParts) -> Engine:
        return FSDPEngine(parts, self)


def sharding(option: Any) -> Any:
    """The mesh, the groups of parameters, and what is sharded and reduced when."""
    chosen = ShardedOnOneRank.model_validate(option.model_dump() | {"replicas": 1})
    config = toy().model_copy(update={"parallelism": chosen})
    rng.seed_everything(0)
    parts = build(config, WORLD, lambda: Request(0))
    engine = parts.engine
    assert isinstance(engine, FSDPEngine)
    windows = Windows(parts.train, parts.plan, RANDOM, seed=0, data_rank=0, start=0, stop=None)
    window = next(windows)
    groups = {n: m for n, m in engine.module.named_modules() if isinstance(m, FSDPModule)}
    task, inputs = parts.task, window.micro_batches[0].inputs
    with engine.accumulation_context(last=False):
        outputs = engine.wrapped(**task.forward_inputs(inputs))
        kept = [isinstance(param, DTensor) for param in engine.module.parameters()]
        loss: Any = task.loss(outputs, inputs)
        loss.backward()
    reduced = [param.grad is not None for param in engine.module.parameters()]
    policies = [
        str(group.offload_policy)
        for module in groups.values()
        for group in module._get_fsdp_state()._fsdp_param_groups
    ]
    engine.close()
    return option.layout(12), list(groups), kept, reduced, policies


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")  # of the toy's Sequential
@pytest.mark.parametrize("name", FSDP_PRESETS)
def test_every_leaf_reaches_fully_shard(name: str) -> None:
    store = HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    hints = {
        "replicas": Hint((1, 2, 3)),
        "wrap": Hint((None, ["."])),
        "reshard_after_forward": Hint(where={"wrap": ["."]}),
    }
    try:
        make = partial(option_of, "parallelism")
        found = without_witness(make, preset("parallelism", name), {"": sharding}, hints)
    finally:
        dist.destroy_process_group()
    assert found == []


def test_no_preset_is_left_out() -> None:
    seen = {"optimizer", *GROUPS_WITH_ALL_PRESETS}
    alone = {
        "data": [
            *["arrow", "csv", "jsonl", "parquet", "stdlib", "stdlib_docstrings"],
            *["stdlib_snippets", "text", "tsv"],
        ],
        "parallelism": PARALLELISM,
    }
    assert seen | alone.keys() == {group for group, _ in toy().options()}
    assert all(presets(group) == names for group, names in alone.items())
    # Nothing can be set in these.
    assert (
        leaves("parallelism", "single")
        == leaves("observer", "none")
        == leaves("adapter", "none")
        == []
    )


def leaves(group: str, name: str) -> list[str]:
    return Reads(option_of(group, preset(group, name))).leaves


GROUPS_WITH_ALL_PRESETS = (
    "activation",
    "batching",
    "compile",
    "ema",
    "adapter",
    "scheduler",
    "accumulation",
    "model",
    "task",
    "precision",
    "observer",
    "logging",
    "checkpoint",
    "launch",
)
