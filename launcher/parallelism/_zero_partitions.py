"""Access to DeepSpeed's ZeRO optimizers: the part of each parameter on this rank, and the step."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

if TYPE_CHECKING:
    from types import ModuleType


class Range(NamedTuple):
    """The part of a parameter that this rank updates.

    Attributes:
        offset: Its first element in the rank's flat tensor.
        start: Its first element in the flattened parameter.
        numel: Number of elements; 0 where other ranks hold the whole parameter.
    """

    offset: int
    start: int
    numel: int


class Partitions(Protocol):
    """This rank's part of all parameters, in one stage."""

    @property
    def flat(self) -> nn.Parameter:
        """Weights that this rank updates, float32; during the update also their gradients."""

    def range_of(self, param: nn.Parameter) -> Range:
        """Return this rank's part of a trained parameter."""

    def frozen_part(self, param: nn.Parameter) -> tuple[Tensor, int] | None:
        """Return this rank's part of a parameter that is not trained, and its first element.

        None if every rank holds all of it.
        """

    def shape_of(self, param: nn.Parameter) -> tuple[int, ...]:
        """Return the shape of the full parameter."""

    def gathered(self, param: nn.Parameter) -> AbstractContextManager[object]:
        """Return the context in which every rank has the full parameter; collective."""

    def publish(self) -> None:
        """Copy `flat` into the module's parameters on all ranks; collective."""

    def begin_window(self) -> None:
        """Prepare for gradients of parameters that the window's first micro-batch does not use."""

    def end_window(self) -> None:
        """Complete gradients of parameters that the window's last micro-batch did not use."""


class ReplicatedParameters:
    """Stages 1 and 2: every rank holds the full parameters."""

    def __init__(self, zero: Any) -> None:
        self._zero = zero

    @property
    def flat(self) -> nn.Parameter:
        found: nn.Parameter
        [found] = self._zero.single_partition_of_fp32_groups
        return found

    def range_of(self, param: nn.Parameter) -> Range:
        mapping: Any = getattr(param, "_hp_mapping", None)
        if mapping is None:
            return Range(0, 0, 0)
        held, place = mapping.hp_fragment_address, mapping.lp_fragment_address
        return Range(held.start, place.start, held.numel)

    def frozen_part(self, param: nn.Parameter) -> tuple[Tensor, int] | None:
        del param
        return None

    def shape_of(self, param: nn.Parameter) -> tuple[int, ...]:
        return tuple(param.shape)

    def gathered(self, param: nn.Parameter) -> AbstractContextManager[object]:
        del param
        return nullcontext()

    def publish(self) -> None:
        self._zero.update_lp_params()

    def begin_window(self) -> None:
        pass

    def end_window(self) -> None:
        pass


class ShardedParameters:
    """Stage 3: a parameter is gathered only while its layer computes."""

    def __init__(self, zero: Any) -> None:
        self._zero = zero

    @property
    def flat(self) -> nn.Parameter:
        found: nn.Parameter
        [found] = self._zero.fp32_partitioned_groups_flat
        return found

    def range_of(self, param: nn.Parameter) -> Range:
        _, offset, _ = self._zero.grad_position[self._zero.get_param_id(param)]
        return Range(offset, *_held(param))

    def frozen_part(self, param: nn.Parameter) -> tuple[Tensor, int] | None:
        start, numel = _held(param)
        local: Tensor = param.ds_tensor.data[:numel]  # type: ignore[attr-defined]
        return local, start

    def shape_of(self, param: nn.Parameter) -> tuple[int, ...]:
        return tuple(param.ds_shape)  # type: ignore[attr-defined]

    def gathered(self, param: nn.Parameter) -> AbstractContextManager[object]:
        import deepspeed

        context: AbstractContextManager[object] = deepspeed.zero.GatheredParameters([param])
        return context

    @torch.no_grad()
    def publish(self) -> None:
        self._zero._reassign_or_swap_out_partitioned_parameters(0)  # noqa: SLF001 - no public name
        if persistent := self._zero.persistent_parameters:
            persistent[0].all_gather(persistent)

    def begin_window(self) -> None:
        # DeepSpeed overwrites the gradients of the window before in the first micro-batch only, and
        # later ones are added: a parameter of later ones would keep its old gradient.
        self._zero.grad_partitions_flat_buffer.zero_()

    def end_window(self) -> None:
        # DeepSpeed copies the gradients to the host in the last micro-batch's backward pass: only
        # of parameters that it uses.
        if self._zero.offload_optimizer:
            self._zero._finalize_offload_gradient_accumulation()  # noqa: SLF001 - no public name


def _held(param: Any) -> tuple[int, int]:
    """Return the first element and the number of elements that this rank holds in stage 3."""
    # DeepSpeed pads a parameter to equal parts: the last ranks hold less, or nothing.
    size, whole = param.partition_numel(), param.ds_numel
    start = min(dist.get_rank() * size, whole)
    return start, min(size, whole - start)


class Handover(torch.optim.Optimizer):
    """The optimizer that DeepSpeed steps: its step calls the engine's update.

    All parameters are in one group, so that DeepSpeed keeps one flat tensor and steps once.
    """

    def __init__(self, params: Sequence[nn.Parameter]) -> None:
        self.update: Any = None
        super().__init__(params, {"lr": 0.0})

    @override
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.update is not None:
            self.update()


def import_deepspeed(device_type: str) -> ModuleType:
    """Import DeepSpeed for a kind of device; it neither logs nor compiles anything."""
    # DeepSpeed reads the variable while it is imported.
    os.environ.setdefault("DS_ACCELERATOR", device_type)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    from deepspeed import ops

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # It calls a function that torch 2.13 has renamed.
    warnings.filterwarnings("ignore", r".*all_gather_into_tensor.*", FutureWarning)
    warnings.filterwarnings("ignore", r".*reduce_scatter_tensor.*", FutureWarning)
    # Otherwise it probes compilers and builds a library for all-reduces on the CPU, for minutes.
    if "__compatible_ops__" not in vars(ops):
        ops.__compatible_ops__ = {}
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed  # type: ignore[no-any-return]


def leave_out_norm(zero: Any) -> None:
    """Switch off DeepSpeed's own norm and its skipping of updates: the engine does both."""
    zero.scaled_global_norm = lambda: torch.zeros(())
    zero._get_norm_groups = lambda: [torch.zeros(())]  # noqa: SLF001 - no public switch in stage 3
