"""Options as other tools name them, and paths that are typed as options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

OPTIONS: Mapping[str, Mapping[str, str]] = {
    "optimizer": {
        "adamw_torch": "adamw",
        "adamw_torch_fused": "adamw",
        "adamw_hf": "adamw",
        "fused_adam": "adamw",
        "fusedadam": "adamw",
        "adamw_bnb_8bit": "adamw_8bit",
        "adam8bit": "adam_8bit",
        "adamw8bit": "adamw_8bit",
        "paged_adamw": "paged_adamw_8bit",
        "paged_adamw_32bit": "paged_adamw_8bit",
        "schedulefree": "schedule_free_adamw",
        "momentum": "sgd",
    },
    "scheduler": {
        "linear_with_warmup": "linear",
        "linear_schedule_with_warmup": "linear",
        "cosine_with_warmup": "cosine",
        "cosine_schedule_with_warmup": "cosine",
        "cosine_decay": "cosine",
        "wsd": "warmup_stable_decay",
        "warmup_decay": "linear",
        "warmupdecaylr": "linear",
        "onecyclelr": "one_cycle",
        "onecycle": "one_cycle",
        "cosineannealinglr": "cosine_annealing",
        "plateau": "reduce_on_plateau",
        "reducelronplateau": "reduce_on_plateau",
        "steplr": "step",
        "none": "constant",
    },
    "precision": {
        "float16": "fp16",
        "16": "fp16",
        "16_mixed": "fp16",
        "half": "fp16",
        "bfloat16": "bf16",
        "bf16_mixed": "bf16",
        "mixed": "bf16",
        "amp": "bf16",
        "float32": "fp32",
        "32": "fp32",
        "32_true": "fp32",
        "full": "fp32",
        "no": "fp32",
        "float8": "fp8",
    },
    "parallelism": {
        "dp": "ddp",
        "data_parallel": "ddp",
        "distributed": "ddp",
        "multi_gpu": "ddp",
        "none": "single",
        "auto": "single",
        "deepspeed": "zero2",
    },
    "model": {"huggingface": "hf", "transformers": "hf"},
    "data": {"txt": "text", "files": "text", "file": "text", "local": "text"},
    "task": {"clm": "causal_lm", "lm": "causal_lm", "language_modeling": "causal_lm"},
    "checkpoint": {"off": "none", "false": "none", "no": "none", "disk": "directory"},
    "logging": {"none": "quiet", "off": "quiet", "tensorboard": "standard"},
    "observer": {"earlystopping": "early_stopping", "early_stop": "early_stopping"},
    "activation": {
        "checkpoint": "full",
        "checkpointing": "full",
        "recompute": "full",
        "off": "none",
        "true": "full",
        "false": "none",
        "cpu": "offload",
    },
    "compile": {
        "true": "default",
        "on": "default",
        "inductor": "default",
        "false": "off",
        "none": "off",
        "no": "off",
        "regional": "blocks",
    },
    "batching": {
        "group_by_length": "length_grouped",
        "bucket": "length_grouped",
        "max_tokens": "token_budget",
        "shuffle": "random",
        "none": "random",
    },
    "ema": {"true": "on", "false": "off", "none": "off"},
    "accumulation": {"gradient_accumulation": "steps", "batch_size": "samples"},
}

PATHS: Mapping[str, str] = {
    "data": "data=text data.files={}",
    "model": "model=hf model.path={}",
}
"""Overrides that take a path, for a path that was typed as an option of a group."""


def instead_of_option(group: str, option: str) -> str:
    """Return the option for another tool's name of it; "" if unknown."""
    name = option.replace("-", "_").lower()
    return OPTIONS.get(group, {}).get(name, "")


def instead_of_path(group: str, path: str) -> str:
    """Return the override for a path, or a model's name, that was typed as an option."""
    if group == "model" and re.fullmatch(r"[\w-]+", path):
        return PATHS["model"].format("FOLDER") + " for a model in a local folder"
    if group == "recipe" and path.endswith((".yaml", ".yml")):
        file = PurePath(path)
        return f"--config-dir {file.parent} --config-name {file.stem}"
    is_path = "/" in path or bool(PurePath(path).suffix)
    return PATHS.get(group, "").format(path) if is_path else ""
