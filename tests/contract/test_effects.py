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
from transformers import LlamaConfig, LlamaForCausalLM
from typing_extensions import override

from launcher.accumulation.auto import Auto
from launcher.cli.run import minimised
from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.contracts import (
    AccumulationOption,
    DataOption,
    Engine,
    EngineParts,
    Head,
    Horizon,
    LaunchOption,
    Layout,
    LogContext,
    LoggingOption,
    ModelOption,
    ObserverOption,
    Reads,
    Records,
    Request,
    SchedulerOption,
    TaskOption,
    World,
)
from launcher.errors import NonFinite
from launcher.launch._memory import memory_of
from launcher.launch._watch import Watch
from launcher.model import build_module
from launcher.parallelism import DDPEngine
from launcher.parallelism.ddp import DDP
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
    replaced,
    without_witness,
)
from tests.toy.options import ToyData, ToyModel, ToyTask
from tests.toy.shared import Texts

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


def rates(option: SchedulerOption) -> Any:
    """The learning rates of a run whose score gets better, then worse, twice."""
    lrs: list[float | None] = []
    for epoch in (30.0, 50.0):
        schedule = option.build(0.1, Horizon(100, 8, 1024, epoch))
        memory: Mapping[str, float] = {}
        for step in range(100):
            lrs.append(schedule.lr(step, memory))
            if step % 2:
                score = abs(step % 50 - 12) / 12 + 1 + 0.03 * (step % 3)
                scores = {"eval_loss": score, "eval_other": 3 - score}
                memory = schedule.observe(memory, scores, step + 1)
    return lrs


SCHEDULE_HINTS = {
    "warmup_power": Hint(where={".warmup_steps": 9}),
    "warmup_type": Hint(where={".warmup_steps": 9}),
    "metric": Hint(("eval_other",)),
    "min_lr_ratio": Hint((0.5,), where={".min_lr": None}),
    "min_lr": Hint((0.03,), where={".min_lr_ratio": None}),
    "reduce_on_plateau:min_lr": Hint((0.05,)),
    "chained:parts.1.min_lr": Hint((0.09,)),
    "greedy:min_lr": Hint((0.09,)),
    "lr_end": Hint((0.03,), where={".lr_end_ratio": None}),
    "lr_end_ratio": Hint((0.3,), where={".lr_end": None}),
    "patience": Hint((0, 2)),
    "cooldown": Hint((5,), where={".patience": 1}),
    "eps": Hint((1.0,), where={".patience": 1}),
    "factor": Hint((0.3,), where={".patience": 1}),
    "constant:factor": Hint((0.3,)),
    "sequence:stages.1.schedule.factor": Hint((0.3,)),
    "gamma": Hint((0.5,)),
    "cyclic:gamma": Hint((0.9,), where={"mode": "exp_range"}),
    "cyclic:mode": Hint(("triangular2",)),
    "num_cycles": Hint((1.5, 3)),
    "warmup_stable_decay:num_cycles": Hint((1.5,), where={"decay_type": "cosine"}),
    "stable_steps": Hint((20,)),
    "decay_start": Hint((50,)),
    "milestones": Hint((["30%"],)),
    "total_iters": Hint((5,)),
    "T_max": Hint((30,)),
    "timescale": Hint((50,)),
    "shift": Hint((100,)),
    "step_size_down": Hint((30,)),
    "warmup_lr_rate": Hint((0.5,)),
    "threshold": Hint((0.5,), where={".patience": 1}),
    "threshold_mode": Hint(where={".patience": 1, ".threshold": 0.1}),
    "greedy:max_lr": Hint((0.11,), where={"patience": 1}),
    "warmup_evaluations": Hint((5,), where={"patience": 1}),
    "window_size": Hint((3,), where={"smooth": True, "patience": 1}),
    "smooth": Hint(where={"patience": 1}),
    "reset_start": Hint((1,), where={"patience": 0, "min_lr": 0.09}),
    "stages.0.steps": Hint(("20%",)),
    "stages.1.steps": Hint(("20%",)),
    "stages.2.steps": Hint((3,)),
}


@pytest.mark.parametrize("name", presets("scheduler"))
def test_every_leaf_changes_the_learning_rate(name: str) -> None:
    values = preset("scheduler", name)
    make = partial(option_of, "scheduler")
    assert without_witness(make, values, {"": rates}, SCHEDULE_HINTS) == []


def batches(option: AccumulationOption) -> Any:
    """The batch equation for several ranks, and what a search for the micro-batch may take."""
    plans = [repr(option.plan(seq_len=16, ranks=ranks)) for ranks in (1, 2)]
    if not isinstance(option, Auto):
        return plans
    limit = None if option.memory_limit_gib is None else memory_of("cpu", option).limit
    return plans, option.candidates(seq_len=16, ranks=1), limit


ACCUMULATION_HINTS = {
    "auto:samples_per_step": Hint((16,)),
    "auto:tokens_per_step": Hint((512,), where={"samples_per_step": None, "tokens_per_step": 256}),
    "max_micro_batch_size": Hint((2,)),
    "memory_limit_gib": Hint((2.0,), where={"memory_limit_gib": 1.0}),
    "memory_margin": Hint((0.2,), where={"memory_limit_gib": 1.0}),
}


@pytest.mark.parametrize("name", presets("accumulation"))
def test_every_leaf_changes_the_batch(name: str) -> None:
    make = partial(option_of, "accumulation")
    values = preset("accumulation", name)
    assert without_witness(make, values, {"": batches}, ACCUMULATION_HINTS) == []


def records(data: DataOption) -> Any:
    """The texts of both splits."""
    splits = data.build()

    def texts(split: Records) -> list[Any]:
        return [split.record(index) for index in range(len(split))]

    return texts(splits.train), texts(splits.validation)


def test_every_leaf_changes_the_text(tmp_path: Path) -> None:
    for place in range(12):
        lines = [f"{place} {line} {'abc' * place}" for line in range(30)]
        (tmp_path / f"{place}.txt").write_text("\n".join(lines))
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n' * 9)
    (tmp_path / "broken.txt").write_bytes(b"\xff\xfe\xff")
    good, bad = str(tmp_path / "[0-9]*.txt"), str(tmp_path / "broken.txt")
    hints = {
        "files": Hint((str(tmp_path / "[0-5].txt"),)),
        "validation_files": Hint((str(tmp_path / "3.txt"),)),
        "validation_fraction": Hint((0.5,)),
        "on_error": Hint(observe=CHECK, where={"files": [good, bad]}),
        "allow_structured": Hint(
            observe=CHECK, where={"files": [good, str(tmp_path / "rows.jsonl")]}
        ),
    }
    values = replaced(preset("data", "text"), {"files": good})
    observe = {"": records, CHECK: records}
    assert without_witness(partial(option_of, "data"), values, observe, hints) == []


def test_every_leaf_changes_the_standard_library() -> None:
    hints = {"validation_fraction": Hint((0.5,))}
    found = without_witness(
        partial(option_of, "data"), preset("data", "stdlib"), {"": records}, hints
    )
    assert found == []


LLAMA = {
    "vocab_size": 384,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "max_positions": 64,
    "init_std": 0.5,
}


def network(option: ModelOption) -> Any:
    """Weights, what they compute, limits, and how text is encoded."""
    module = build_module(option, Head("causal_lm"), 0).eval()
    ids = torch.arange(12)[None] % 40
    with torch.no_grad():
        logits = module(input_ids=ids).logits
    return (
        dict(module.state_dict()),
        logits,
        option.limits(),
        option.build_tokenizer().encode("a b"),
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two saved models, with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2, "</s>": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    found = []
    for seed in (1, 2):
        folder = str(tmp_path_factory.mktemp("model"))
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=384,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        PreTrainedTokenizerFast(
            tokenizer_object=words, eos_token="</s>", unk_token="[UNK]"
        ).save_pretrained(folder)
        found.append(folder)
    return found[0], found[1]


def models_of_a_kind() -> list[str]:
    """Presets of models, one for each kind."""
    kinds = {preset("model", name)["kind"]: name for name in reversed(presets("model"))}
    return sorted(kinds.values())


@pytest.mark.parametrize("name", models_of_a_kind())
def test_every_leaf_changes_the_model(name: str, folders: tuple[str, str]) -> None:
    values = preset("model", name)
    given = {"path": folders[0]} if values["kind"] == "hf" else LLAMA
    hints = {
        "path": Hint((folders[1],)),
        "tokenizer": Hint((folders[0], "byt5")),
        "num_heads": Hint((4,)),
        "hidden_size": Hint((16,)),
        "num_kv_heads": Hint((2,)),
        "rope_theta": Hint((100.0,)),
        "norm_eps": Hint((1.0,)),
    }
    make = partial(option_of, "model")
    assert without_witness(make, replaced(values, given), {"": network}, hints) == []


def samples(option: TaskOption) -> Any:
    """The samples of two texts, and the text that a model generates."""
    model = option_of("model", replaced(preset("model", "llama"), LLAMA))
    assert isinstance(model, ModelOption)
    task = option.build(model.build_tokenizer())
    found = task.samples(Texts("def f():\n    return 1\n" * 3, "x = 1\n"))
    inputs = [found.micro_batch([index], 0).inputs for index in range(len(found))]
    torch.manual_seed(0)
    return inputs, task.sample(build_module(model, task.head, 0).eval())


@pytest.mark.parametrize("name", presets("task"))
def test_every_leaf_changes_the_samples(name: str) -> None:
    values = replaced(preset("task", name), {"seq_len": 16, "sample_tokens": 8})
    hints = {
        "seq_len": Hint((8,)),
        # Refused: bytes have no such token.
        "add_bos_token": Hint((True,), observe=CHECK),
        "sample_prompt": Hint(("x",)),
        "sample_temperature": Hint((0.0, 5.0)),
    }
    assert (
        without_witness(partial(option_of, "task"), values, {"": samples, CHECK: samples}, hints)
        == []
    )


def toy_with(group: str) -> Any:
    """Run the toy with another option of a group."""
    return lambda option: in_toy(**{group: option})


PRECISION_HINTS = {
    "init_scale": Hint((1024.0,)),
    "min_scale": Hint((32768.0,), observe="plan"),
    "growth_interval": Hint((1,)),
    "chunk_mib": Hint((1,), observe="plan"),
}


# Leaves that only a GPU shows, by preset; a new one must be added here with its reason.
ONLY_ON_A_GPU = {
    "fp8": {
        "recipe": "torchao's recipe; tests/precision/test_fp8.py compares the arithmetic",
        "skip": "tests/precision/test_fp8.py converts a network with it",
    },
    "tf32": {"full_eval": "passed on to the class of fp32, whose witness is in this test"},
}


@pytest.mark.parametrize("name", presets("precision"))
def test_every_leaf_changes_the_numbers(name: str) -> None:
    make = partial(option_of, "precision")
    values = preset("precision", name)
    if make(values).unsupported_on("cpu"):
        assert ONLY_ON_A_GPU[name].keys() == values.keys() - {"kind"}
        return
    observe = {"": toy_with("precision"), "plan": plan_of_precision}
    assert without_witness(make, values, observe, PRECISION_HINTS) == []


def plan_of_precision(option: Any) -> Any:
    """The arguments that the formats are made with."""
    made = option.build("cpu")
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
    return (
        option.ranks,
        option.rank_environments(),
        option.environment(),
        option.possible_devices(),
        watch.timeout_s,
    )


def test_every_leaf_changes_what_is_launched() -> None:
    hints = {"timeout_s": Hint((1.0,)), "threads": Hint((2,)), "processes": Hint((2,))}
    make = partial(option_of, "launch")
    assert without_witness(make, preset("launch", "local"), {"": processes}, hints) == []


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
    windows = Windows(parts.train, parts.plan, seed=0, data_rank=0, start=0, stop=None)
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
PARALLELISM = ["ddp", "single", *ZERO]


@pytest.mark.parametrize("name", ZERO)
def test_every_leaf_reaches_deepspeed(name: str) -> None:
    """But those that a stage ignores, and says so."""

    def generated(option: Any) -> Any:
        return option.deepspeed_config(10**12)

    option = option_of("parallelism", preset("parallelism", name))
    launch = option_of("launch", preset("launch", "local") | {"processes": 2})
    config = toy().model_copy(update={"launch": launch, "parallelism": option})
    found = without_witness(
        partial(option_of, "parallelism"), option.model_dump(), {"": generated}, {}
    )
    assert sorted(found) == sorted(option.not_applicable(config))


def test_no_preset_is_left_out() -> None:
    seen = {"optimizer", *GROUPS_WITH_ALL_PRESETS}
    alone = {"data": ["stdlib", "text"], "launch": ["local"], "parallelism": PARALLELISM}
    assert seen | alone.keys() == {group for group, _ in toy().options()}
    assert all(presets(group) == names for group, names in alone.items())
    # Nothing can be set in these.
    assert leaves("parallelism", "single") == leaves("observer", "none") == []


def leaves(group: str, name: str) -> list[str]:
    return Reads(option_of(group, preset(group, name))).leaves


GROUPS_WITH_ALL_PRESETS = (
    "scheduler",
    "accumulation",
    "model",
    "task",
    "precision",
    "observer",
    "logging",
    "checkpoint",
)
