"""Base classes of the options of optimizers and of their parameter groups."""

from __future__ import annotations

import json
import math
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, ValidationError, model_validator
from typing_extensions import override

from launcher.contracts.options import DeviceOption, Settings
from launcher.contracts.sharding import UNSHARDED, Sharding, canonical_name
from launcher.errors import Problem

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from launcher.contracts.config import ConfigView


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
"""A regular expression."""


class GroupOverride(Settings):
    """Other options for some parameters: `{pattern: embed, lr: 1.0e-3, betas: [0.9, 0.99]}`.

    Next to `pattern` it takes the optimizer's own `group_options`.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    pattern: Pattern
    """Regular expression of parameter names."""

    @property
    def values(self) -> dict[str, JsonValue]:
        """The options that differ."""
        return self.__pydantic_extra__


class ParamGroups(Settings):
    """Rules that divide the parameters into groups.

    A pattern is a regular expression that must match (`re.search`) at least one parameter's name; a
    shared parameter is matched by each of its names.
    """

    no_decay_types: tuple[Literal["norm", "bias", "embedding", "vector"], ...]
    """The rule: what does not decay. `norm`: all parameters of normalisation layers; `bias`: biases
    of any layer; `embedding`: embedding tables; `vector`: parameters of fewer than two dims."""
    decay: tuple[Pattern, ...]
    """Patterns of parameters that decay although the rule, or `no_decay`, would spare them."""
    no_decay: tuple[Pattern, ...]
    """Patterns of parameters that do not decay although the rule would have them."""
    frozen: tuple[Pattern, ...]
    """Patterns of parameters that are not trained."""
    layer_decay: float | None = Field(gt=0, le=1)
    """Learning rate of each block over that of the block after it; None for the same rate
    everywhere."""
    overrides: tuple[GroupOverride, ...]
    """Other options for some parameters; where several match, the last one that names an option
    wins."""

    def freeze(self, module: nn.Module) -> None:
        """Set `requires_grad` to False for the parameters that `frozen` matches.

        Call it before the module is wrapped or sharded.
        """
        # DDP and FSDP read requires_grad when they wrap. remove_duplicate=False: a tied parameter
        # is frozen by a pattern of any of its names.
        for name, param in module.named_parameters(remove_duplicate=False):
            if any(re.search(pattern, canonical_name(name)) for pattern in self.frozen):
                param.requires_grad_(False)


# Factor between two model sizes above which their learning rates are not comparable.
_FAR = 10
# State that torch's optimizers keep once per parameter, whatever its shape.
_SCALARS = frozenset({"step", "mu_product"})


@dataclass(frozen=True, slots=True)
class OptimizerTarget:
    """Module and device for which an optimizer is built.

    Attributes:
        module: The network. Its parameters are the tensors that the optimizer steps: where an
            engine shards them, the local tensors, of any shape, in place of the full ones.
        device_type: Kind of device that the parameters are on.
        sharding: Which full tensors the parameters are shards of, and sums over all shards.
    """

    module: nn.Module
    device_type: str
    sharding: Sharding = UNSHARDED

    @property
    def is_sharded(self) -> bool:
        """True where a parameter may be a part of a tensor."""
        return self.sharding.ranks > 1

    def shape_of(self, param: Tensor) -> tuple[int, ...]:
        """Return the shape of the full tensor that a parameter is or is a shard of."""
        return self.sharding.shard_of(param).shape if self.is_sharded else tuple(param.shape)


class UsualLr(NamedTuple):
    """Learning rates that are usual for fine-tuning pretrained weights, lowest and highest."""

    full: tuple[float, float]
    """Range if all weights are trained."""
    adapter: tuple[float, float]
    """Range if small added matrices are trained (LoRA)."""


class OptimizerOption(DeviceOption):
    """The optimizer and its parameter groups."""

    group_options: ClassVar[frozenset[str]] = frozenset({"lr", "lr_scale", "weight_decay"})
    """Settings that can differ between groups: fields, and `lr_scale`, a factor of `lr`."""
    owns_schedule: ClassVar[bool] = False
    """The optimizer finds its own learning rates: it needs a constant schedule, with or without
    warm-up."""
    elementwise: ClassVar[bool] = False
    """The update of an element does not depend on other elements, so that shards can be updated
    like full tensors."""
    clips_itself: ClassVar[bool] = False
    """The optimizer limits its own updates; clipping gradient norms as well changes the result."""

    usual_lrs: ClassVar[Mapping[str, UsualLr | None]] = {"lr": None}
    """Fields that are learning rates, with the usual values for fine-tuning (None: not known).
    Empty where the optimizer finds its own."""
    preset_model_size: ClassVar[int] = 295_392
    """Parameters of the model, trained from scratch, on which the preset's rates were tuned: the
    default job's."""

    lr: float | None = Field(gt=0, le=1e3)
    """Peak learning rate; the schedule scales it. None where the optimizer sets its own."""
    weight_decay: float = Field(ge=0, le=1e3)
    """Strength of the pull towards zero, in the groups that decay."""
    groups: ParamGroups
    """Parameter groups."""

    @property
    def never_decays(self) -> bool:
        """True where no group has weight decay."""
        overrides = self.groups.overrides
        return not (self.weight_decay or any(each.values.get("weight_decay") for each in overrides))

    @property
    def peak_lr(self) -> float | None:
        """Learning rate that a schedule scales; None if no schedule may scale it."""
        # Overridden by kinds whose `lr` may be null, to give a schedule a rate nevertheless.
        return self.lr

    @model_validator(mode="after")
    def _overrides_fit(self) -> Self:
        if self.groups.layer_decay is not None and (
            self.lr is None or "lr_scale" not in self.group_options
        ):
            raise ValueError("groups.layer_decay: this optimizer has one learning rate; use null")
        for place, group in enumerate(self.groups.overrides):
            # Here and not when the groups are built: `trainctl check` finds a wrong option of a
            # group without torch and without the model.
            try:
                self.overridden(group.values)
            except ValueError as error:
                raise ValueError(f"groups.overrides[{place}] ({group.pattern}): {error}") from None
        return self

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        scheduler = config.scheduler
        if self.owns_schedule and not scheduler.is_constant:
            yield Problem(
                "scheduler.kind",
                f"must be constant, because {self.kind} finds its own learning rates, but is "
                f"{scheduler.kind}; choose scheduler=constant",
            )
        yield from self._untuned_for_pretrained(config)
        if not scheduler.uses_optimizer_lr:
            for field, reason in self.ignored_under_schedule().items():
                yield Problem(f"optimizer.{field}", reason)

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = super().not_applicable(config)
        # Without decay the rules that choose what decays change nothing.
        if not self.never_decays:
            return found
        fields = ("groups.no_decay_types", "groups.decay", "groups.no_decay")
        return {**found, **dict.fromkeys(fields, "weight_decay is 0")}

    @override
    def cautions(self, config: ConfigView) -> Iterator[Problem]:
        yield from self._tuned_on_another_size(config)
        if not self.clips_itself:
            return
        limits = {
            "max_grad_norm": config.max_grad_norm,
            "max_grad_norm_per_parameter": config.max_grad_norm_per_parameter,
        }
        for key, limit in limits.items():
            if limit is not None:
                yield Problem(
                    key, f"changes what {self.kind} computes, which limits its own updates"
                )

    def _untuned_for_pretrained(self, config: ConfigView) -> Iterator[Problem]:
        # An error, not a warning: the presets' rates are for small models from scratch, 10 to 200
        # times those of fine-tuning, and destroy pretrained weights in a few steps.
        if not config.model.has_pretrained_weights:
            return
        for field, value in self._preset_lrs(config):
            usual = self.usual_lrs[field]
            advice = f"set optimizer.{field}"
            if usual is not None:
                # The geometric mean: learning rates are searched on a logarithmic scale.
                chosen = usual.adapter if config.adapter.is_active else usual.full
                advice = (
                    f"usual for {self.kind} are {_range(usual.full)} for full fine-tuning and "
                    f"{_range(usual.adapter)} for adapters; write optimizer.{field}="
                    f"{_number(math.sqrt(math.prod(chosen)))}"
                )
            yield Problem(
                f"optimizer.{field}",
                f"must be set for pretrained weights, but is the preset's {_number(value)}, tuned "
                f"on a model of {_size(self.preset_model_size)} parameters from scratch; {advice}",
            )

    def _tuned_on_another_size(self, config: ConfigView) -> Iterator[Problem]:
        size = config.model.approximate_size
        if size is None or config.model.has_pretrained_weights:
            return
        # Only a warning: a preset may be right for another size, but nobody has measured it.
        ratio = size / self.preset_model_size
        if 1 / _FAR < ratio < _FAR:
            return
        for field, value in self._preset_lrs(config):
            yield Problem(
                f"optimizer.{field}",
                f"is the preset's {_number(value)}, tuned on a model of "
                f"{_size(self.preset_model_size)} parameters, but model={config.model.kind} has "
                f"about {_size(size)}; set it for this size (larger models need lower rates)",
            )

    def _preset_lrs(self, config: ConfigView) -> Iterator[tuple[str, float]]:
        for field in self.usual_lrs:
            value = getattr(self, field)
            if value is not None and config.is_from_preset(f"optimizer.{field}"):
                yield field, value

    def state_bytes(self, params: Mapping[str, Tensor]) -> Mapping[str, int] | None:
        """Return the bytes of the state of parameters on the meta device, by key of the state.

        None (the default): they are measured by a step on the meta device.
        """
        # Overridden by optimizers whose kernels do not run on meta tensors (8-bit libraries).
        del params
        return None

    def refuses_shards(self) -> str | None:
        """Return why the optimizer does not support shards of tensors; None where it does.

        Overridden by kinds that take the sums over full tensors from `OptimizerTarget.sharding`.
        """
        return None if self.elementwise else "it needs whole tensors"

    def own_lr(self, step: int) -> float | None:
        """Return the learning rate that the optimizer sets itself at a step, from 0 on.

        None where it uses the schedule's.
        """
        del step
        return None

    def ignored_under_schedule(self) -> Mapping[str, str]:
        """Return the fields that are ignored under a schedule, each with the reason and a fix."""
        return {}

    def overridden(self, values: Mapping[str, JsonValue]) -> Self:
        """Return the option with the values of a parameter group, validated.

        Args:
            values: By field; `lr_scale` multiplies the peak instead of replacing it.

        Raises:
            ValueError: A field is unknown, cannot differ by group, or its value is not valid.
        """
        if unknown := sorted(values.keys() - self.group_options):
            can = ", ".join(sorted(self.group_options))
            raise ValueError(
                f"{', '.join(unknown)}: cannot be set by group; settings that can: {can}"
            )
        changed = dict(values)
        if changed.keys() & {"lr", "lr_scale"} and self.lr is None:
            raise ValueError("lr: the optimizer sets its own, so that a group cannot have another")
        scale = changed.pop("lr_scale", None)
        if scale is not None:
            # A bool is an int in Python: `lr_scale: true` would train with the factor 1.
            if "lr" in changed or isinstance(scale, bool) or not isinstance(scale, int | float):
                raise ValueError("lr_scale: must be a number, and not combined with lr")
            changed["lr"] = (self.lr or 0) * scale
        if "lr" in changed and changed["lr"] is None:
            raise ValueError("lr: must be a number")
        # Without overrides: validating these would call this method again, without end.
        groups = self.groups.model_dump(mode="json") | {"overrides": []}
        whole = self.model_dump(mode="json") | changed | {"groups": groups}
        try:
            # From JSON: strict validation takes a list for a tuple (`betas`) only there.
            return type(self).model_validate_json(json.dumps(whole))
        except ValidationError as error:
            reasons = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError("; ".join(reasons)) from None

    @abstractmethod
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        """Build the optimizer over the target's trainable parameters.

        Each of its `param_groups` carries a unique `name`, by which its state is saved, and
        `lr_scale`: the group's learning rate over the peak. The engine sets
        `lr = schedule.lr(step) * lr_scale` before each step.

        An optimizer whose groups have state names the keys in an attribute `group_state`. One whose
        weights differ between training and evaluation has `train()` and `eval()`, which the engine
        calls around evaluation, saving and export.

        Raises:
            ConfigError: A pattern matches no parameter, the device or an installed library does not
                support what the option needs, or the parameters are shards and the optimizer
                `refuses_shards`.
        """


def is_sharded_state(optimizer: torch.optim.Optimizer, param: Tensor, key: str) -> bool:
    """Return True if an entry of a parameter's state is sharded like the parameter.

    If not, it is equal on all ranks: a number of steps, or a statistic of the full tensor, which
    the optimizer names in an attribute `whole_state`.
    """
    # By name first: the shape does not tell a step () from a moment of a scalar parameter ().
    if key in getattr(optimizer, "whole_state", ()) or key in _SCALARS:
        return False
    return getattr(optimizer.state[param][key], "shape", None) == param.shape


def _number(value: float) -> str:
    # 2e-5 instead of Python's 2e-05: it is how papers and configs write it.
    if value >= 1e-3:
        return f"{value:g}"
    return re.sub(r"e-0*", "e-", f"{value:.0e}")


def _range(ends: tuple[float, float]) -> str:
    return " to ".join(map(_number, ends))


def _size(params: int) -> str:
    for scale, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if params >= scale:
            return f"{params / scale:.3g} {unit}"
    return str(params)
