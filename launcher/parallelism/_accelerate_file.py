"""A file of `accelerate config`: settings of its plugin, and what would change the training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from launcher.contracts import ConfigView
from launcher.errors import DataError, Problem
from launcher.parallelism import _zero_json
from launcher.parallelism.zero import Zero

Plugin = Literal["ddp", "fsdp", "deepspeed"]
PLUGINS: Mapping[str, Plugin] = {
    "MULTI_CPU": "ddp",
    "MULTI_GPU": "ddp",
    "FSDP": "fsdp",
    "DEEPSPEED": "deepspeed",
}
"""Plugin of each `distributed_type`."""
SECTIONS: Mapping[Plugin, str] = {"fsdp": "fsdp_config", "deepspeed": "deepspeed_config"}
"""Section of a plugin's own settings."""

# Distributed types on one kind of device only.
_DEVICE_OF = {"MULTI_CPU": "cpu", "MULTI_GPU": "cuda"}
_OF_LAUNCHER = frozenset(
    {
        "compute_environment",
        "machine_rank",
        "main_process_ip",
        "main_process_port",
        "main_training_function",
        "num_machines",
        "rdzv_backend",
        "same_network",
        "deepspeed_config.deepspeed_exclusion_filter",
        "deepspeed_config.deepspeed_hostfile",
        "deepspeed_config.deepspeed_inclusion_filter",
        "deepspeed_config.deepspeed_multinode_launcher",
    }
)
"""Keys of `accelerate launch`: the group `launch` starts the ranks."""
_OF_CHECKPOINTS = frozenset(
    {
        "deepspeed_config.zero3_init_flag",
        "deepspeed_config.zero3_save_16bit_model",
        "fsdp_config.fsdp_cpu_ram_efficient_loading",
        "fsdp_config.fsdp_state_dict_type",
    }
)
"""Keys of loading and saving, which trainctl does itself."""
_WITHOUT_EFFECT = frozenset(
    {
        "fsdp_config.fsdp_backward_prefetch",
        "fsdp_config.fsdp_sync_module_states",
        "fsdp_config.fsdp_use_orig_params",
    }
)
"""Keys that Accelerate itself ignores under FSDP2."""
_APPLIED = frozenset(
    {
        "deepspeed_config.deepspeed_config_file",
        "deepspeed_config.offload_optimizer_device",
        "deepspeed_config.offload_param_device",
        "deepspeed_config.zero_stage",
        "distributed_type",
        "fsdp_config.fsdp_auto_wrap_policy",
        "fsdp_config.fsdp_min_num_params",
        "fsdp_config.fsdp_offload_params",
        "fsdp_config.fsdp_reshard_after_forward",
        "fsdp_config.fsdp_transformer_layer_cls_to_wrap",
        "fsdp_config.fsdp_version",
        "use_cpu",
    }
)
"""Keys that decide how the module is wrapped, and on which device."""
_WRAP_POLICIES = ("transformer_based_wrap", "size_based_wrap", "no_wrap")
# An absent key, and the words with which `accelerate config` leaves something out.
_NOTHING = ("", "0", "no", "none", "all")


def read(path: str) -> Mapping[str, Any]:
    """Return the content of a file of `accelerate config`.

    Raises:
        DataError: It cannot be read, or is no mapping of known form.
    """
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read as a file of `accelerate config`: {error}") from (
            error
        )
    if not isinstance(found, dict):
        raise DataError(f"{path}: must be a mapping of keys, but is {type(found).__name__}")
    for section in SECTIONS.values():
        if not isinstance(found.get(section) or {}, dict):
            raise DataError(f"{path}: {section} must be a mapping of keys")
    return found


def plugin_of(content: Mapping[str, Any]) -> Plugin | None:
    """Return the plugin that a file asks for; None for one that is not supported."""
    return PLUGINS.get(_text(content.get("distributed_type")).upper())


def refuses_device(content: Mapping[str, Any], device_type: str) -> str | None:
    """Return what in a file is for another kind of device, or None."""
    kind = _text(content.get("distributed_type")).upper()
    if _DEVICE_OF.get(kind, device_type) != device_type:
        return f"distributed_type is {kind}"
    if is_on(content, "use_cpu", default=device_type == "cpu") != (device_type == "cpu"):
        return f"use_cpu is {content['use_cpu']!r}"
    return None


def section(content: Mapping[str, Any], plugin: Plugin) -> Mapping[str, Any]:
    """Return a plugin's own settings."""
    return content.get(SECTIONS.get(plugin, "")) or {}


def is_on(values: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """Return a yes or no, which `accelerate config` also writes as text."""
    value = values.get(key)
    return default if value is None else _text(value) in {"true", "1", "yes"}


def wrapping(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return which modules FSDP2 gathers together, as arguments of Accelerate's plugin."""
    classes = values.get("fsdp_transformer_layer_cls_to_wrap")
    return {
        "auto_wrap_policy": _text(values.get("fsdp_auto_wrap_policy", "transformer_based_wrap")),
        "transformer_cls_names_to_wrap": classes.split(",") if classes else None,
        "min_num_params": int(values.get("fsdp_min_num_params", 0)),
    }


def zero_option(values: Mapping[str, Any]) -> Zero:
    """Return the settings of DeepSpeed, from its section of the file and the file that it names.

    Raises:
        DataError: DeepSpeed's own file cannot be read.
    """
    file = values.get("deepspeed_config_file")
    tree = _zero_json.read(file) if file else {}
    own = tree.get("zero_optimization") or {}
    devices = {
        part: (own.get(part) or {}).get("device", values.get(f"{part}_device"))
        for part in ("offload_optimizer", "offload_param")
    }

    def number(key: str, default: int) -> Any:
        value = own.get(key, default)
        return default if value == "auto" else value

    return Zero(
        kind="zero",
        # As Accelerate and DeepSpeed choose where nothing is set.
        stage=own.get("stage", values.get("zero_stage", 2)),
        offload_optimizer=_text(devices["offload_optimizer"]) == "cpu",
        offload_params=_text(devices["offload_param"]) == "cpu",
        nvme_path=None,
        pin_memory=bool((own.get("offload_optimizer") or {}).get("pin_memory", False)),
        overlap_comm=own.get("overlap_comm") is True,
        reduce_bucket_elements=number("reduce_bucket_size", 500_000_000),
        gather_bucket_elements=number("allgather_bucket_size", 500_000_000),
        prefetch_elements=number("stage3_prefetch_bucket_size", 50_000_000),
        persistence_elements=number("stage3_param_persistence_threshold", 100_000),
        live_elements=number("stage3_max_live_parameters", 1_000_000_000),
        config_file=file,
    )


def problems(
    path: str, content: Mapping[str, Any], plugin: Plugin, config: ConfigView
) -> Iterator[Problem]:
    """Yield what a file sets otherwise than trainctl, each with both origins."""
    yield from _of_type(path, content, plugin, config)
    expected = _settings(config)
    other = [f"{name}." for each, name in SECTIONS.items() if each != plugin]
    for name, value in _zero_json.leaves(content):
        if name in _OF_LAUNCHER | _OF_CHECKPOINTS | _WITHOUT_EFFECT | _APPLIED:
            continue
        # Accelerate does not read the sections of other plugins.
        if any(name.startswith(prefix) for prefix in other):
            continue
        if name in expected:
            wanted, origin = expected[name]
            if value not in (None, "auto") and _text(value) != _text(wanted):
                yield _problem(
                    path, name, value, f"{origin}; change one of them, or remove {name} from it"
                )
        elif _text(value) not in _NOTHING and value not in ({}, []):
            yield Problem(
                "parallelism.config_file",
                f"{path}: {name} is {value!r}, which would change the training or is not passed "
                "on; remove it from the file: trainctl's own config decides it",
            )


def _of_type(
    path: str, content: Mapping[str, Any], plugin: Plugin, config: ConfigView
) -> Iterator[Problem]:
    kind, found = content.get("distributed_type"), plugin_of(content)
    if found is None:
        if _text(kind) != "no" or config.launch.ranks > 1:
            known = ", ".join(PLUGINS)
            yield _problem(
                path,
                "distributed_type",
                kind,
                f"parallelism=accelerate supports {known}, and launch starts "
                f"{config.launch.ranks} ranks; write one of them",
            )
        return
    if found != plugin:
        yield _problem(
            path,
            "distributed_type",
            kind,
            f"parallelism.plugin is {plugin!r}; change one of them, or write "
            "parallelism.plugin=null",
        )
        return
    own = section(content, plugin)
    if plugin == "fsdp":
        yield from _of_fsdp(path, own)
    if plugin == "deepspeed":
        yield from _of_deepspeed(path, own)


def _of_fsdp(path: str, own: Mapping[str, Any]) -> Iterator[Problem]:
    version = own.get("fsdp_version", 1)
    if _text(version) != "2":
        yield _problem(
            path,
            "fsdp_config.fsdp_version",
            version,
            "only FSDP2 keeps parameters under their names; run `accelerate to-fsdp2`, or write "
            "fsdp_version: 2",
        )
    policy = own.get("fsdp_auto_wrap_policy", "NO_WRAP")
    if _text(policy) not in _WRAP_POLICIES:
        yield _problem(
            path,
            "fsdp_config.fsdp_auto_wrap_policy",
            policy,
            f"it must be one of {', '.join(_WRAP_POLICIES)}",
        )


def _of_deepspeed(path: str, own: Mapping[str, Any]) -> Iterator[Problem]:
    stage = own.get("zero_stage", 2)
    if not own.get("deepspeed_config_file") and stage not in {1, 2, 3}:
        yield _problem(
            path,
            "deepspeed_config.zero_stage",
            stage,
            "it must be 1, 2 or 3; without ZeRO write distributed_type: MULTI_GPU",
        )
    for key in ("offload_optimizer_device", "offload_param_device"):
        if _text(own.get(key)) not in {"", "none", "cpu"}:
            yield _problem(
                path, f"deepspeed_config.{key}", own[key], "it must be none or cpu; change it"
            )


def _settings(config: ConfigView) -> dict[str, tuple[Any, str]]:
    """Return what the config says of a file's keys, with the setting's name."""
    formats = {None: "no", "bfloat16": "bf16", "float16": "fp16"}
    precision, ranks = config.precision, config.launch.ranks
    found: dict[str, tuple[Any, str]] = {
        "mixed_precision": (
            formats.get(precision.autocast_dtype, "no"),
            f"precision.kind is {precision.kind}",
        ),
        "num_processes": (ranks, f"launch starts {ranks} ranks"),
        "deepspeed_config.gradient_clipping": (
            float(config.max_grad_norm or 0),
            f"max_grad_norm is {config.max_grad_norm}",
        ),
    }
    try:
        layout = config.parallelism.layout(ranks)
        plan = config.accumulation.plan(seq_len=config.task.seq_len, ranks=layout.data_ranks)
    except ValueError:
        return found  # reported by the options themselves
    says = f"accumulation has {plan.micro_batches} micro-batches per step"
    for name in ("gradient_accumulation_steps", "deepspeed_config.gradient_accumulation_steps"):
        found[name] = (plan.micro_batches, says)
    return found


def _problem(path: str, name: str, value: Any, why: str) -> Problem:
    return Problem("parallelism.config_file", f"{path}: {name} is {value!r}, but {why}")


def _text(value: Any) -> str:
    # YAML reads a plain `no` as False, and `accelerate config` writes numbers as text too.
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "no"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip().lower()
    if text == "false":
        return "no"
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else str(number)
