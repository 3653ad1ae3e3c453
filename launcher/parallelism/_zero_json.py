"""A DeepSpeed config of the user: tuning is passed on, what would change training is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.contracts import ConfigView
from launcher.errors import DataError, Problem

_TUNING = frozenset(
    {
        "zero_optimization.round_robin_gradients",
        "zero_optimization.reduce_scatter",
        "zero_optimization.use_multi_rank_bucket_allreduce",
        "zero_optimization.allgather_partitions",
        "zero_optimization.contiguous_gradients",
        "zero_optimization.parameter_alignment",
        "zero_optimization.module_granularity_threshold",
        "zero_optimization.stage3_module_granularity_threshold",
        "zero_optimization.stage3_max_reuse_distance",
        "zero_optimization.stage3_use_all_reduce_for_fetch_params",
        "zero_optimization.stage3_allgather_sequential",
        "wall_clock_breakdown",
        "memory_breakdown",
        "comms_logger",
        "flops_profiler",
        "dump_state",
    }
)
"""Keys that change how fast a run is, or what is written, not what it computes."""
_OF_CHECKPOINTS = frozenset({"zero_optimization.stage3_gather_16bit_weights_on_model_save"})
"""Keys of DeepSpeed's own checkpoints and exports, which are never written."""


def read(path: str) -> Mapping[str, Any]:
    """Return the content of a DeepSpeed config file.

    Raises:
        DataError: It cannot be read, or is no JSON object.
    """
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a DeepSpeed config: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: must be a JSON object, but is {type(found).__name__}")
    return found


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value with its dotted key; a section that is tuned as a whole is one value."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in _TUNING:
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def tuning(path: str) -> dict[str, Any]:
    """Return what of a file reaches DeepSpeed: the keys that do not change the training."""
    chosen: dict[str, Any] = {}
    for name, value in leaves(read(path)):
        if name in _TUNING and value != "auto":
            section, _, key = name.rpartition(".")
            (chosen.setdefault(section, {}) if section else chosen)[key] = value
    return chosen


def problems(
    path: str, generated: Mapping[str, Any], fields: Mapping[str, str], config: ConfigView
) -> Iterator[Problem]:
    """Yield what a file sets otherwise than trainctl, each with both origins.

    Args:
        path: The file.
        generated: DeepSpeed's config as trainctl generates it, nested.
        fields: The setting behind each generated key.
        config: The whole config.
    """
    expected = {name: (value, fields.get(name, "")) for name, value in leaves(generated)}
    expected |= _settings(config)
    for name, value in leaves(read(path)):
        if value == "auto" or name in _TUNING | _OF_CHECKPOINTS:
            continue
        if name not in expected:
            yield Problem(
                "parallelism.config_file",
                f"{path}: {name} may change the training, and trainctl does not set it; remove it "
                "from the file: optimizer, schedule and precision are those of the config",
            )
            continue
        own, field = expected[name]
        if value != own:
            where = f"{field} is {own!r}" if field else f"trainctl sets it to {own!r}"
            fix = f"change one of them, or write {name}: auto in the file"
            yield Problem(
                "parallelism.config_file", f"{path}: {name} is {value!r}, but {where}; {fix}"
            )


def _settings(config: ConfigView) -> dict[str, tuple[Any, str]]:
    """Return what the rest of the config says of DeepSpeed's keys, with the setting's name."""
    found: dict[str, tuple[Any, str]] = {
        "gradient_clipping": (config.max_grad_norm or 0.0, "max_grad_norm"),
        "fp16.enabled": (config.precision.autocast_dtype == "float16", "precision float16"),
        "bf16.enabled": (config.precision.autocast_dtype == "bfloat16", "precision bfloat16"),
    }
    try:
        layout = config.parallelism.layout(config.launch.ranks)
        plan = config.accumulation.plan(seq_len=config.task.seq_len, ranks=layout.data_ranks)
    except ValueError:
        return found  # reported by the options themselves
    return found | {
        "train_batch_size": (plan.samples_per_step, "the number of samples per step"),
        "train_micro_batch_size_per_gpu": (
            plan.micro_batch_size,
            "accumulation's micro-batch size",
        ),
        "gradient_accumulation_steps": (plan.micro_batches, "the number of micro-batches per step"),
    }
