"""The engine of one process: the arithmetic that every other engine must reproduce."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from launcher.errors import CheckpointError, NonFinite
from launcher.parallelism._clipping import clip_, total_norm
from launcher.parallelism._optimizer_state import (
    load_optimizer,
    optimizer_template,
    optimizer_tensors,
)

if TYPE_CHECKING:
    from launcher.contracts import EngineParts, EngineState, MicroBatch, Window

from launcher.contracts import UpdateStats

_log = logging.getLogger("trainctl.engine")
_NAMED = 5


class SingleEngine:
    """Forward, backward and update on one device.

    Each micro-batch's summed loss is divided by the window's number of targets before its backward
    pass, so the gradient is that of the window's mean loss however the window is cut.
    """

    def __init__(self, parts: EngineParts) -> None:
        self._device = torch.device(parts.world.device)
        self._precision = parts.precision.build(self._device.type)
        parts.optimizer.groups.freeze(parts.module)
        self._precision.prepare(parts.module)
        self._module = parts.module.to(self._device)
        self._module.train()
        self._loss = parts.loss
        self._clipping = parts.clipping
        self._skip_nonfinite = parts.skip_nonfinite
        self._optimizer = self._precision.build_optimizer(
            parts.optimizer, self._module, self._device.type
        )
        self._params = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._window: Window | None = None
        self._losses: list[Tensor] = []
        self._begun = False
        self._told = False

    def forward_backward(self, window: Window) -> Tensor:
        """Accumulate the gradient of the window's mean loss; see `Engine`."""
        self._window = window
        self._losses = []
        # A window of masked targets only has no gradient, not a division by zero.
        divisor = max(1, window.num_targets)
        for micro_batch in window.micro_batches:
            with self._precision.autocast():
                loss = self._loss(self._module, self._on_device(micro_batch.inputs)) / divisor
            scale = self._precision.loss_scale
            (scale.scale(loss) if scale else loss).backward()  # type: ignore[no-untyped-call]
            self._losses.append(loss.detach())
        return torch.stack(self._losses).sum() if len(self._losses) > 1 else self._losses[0]

    def update(self, lr: float | None) -> UpdateStats:
        """Unscale, check, clip, step, and clear the gradients; see `Engine`."""
        self._begun = True
        grads = [p.grad for p in self._params if p.grad is not None]
        scale = self._precision.loss_scale
        factor = scale.value if scale else None
        if scale:
            scale.unscale(grads)
        norm = total_norm(grads)
        # The one number read from the device each step: without it a NaN would reach the weights.
        finite = math.isfinite((norm + sum(self._losses)).item())
        if finite:
            self._tell_of_idle()
            clip_(self._params, self._clipping, norm)
            for group in self._optimizer.param_groups:
                if lr is not None:
                    group["lr"] = lr * group["lr_scale"]
            self._optimizer.step()
        elif scale and all(loss.isfinite() for loss in self._losses):
            _log.debug("update skipped: gradients overflow at a loss scale of %g", factor)
        else:
            self._refuse(norm)
        if scale:
            scale.update(overflowed=not finite)
        self._optimizer.zero_grad(set_to_none=True)
        return UpdateStats(norm, finite, factor)

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> float:
        """Summed loss without gradient, dropout off; see `Engine`."""
        self._training(on=False)
        try:
            with torch.no_grad(), self._precision.evaluation(self._module):
                losses = [
                    self._loss(self._module, self._on_device(m.inputs)) for m in micro_batches
                ]
                # In float64 on the host, once: the device is not waited for between batches.
                return math.fsum(torch.stack(losses).tolist()) if losses else 0.0
        finally:
            self._training(on=True)

    def module(self) -> nn.Module:
        """The module itself, in evaluation mode; see `Engine`."""
        self._training(on=False)
        return self._module

    def state(self) -> EngineState:
        """Parameters, buffers and optimizer state by name; see `Engine`."""
        model = {f"model.{name}": tensor for name, tensor in self._model_tensors().items()}
        formats = {f"precision.{name}": value for name, value in self._precision.state().items()}
        take = optimizer_tensors if self._begun else optimizer_template
        return {**model, **formats, **take(self._optimizer, self._names())}

    def load_state(self, state: EngineState) -> None:
        """Copy a state into the live tensors, strictly; see `Engine`."""
        live = self._model_tensors()
        given = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
        if given.keys() != live.keys():
            missing, left = sorted(live.keys() - given.keys()), sorted(given.keys() - live.keys())
            raise CheckpointError(
                f"the checkpoint is of another model: missing {missing[:5]}, left over {left[:5]}"
            )
        with torch.no_grad():
            for name, tensor in live.items():
                if tensor.shape != given[name].shape:
                    raise CheckpointError(
                        "the checkpoint is of another model: "
                        f"{name} is {tuple(given[name].shape)}, must be {tuple(tensor.shape)}"
                    )
                tensor.copy_(given[name])
        formats = {k: v for k, v in state.items() if k.startswith("precision.")}
        rest = {k: v for k, v in state.items() if k not in formats and not k.startswith("model.")}
        load_optimizer(self._optimizer, self._names(), rest)
        self._begun = True
        self._load_formats({k.removeprefix("precision."): v for k, v in formats.items()})

    def close(self) -> None:
        """Nothing to give back: the process owns its device alone."""

    def _load_formats(self, given: Mapping[str, Tensor]) -> None:
        """The format's own state; a run that goes on in another format, on purpose, has none."""
        fresh = self._precision.state()
        if given.keys() == fresh.keys():
            self._precision.load_state(given)
            return
        _log.warning(
            "the checkpoint is of another precision: %s",
            "; ".join(
                [f"{name} starts at {value.item():g}" for name, value in fresh.items()]
                or [f"nothing needs {', '.join(given)} any more"]
            ),
        )

    def _on_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.to(self._device, non_blocking=True) for k, v in inputs.items()}

    def _training(self, *, on: bool) -> None:
        self._module.train(on)
        # Schedule-free optimizers keep other weights for evaluation than for training.
        switch = getattr(self._optimizer, "train" if on else "eval", None)
        if switch is not None:
            switch()

    def _model_tensors(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers by name; a tied one once, under its first name."""
        tensors: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, tensor in self._module.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                tensors[name] = tensor.detach()
        return tensors

    def _names(self) -> dict[Tensor, str]:
        return {p: name for name, p in self._module.named_parameters()}

    def _tell_of_idle(self) -> None:
        """Name, once, the parameters that are to be trained and take no part in the loss."""
        if self._told:
            return
        self._told = True
        params = self._module.named_parameters()
        if idle := [name for name, p in params if p.requires_grad and p.grad is None]:
            more = f" and {len(idle) - _NAMED} more" if len(idle) > _NAMED else ""
            _log.warning(
                "parameters without a gradient stay as they are until they get one: %s%s; if they "
                "never should, name them in optimizer.groups.frozen",
                ", ".join(idle[:_NAMED]),
                more,
            )

    def _refuse(self, norm: Tensor) -> None:
        """Leave the weights alone; end the run unless it is to go on without this window."""
        error = self._explain(norm)
        if not self._skip_nonfinite:
            self._optimizer.zero_grad(set_to_none=True)
            raise error
        _log.warning("update skipped: %s", error)

    def _explain(self, norm: Tensor) -> NonFinite:
        """What was not finite, and in which micro-batch."""
        window = self._window
        assert window is not None, "update follows forward_backward"  # noqa: S101
        for micro_batch, loss in zip(window.micro_batches, self._losses, strict=True):
            if not math.isfinite(loss.item()):
                return NonFinite(f"the loss is {loss.item()}", micro_batch.indices)
        indices = [i for micro_batch in window.micro_batches for i in micro_batch.indices]
        names = self._names()
        bad = next(
            (names[p] for p in self._params if p.grad is not None and not p.grad.isfinite().all()),
            None,
        )
        where = f"; the first such gradient is {bad}" if bad else ""
        return NonFinite(f"the gradient norm is {norm.item()}{where}", indices)
