"""Rules of which settings may change when a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from launcher.config import derive, effects, rules
from launcher.config.problems import leaves, merged
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, Problem
from launcher.suggest import closest_keys, did_you_mean

Kind = Literal["safe", "allow", "impossible"]

# `safe`: takes effect and is reported; `allow`: requires `--allow KEY`. The longest key that is the
# setting, or a parent of it, decides. An allow is needed where the result is no longer that of one
# config: nobody should find that out from a plot.
TABLE: dict[str, tuple[Kind, str]] = {
    "name": ("impossible", "it names the folder that the run is in"),
    "run_root": ("impossible", "it names the folder that the run is in"),
    "seed": ("allow", "the rest of the data comes in another order"),
    "max_steps": ("safe", "the run has another length; a schedule over the run is stretched"),
    "max_epochs": ("safe", "the run has another length; a schedule over the run is stretched"),
    "max_grad_norm": ("safe", "gradients are clipped differently from here on"),
    "max_grad_norm_per_parameter": ("safe", "gradients are clipped differently from here on"),
    "max_grad_value": ("safe", "gradients are clipped differently from here on"),
    "eval_every_steps": ("safe", "only the steps of evaluations change"),
    "eval_max_samples": ("safe", "scores before and after cover different samples"),
    "final_eval_max_samples": ("safe", "scores before and after cover different samples"),
    "objective": ("safe", "only the score that a sweep gets changes"),
    "objective_mode": ("safe", "only the score that a sweep gets changes"),
    "log_every_steps": ("safe", "only the logged steps change"),
    "on_nonfinite": ("safe", "only the handling of non-finite steps changes"),
    "max_consecutive_skips": ("safe", "only the number of tolerated skips changes"),
    "model.attention": ("safe", "fused operations round differently"),
    "model": ("impossible", "the checkpoint holds the tensors of this model; start a new run"),
    "task": ("allow", "the rest of the run trains on other samples"),
    "task.loss_chunk_tokens": ("safe", "sums are taken in another order: equal up to rounding"),
    "task.kind": ("impossible", "another task is another experiment; start a new run"),
    "data": ("allow", "the rest of the run trains on other records"),
    "adapter": ("impossible", "the checkpoint holds the tensors of this adapter; start a new run"),
    "adapter.dropout": ("allow", "other activations are dropped from here on"),
    "adapter.lr_ratio": ("allow", "some weights have another learning rate from here on"),
    "adapter.export": ("safe", "only the export changes"),
    "optimizer": ("allow", "the optimizer's state comes from other settings"),
    "optimizer.kind": ("impossible", "the saved state does not fit another optimizer"),
    "optimizer.lr": ("safe", "applied from the next step on"),
    "optimizer.weight_decay": ("safe", "applied from the next step on"),
    "optimizer.groups.frozen": (
        "impossible",
        "the saved state is that of the parameters that were trained",
    ),
    "scheduler": ("allow", "the learning rate follows another schedule, as if from step 0"),
    "precision": ("allow", "numbers are rounded differently from here on"),
    "activation": ("safe", "the same numbers from another amount of memory"),
    "compile": ("safe", "fused operations round differently"),
    "ema": ("allow", "the averages come from other settings"),
    "ema.device": ("safe", "only the place of the averages changes"),
    "ema.in_evaluation": ("safe", "the scores before and after are of different weights"),
    "ema.in_export": ("safe", "only the exported weights change"),
    "ema.kind": ("impossible", "the checkpoint holds the averages of one kind; start a new run"),
    "batching": ("allow", "the rest of the run sees the samples in another order"),
    "accumulation": ("allow", "the batch, and with it the meaning of a step, changes"),
    "accumulation.micro_batch_size": (
        "allow",
        "sums are taken in another order; under accumulation=steps the batch changes as well",
    ),
    "accumulation.memory_limit_gib": ("safe", "only the search for a micro-batch changes"),
    "accumulation.memory_margin": ("safe", "only the search for a micro-batch changes"),
    "accumulation.max_micro_batch_size": ("safe", "only the search for a micro-batch changes"),
    "parallelism": ("safe", "sums are taken in another order: equal up to rounding"),
    "parallelism.gradient_compression": ("allow", "gradients are rounded differently from here on"),
    "observer": ("safe", "only the observers of the run change"),
    "checkpoint": ("safe", "only the saves change"),
    "checkpoint.kind": (
        "impossible",
        "another kind cannot read the checkpoints; start a new run",
    ),
    "logging": ("safe", "only the outputs change"),
    "launch": ("safe", "another device or number of ranks may round differently"),
}


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that differs from the stored run; None for a value that does not exist."""

    key: str
    old: Any
    new: Any
    kind: Kind
    reason: str


def rule_of(key: str) -> tuple[Kind, str]:
    """Return the rule of a setting and its reason; raise KeyError if the table has none."""
    parts = key.split(".")
    for depth in range(len(parts), 0, -1):
        if rule := TABLE.get(".".join(parts[:depth])):
            return rule
    raise KeyError(key)


def classify(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Return every setting that differs between two configs, sorted; null equals absent."""
    before, after = dict(leaves(old)), dict(leaves(new))
    changed = [
        key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)
    ]
    return [Change(key, before.get(key), after.get(key), *rule_of(key)) for key in changed]


def apply(
    config_json: str, overrides: Sequence[str], allow: Sequence[str]
) -> tuple[RunConfig, list[Change]]:
    """Return the config to resume a stored run with, and its changes.

    Args:
        config_json: The run's config.json.
        overrides: Words in Hydra's grammar; one that chooses an option replaces the group.
        allow: Keys that may change although this changes the result, each with its children.

    Raises:
        ConfigError: Words that are wrong, changes that are not allowed or possible, broken rules.
    """
    stored = RunConfig.from_json(config_json)
    old = stored.model_dump(mode="json")
    if not overrides:
        if problems := _unknown_allowed(allow, old):
            raise ConfigError(problems)
        return stored, []
    # Imported here: a resume without changes needs no Hydra.
    from launcher.config.compose import recompose

    composed, problems = recompose(old, overrides)
    config = stored
    try:
        config = RunConfig.from_mapping(composed.mapping)
    except ConfigError as error:
        problems = merged(problems, error.problems)
    else:
        problems += rules.broken(config)
        problems += effects.typed_without_effect(config, composed.origin)
    new = config.model_dump(mode="json")
    changes = classify(old, new) + _batch_changes(stored, config)
    problems += _unknown_allowed(allow, {**old, **new})
    problems += [problem for change in changes if (problem := _refused(change, allow))]
    if problems:
        raise ConfigError(_from_store(composed.attributed(problems), old, composed.mapping))
    return config, changes


def _batch_changes(stored: RunConfig, config: RunConfig) -> list[Change]:
    """Return the change of the global batch by another number of ranks."""
    if config.accumulation != stored.accumulation or config.task != stored.task:
        return []  # already reported as a change of that setting
    try:
        before, after = derive.batch_plan(stored), derive.batch_plan(config)
    except ValueError:
        return []  # already reported by a rule
    sizes = before.samples_per_step, after.samples_per_step
    if sizes[0] == sizes[1]:
        return []
    reason = "another number of ranks makes another global batch, in samples per step"
    return [Change("accumulation", *sizes, "allow", reason)]


def _from_store(
    problems: Sequence[Problem], old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[Problem]:
    # A value of the stored run comes from its config.json, even if a file has the same value now.
    before, after = dict(leaves(old)), dict(leaves(new))
    kept = {key for key in before.keys() & after.keys() if before[key] == after[key]}
    return [replace(p, origin="the run's config.json") if p.key in kept else p for p in problems]


def _refused(change: Change, allow: Sequence[str]) -> Problem | None:
    if change.kind == "impossible":
        return Problem(change.key, f"cannot change on resume: {change.reason}")
    allowed = any(change.key == key or change.key.startswith(f"{key}.") for key in allow)
    if change.kind == "allow" and not allowed:
        return Problem(
            change.key,
            f"changes the run: {change.reason}; add --allow {change.key} if this is intended",
        )
    return None


def _unknown_allowed(allow: Sequence[str], values: Mapping[str, Any]) -> list[Problem]:
    known = [key for key, _ in leaves(values)]
    known += {".".join(key.split(".")[:n]) for key in known for n in range(1, key.count(".") + 1)}
    return [
        Problem(key, f"no such setting{did_you_mean(closest_keys(key, known))}", f"--allow {key}")
        for key in allow
        if key not in known
    ]
