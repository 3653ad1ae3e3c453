"""`RunConfig`: the complete config as one frozen, typed value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PlainValidator,
    PrivateAttr,
    SerializeAsAny,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from launcher.config.problems import problems_in
from launcher.contracts import (
    GROUPS,
    AccumulationOption,
    ActivationOption,
    AdapterOption,
    BatchingOption,
    CheckpointOption,
    CompileOption,
    DataOption,
    EmaOption,
    LaunchOption,
    LoggingOption,
    ModelOption,
    ObserverOption,
    OptimizerOption,
    Option,
    ParallelismOption,
    PrecisionOption,
    SchedulerOption,
    Settings,
    TaskOption,
)
from launcher.errors import ConfigError, Problem
from launcher.registry import OPTION_TYPES, kinds, option_class


def _reader(group: str) -> Callable[[Any], Option]:
    def read(value: Any) -> Option:
        # Not a pydantic union over all kinds: that would import every kind, third parties' too, and
        # report an error for each of them.
        if isinstance(value, OPTION_TYPES[group]):
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError("mapping", "Input should be a mapping with a `kind`")
        kind = value.get("kind")
        if not isinstance(kind, str):
            raise PydanticCustomError("no_kind", "Input should have a `kind`")
        try:
            option = option_class(group, kind)
        except ConfigError as error:
            [problem] = error.problems
            # A ValueError would be prefixed with pydantic's text; `problems` reads the context.
            raise PydanticCustomError(
                "option", "{message}", {"key": problem.key, "message": problem.message}
            ) from error
        # JSON mode, as for config.json: arrays become tuples, and text is not read as a number.
        return option.model_validate_json(json.dumps(value))

    return read


# Placeholder for the JSON schema of a group, which `json_schema` replaces by a union over its
# kinds.
_GROUP = WithJsonSchema({"type": "object"})


@dataclass(frozen=True, slots=True)
class _Presets:
    """Values that packaged presets set, by key."""

    # compare=False: two configs with the same values are equal, whoever set them.
    values: Mapping[str, Any] = field(default_factory=dict, compare=False)


class RunConfig(Settings):
    """Complete config of a run, without defaults in code."""

    name: str = Field(max_length=128, pattern=r"^\w[\w.+=,@-]*$", examples=["my-run"])
    """Name of the run, and of its folder in `run_root`: letters, digits and `_ . + = , @ -`."""
    seed: int = Field(ge=0, lt=2**63)
    """Seed of all random numbers: initial weights, data order, dropout."""
    max_steps: int | None = Field(gt=0, le=10**12)
    """Optimizer steps of the whole run; null if max_epochs alone ends the run."""
    max_epochs: float | None = Field(gt=0, le=1e6)
    """Passes over the training set; null if max_steps alone ends the run. If both
    are set, the first limit ends the run."""
    max_grad_norm: float | None = Field(gt=0, le=1e9)
    """Limit of the 2-norm of all gradients together; null does not clip."""
    max_grad_norm_per_parameter: float | None = Field(gt=0, le=1e9)
    """Limit of the 2-norm of each parameter's gradient, applied before max_grad_norm; null does not
    clip."""
    max_grad_value: float | None = Field(gt=0, le=1e9)
    """Limit of the absolute value of every gradient element, applied last; null does not clip."""
    eval_every_steps: int | None = Field(gt=0, le=10**12)
    """Steps between evaluations on the held-out set; null evaluates only at the end of the run."""
    eval_max_samples: int | None = Field(gt=0, le=10**9)
    """Held-out samples of an evaluation during the run; null takes all."""
    final_eval_max_samples: int | None = Field(gt=0, le=10**9)
    """Held-out samples of the evaluation after the last step; null takes all."""
    objective: str = Field(min_length=1)
    """Validation score of the finished run that a sweep optimizes, by its name in metrics.jsonl."""
    objective_mode: Literal["min", "max"]
    """Direction of the sweep: minimize or maximize the objective. Sweepers minimize: for `max` they
    get the negative of the objective."""
    log_every_steps: int = Field(gt=0, le=10**12)
    """Steps between two rows of metrics."""
    on_nonfinite: Literal["stop", "skip"]
    """Action if loss or gradient norm is not finite: end the run, or skip the update and continue.
    A skipped update counts as a step of the learning rate schedule."""
    max_consecutive_skips: int | None = Field(gt=0, le=10**9)
    """Number of skipped updates in a row after which the run fails; null for no limit."""
    run_root: str = Field(min_length=1, pattern=r"^[^\x00]*$")
    """Folder of all runs, relative to the current folder."""
    model: Annotated[SerializeAsAny[ModelOption], PlainValidator(_reader("model")), _GROUP]
    """The network, and its tokenizer."""
    task: Annotated[SerializeAsAny[TaskOption], PlainValidator(_reader("task")), _GROUP]
    """The training task: samples, loss and metrics."""
    data: Annotated[SerializeAsAny[DataOption], PlainValidator(_reader("data")), _GROUP]
    """The source of the raw records."""
    adapter: Annotated[SerializeAsAny[AdapterOption], PlainValidator(_reader("adapter")), _GROUP]
    """Small added weights that are trained in place of the network's."""
    optimizer: Annotated[
        SerializeAsAny[OptimizerOption], PlainValidator(_reader("optimizer")), _GROUP
    ]
    """The optimizer and its parameter groups."""
    scheduler: Annotated[
        SerializeAsAny[SchedulerOption], PlainValidator(_reader("scheduler")), _GROUP
    ]
    """The learning rate schedule."""
    precision: Annotated[
        SerializeAsAny[PrecisionOption], PlainValidator(_reader("precision")), _GROUP
    ]
    """Number formats of parameters and computation."""
    activation: Annotated[
        SerializeAsAny[ActivationOption], PlainValidator(_reader("activation")), _GROUP
    ]
    """Treatment of activations between forward and backward pass."""
    compile: Annotated[SerializeAsAny[CompileOption], PlainValidator(_reader("compile")), _GROUP]
    """Compilation of the network by torch.compile."""
    ema: Annotated[SerializeAsAny[EmaOption], PlainValidator(_reader("ema")), _GROUP]
    """Exponential moving average of the weights."""
    batching: Annotated[SerializeAsAny[BatchingOption], PlainValidator(_reader("batching")), _GROUP]
    """Order of the samples, and division of a window into micro-batches."""
    accumulation: Annotated[
        SerializeAsAny[AccumulationOption], PlainValidator(_reader("accumulation")), _GROUP
    ]
    """Global batch size and micro-batch size."""
    parallelism: Annotated[
        SerializeAsAny[ParallelismOption], PlainValidator(_reader("parallelism")), _GROUP
    ]
    """The engine: one process, or several ranks."""
    observer: Annotated[SerializeAsAny[ObserverOption], PlainValidator(_reader("observer")), _GROUP]
    """An observer of the steps, in addition to logging and checkpoints."""
    checkpoint: Annotated[
        SerializeAsAny[CheckpointOption], PlainValidator(_reader("checkpoint")), _GROUP
    ]
    """Checkpoints: interval and storage."""
    logging: Annotated[SerializeAsAny[LoggingOption], PlainValidator(_reader("logging")), _GROUP]
    """Outputs for metrics and messages."""
    launch: Annotated[SerializeAsAny[LaunchOption], PlainValidator(_reader("launch")), _GROUP]
    """Start of the ranks: their number and device."""

    _presets: _Presets = PrivateAttr(default_factory=_Presets)

    def with_presets(self, values: Mapping[str, Any]) -> Self:
        """Return this config with a record of the values that packaged presets set."""
        # Not in config.json: there the values were accepted at the start of the run.
        config = self.model_copy()
        config._presets = _Presets(values)  # noqa: SLF001 - its own
        return config

    def is_from_preset(self, key: str) -> bool:
        """Return True if a packaged preset set a key, and not the user; see `ConfigView`."""
        if key not in self._presets.values:
            return False
        # Compared with the present value: `model_copy(update=…)` in Python may have replaced it.
        value: Any = self
        for name in key.split("."):
            value = getattr(value, name, None)
        return bool(value == self._presets.values[key])

    def options(self) -> Iterator[tuple[str, Option]]:
        """Yield every group's name and option, in the order of `GROUPS`."""
        for group in GROUPS:
            yield group, getattr(self, group)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the config in a file."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([Problem("", f"cannot be read: {error}", str(path))]) from error
        return cls.from_json(text)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the config that `to_json` wrote."""
        try:
            mapping = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError([Problem("", f"the config is not JSON: {error}")]) from error
        return cls.from_mapping(mapping)

    @classmethod
    def from_mapping(cls, mapping: Any) -> Self:
        """Return the config in a composed mapping; raise ConfigError with every invalid value."""
        # Via JSON, in which strict validation takes a list for a tuple: the launcher and the ranks
        # validate the same representation.
        try:
            return cls.model_validate_json(json.dumps(mapping, default=str))
        except ValidationError as error:
            raise ConfigError(problems_in(error, cls, mapping)) from error

    def to_json(self) -> str:
        """Return this config as JSON; equal configs give equal texts."""
        values = self.model_dump(mode="json")
        # Sorted, because the fingerprint must not depend on the order of fields in the classes.
        return json.dumps(values, sort_keys=True, indent=1, allow_nan=False) + "\n"

    def fingerprint(self) -> str:
        """Return 16 hex digits that depend on every value of the config."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema 2020-12 of a config, with which editors complete and check it."""
    from pydantic.json_schema import models_json_schema

    options = {
        (group, kind): option_class(group, kind) for group in GROUPS for kind in kinds(group)
    }
    by_class, shared = models_json_schema(
        [(cls, "validation") for cls in dict.fromkeys(options.values())]
    )
    schema = RunConfig.model_json_schema()
    definitions = {**schema.get("$defs", {}), **shared["$defs"]}
    for group in GROUPS:
        mapping = {}
        for kind in kinds(group):
            cls = options[group, kind]
            reference = by_class[cls, "validation"]["$ref"]
            definition = definitions[reference.rpartition("/")[2]]
            # `kind` is the module's name; the class may annotate it as `str` only.
            definition["properties"]["kind"] |= {"const": kind}
            mapping[kind] = reference
        schema["properties"][group] = {
            "description": RunConfig.model_fields[group].description,
            "oneOf": [{"$ref": reference} for reference in mapping.values()],
            "discriminator": {"propertyName": "kind", "mapping": mapping},
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "$defs": definitions,
    }
