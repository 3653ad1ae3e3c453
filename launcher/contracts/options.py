"""Base classes of all options."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict
from typing_extensions import override

from launcher.contracts import reads
from launcher.errors import Problem

if TYPE_CHECKING:
    from launcher.contracts.config import ConfigView
    from launcher.contracts.observers import Observer, RunContext


GROUPS = (
    "model",
    "task",
    "data",
    "adapter",
    "optimizer",
    "scheduler",
    "precision",
    "activation",
    "compile",
    "ema",
    "batching",
    "accumulation",
    "parallelism",
    "observer",
    "logging",
    "checkpoint",
    "launch",
)
"""Names of the config groups, in the order in which their observers are called."""
DEVICES = ("cpu", "cuda", "mps")
"""Kinds of device, as torch names them."""
DType = Literal["float32", "bfloat16", "float16"]
"""Number formats of weights in files, as torch names them."""


# Looked up once, because every read of every setting calls it.
_get = object.__getattribute__


class Settings(BaseModel):
    """Part of the config; unknown keys are errors, and values are frozen."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        # No conversion: `lr: "1e-3"` and `steps: 1.0` are errors, and the YAML is what runs.
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        # Building a validator takes milliseconds, and most classes are only inherited from or not
        # chosen: `trainctl --help` would pay for all of them.
        defer_build=True,
    )

    read_on_event: ClassVar[frozenset[str]] = frozenset()
    """Fields that a run reads only after an event, such as an overflow."""

    @override
    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        # Pydantic does not inherit the docs of a field that a subclass redeclares, to narrow its
        # range: each kind would have to repeat them.
        bases = [base for base in cls.__mro__[1:] if issubclass(base, Settings)]
        for name, field in cls.model_fields.items():
            inherited = (base.model_fields[name] for base in bases if name in base.model_fields)
            field.description = field.description or next(
                (doc for each in inherited if (doc := each.description)), None
            )

    if not TYPE_CHECKING:  # a type checker would take every attribute for a field
        # Called for every read of every attribute: without a record it costs one test for None.
        def __getattribute__(self, name: str) -> Any:
            if reads.active is not None:
                reads.active.note(self, name)
            return _get(self, name)

    @override
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copy = super().model_copy(update=update, deep=deep)
        if reads.active is not None:
            reads.active.follow(self, copy, update or {})
        return copy


class Option(Settings, ABC):
    """Base class of the options of all config groups."""

    extra: ClassVar[str | None] = None
    """Extra of trainctl (`pip install 'trainctl[…]'`) that the kind needs, if any."""

    kind: str
    """Name of the kind: its module in the group's package."""

    def preflight(self) -> None:
        """Check files and folders that the config names, before anything starts.

        Must not import torch, nor read more than needed to find an error.

        Raises:
            TrainctlError: The run would fail; the message has the reason and a fix.
        """

    def problems(self, config: ConfigView) -> Iterator[Problem]:
        """Yield a problem for each setting that does not work with the rest of the config.

        Called by every command that reads a config: must not import torch or read files. An
        override also yields from `super().problems(config)`.
        """
        del config
        yield from ()

    def cautions(self, config: ConfigView) -> Iterator[Problem]:
        """Yield warnings for settings that work but may be mistakes; otherwise like `problems`."""
        del config
        yield from ()

    def unsupported_on(self, device_type: str) -> Mapping[str, str]:
        """Return the fields that a device type does not support, each with the reason and a fix."""
        del device_type
        return {}

    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        """Return the fields that have no effect in this run, each with the reason.

        Setting one on the command line is an error; any other field that a run does not read is
        reported as a mistake. A nested field is named by its dotted key. An override also returns
        the fields of `super().not_applicable(config)`.
        """
        del config
        return {}

    @property
    def watches(self) -> Mapping[str, str]:
        """Validation scores that the option uses, each with the field that names it."""
        return {}

    def observers(self, context: RunContext) -> Sequence[Observer]:
        """Return observers to add to the run, by default none.

        Called on every rank, after the engine is built and its state restored.
        """
        del context
        return ()


class DeviceOption(Option):
    """An option that some device types do not support."""

    devices: ClassVar[frozenset[str]] = frozenset(DEVICES)
    """Supported device types."""

    @override
    def unsupported_on(self, device_type: str) -> Mapping[str, str]:
        if device_type in self.devices:
            return {}
        return {"kind": f"{self.kind} needs {', '.join(sorted(self.devices))}"}
