"""Accelerate: the user's own file, what it may not change, and FSDP2, which needs a GPU."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typing_extensions import override

from launcher.config import rules
from launcher.config.load import load_config
from launcher.contracts import Engine, EngineParts
from launcher.errors import ConfigError, DataError
from launcher.parallelism._accelerate_engine import (
    AccelerateFSDPEngine,
    accelerate_environment,
    accelerator_of,
)
from launcher.parallelism.accelerate import Accelerate
from tests.contract.engine_bench import Case, Trajectory, optimizer_option, run_case, run_cases
from tests.contract.test_engines import check_same_training, parallelism
from tests.distributed import run_on_ranks

# As `accelerate config` writes it.
COMMON = {
    "compute_environment": "LOCAL_MACHINE",
    "debug": False,
    "distributed_type": "MULTI_CPU",
    "downcast_bf16": "no",
    "enable_cpu_affinity": False,
    "machine_rank": 0,
    "main_training_function": "main",
    "mixed_precision": "no",
    "num_machines": 1,
    "num_processes": 2,
    "rdzv_backend": "static",
    "same_network": True,
    "tpu_env": [],
    "tpu_use_cluster": False,
    "tpu_use_sudo": False,
    "use_cpu": True,
}
DEEPSPEED = {
    "distributed_type": "DEEPSPEED",
    "deepspeed_config": {
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": 1.0,
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "zero3_init_flag": True,
        "zero3_save_16bit_model": False,
        "zero_stage": 3,
    },
}
FSDP = {
    "distributed_type": "FSDP",
    "use_cpu": False,
    "fsdp_config": {
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_offload_params": False,
        "fsdp_reshard_after_forward": False,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_version": 2,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: Hydra composes the same words once."""
    return tmp_path_factory.mktemp("accelerate")


def written(folder: Path, **content: Any) -> Path:
    file = folder / "accelerate.yaml"
    file.write_text(yaml.safe_dump({**COMMON, **content}))
    return file


def composed(folder: Path, content: Any, *words: str) -> Any:
    file = written(folder, **content)
    own = ["parallelism=accelerate", "launch.processes=2", f"parallelism.config_file={file}"]
    return load_config([*own, *words]).config


@pytest.mark.parametrize(
    ("content", "engine", "values"),
    [
        ({}, "ddp", {}),
        (DEEPSPEED, "zero", {"stage": 3, "offload_optimizer": False}),
        (FSDP, "fsdp", {"reshard_after_forward": False, "offload": False}),
    ],
)
def test_a_file_chooses_the_plugin(
    folder: Path, content: Any, engine: str, values: dict[str, Any]
) -> None:
    option = composed(folder, content, "max_grad_norm=1.0").parallelism
    found = option.engine_option().model_dump()
    assert found["kind"] == engine
    assert values.items() <= found.items()


def test_the_deepspeed_file_of_a_file_is_used(folder: Path) -> None:
    own = folder / "deepspeed.json"
    zero = {"stage": 1, "reduce_bucket_size": 1000, "round_robin_gradients": True}
    own.write_text(json.dumps({"zero_optimization": zero}))
    section = {"deepspeed_config": {"deepspeed_config_file": str(own)}}
    option = composed(folder, DEEPSPEED | section).parallelism
    generated = option.engine_option().deepspeed_config(10**6)["zero_optimization"]
    assert zero.items() <= generated.items()
    own.write_text(json.dumps({"zero_optimization": zero, "optimizer": {"type": "AdamW"}}))
    with pytest.raises(ConfigError, match=r"optimizer\.type may change the training"):
        composed(folder, DEEPSPEED | section)


REFUSED: list[tuple[Any, list[str], str]] = [
    ({"mixed_precision": "bf16"}, [], "mixed_precision is 'bf16', but precision.kind is fp32"),
    ({"mixed_precision": "no"}, ["precision=bf16"], "but precision.kind is bf16"),
    ({"mixed_precision": "fp8"}, ["precision=bf16"], "but precision.kind is bf16"),
    ({"num_processes": 4}, [], "num_processes is 4, but launch starts 2 ranks"),
    ({"use_cpu": False}, ["launch.device=cpu"], "use_cpu is False, but the device is cpu"),
    ({"distributed_type": "NO"}, [], "distributed_type is 'NO', but"),
    ({"distributed_type": "MEGATRON_LM"}, [], "supports MULTI_CPU, MULTI_GPU, FSDP, DEEPSPEED"),
    ({}, ["parallelism.plugin=fsdp"], "distributed_type is 'MULTI_CPU', but parallelism.plugin is"),
    (FSDP, ["launch.device=cpu"], "Accelerate ignores FSDP on the CPU and trains with DDP"),
    (
        {"distributed_type": "MULTI_GPU"},
        ["launch.device=cpu"],
        "distributed_type is MULTI_GPU, but the device is cpu",
    ),
    ({"gradient_accumulation_steps": 3}, [], "but accumulation has"),
    ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, [], "dynamo_config.dynamo_backend is"),
    ({"parallelism_config": {"parallelism_config_tp_size": 2}}, [], "parallelism_config_tp_size"),
    ({"downcast_bf16": True}, [], "downcast_bf16 is True, which would change the training"),
]
SECTIONS: list[tuple[Any, Any, list[str], str]] = [
    (DEEPSPEED, {"gradient_clipping": 0.5}, [], "gradient_clipping is 0.5, but max_grad_norm is"),
    (DEEPSPEED, {"gradient_accumulation_steps": 64}, [], "accumulation has"),
    (DEEPSPEED, {"zero_stage": 0}, [], "zero_stage is 0, but it must be 1, 2 or 3"),
    (DEEPSPEED, {"offload_param_device": "nvme"}, [], "it must be none or cpu"),
    (DEEPSPEED, {}, ["optimizer=adamw_8bit"], "accelerate with plugin deepspeed makes them"),
    (DEEPSPEED, {}, ["precision=fp64"], "must keep weights in float32"),
    (FSDP, {"fsdp_version": 1}, [], "fsdp_version is 1, but only FSDP2"),
    (FSDP, {"fsdp_activation_checkpointing": True}, [], "fsdp_activation_checkpointing is True"),
]


def with_section(base: Any, values: Any) -> Any:
    key = f"{base['distributed_type']}_config".lower()
    return base | {key: base[key] | values}


REFUSED += [(with_section(base, values), words, found) for base, values, words, found in SECTIONS]


@pytest.mark.parametrize(
    ("content", "words", "found"), REFUSED, ids=[found for *_, found in REFUSED]
)
def test_what_would_change_the_training_is_refused(
    folder: Path, content: Any, words: list[str], found: str
) -> None:
    with pytest.raises(ConfigError) as error:
        composed(folder, content, "max_grad_norm=1.0", *words)
    assert found in str(error.value)
    if "accelerate.yaml" not in str(error.value):
        assert "optimizer=adamw_8bit" in words or "precision=fp64" in words


def test_a_device_that_is_found_later_is_refused_too(folder: Path) -> None:
    config = composed(folder, FSDP, "max_grad_norm=1.0")
    [problem] = rules.unsupported(config, "cpu")
    assert problem.key == "parallelism.config_file"
    assert list(rules.unsupported(config, "cuda")) == []


def test_a_file_that_is_none_of_accelerate_is_refused(folder: Path) -> None:
    option = composed(folder, {}).parallelism
    for content in ("[1]", "a: b: c", "fsdp_config: [1]"):
        Path(option.config_file).write_text(content)
        with pytest.raises(DataError, match=r"accelerate\.yaml"):
            option.preflight()


# --- on ranks


class OnCPU(AccelerateFSDPEngine):
    """FSDP2 that Accelerate would refuse to make: it looks for a GPU."""

    @override
    def join(self) -> Any:
        found = accelerator_of(self.world, "MULTI_CPU", lambda: {"cpu": True})
        state: Any = found.state
        with accelerate_environment(self.world):
            state.fsdp_plugin = self.fsdp_plugin()
        state.distributed_type = type(found.distributed_type)("FSDP")
        return found


class OnCPUOption(Accelerate):
    """Its option."""

    @override
    def build_distributed(self, parts: EngineParts) -> Engine:
        option: Any = self.engine_option()
        wrapping = {"auto_wrap_policy": "transformer_based_wrap"}
        return OnCPU(parts, option, wrapping | {"transformer_cls_names_to_wrap": ["Linear"]})


def with_variables(case: Case) -> tuple[Trajectory, bool]:
    """Train in the environment of `accelerate launch`; return whether it is left as it was."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "4"
    before = dict(os.environ), torch.get_num_threads()
    found = run_case(case)
    after = {k: v for k, v in os.environ.items() if k in before[0]}, torch.get_num_threads()
    left = os.environ.keys() - before[0].keys()
    return found, (after == before and not any("ACCELERATE" in name for name in left))


@pytest.mark.parametrize("plugin", ["ddp", "fsdp"])
def test_variables_of_accelerate_launch_change_nothing(plugin: str) -> None:
    """FSDP2 without a GPU too, as far as gloo goes: wrapping, sums of gradients, norm, weights."""
    option: Any = parallelism("accelerate")
    if plugin == "fsdp":
        option = OnCPUOption.model_validate(option.model_dump() | {"plugin": plugin})
    one, case = (
        Case(parallelism=each, optimizer=optimizer_option("adamw"), accumulation=4)
        for each in (parallelism("single", ranks=1), option)
    )
    found = run_on_ranks(with_variables, case)
    assert all(untouched for _, untouched in found)
    [[reference, cut]] = run_on_ranks(run_cases, [replace(one, accumulation=1), one], ranks=1)
    check_same_training([own for own, _ in found], reference, cut)
