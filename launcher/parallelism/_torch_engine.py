"""Forward, backward and update in torch: the arithmetic that every engine must reproduce.

As it is, it is the engine of one process. An engine of several ranks overrides the methods under
"what ranks exchange".
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from launcher.errors import CheckpointError, NonFinite
from launcher.parallelism._clipping import clip_, gradient_norm
from launcher.parallelism._optimizer_state import (
    load_optimizer,
    optimizer_template,
    optimizer_tensors,
)

if TYPE_CHECKING:
    from launcher.contracts import EngineParts, EngineState, MicroBatch, Request, Window
    from launcher.contracts.engine import Predict

from launcher.contracts import (
    UNSHARDED,
    LocalShard,
    OptimizerTarget,
    Sharding,
    UpdateStats,
    canonical_name,
    named_tensors,
)

_log = logging.getLogger("trainctl.engine")
_NAMED = 5
# Micro-batches of an evaluation whose predictions travel in one collective.
_GATHERED_TOGETHER = 16


class TorchEngine:
    """Train a module on this rank's device.

    Each micro-batch's summed loss is divided by the window's number of targets over all ranks
    before its backward pass, so that the gradients add up to that of the window's mean loss however
    the window is cut.
    """

    _gradient_sharding: Sharding = UNSHARDED
    """What the gradients are shards of when they are checked and clipped."""

    def __init__(self, parts: EngineParts) -> None:
        self._device = torch.device(parts.world.device)
        self._world = parts.world
        self._precision = parts.precision.build(self._device.type)
        parts.optimizer.groups.freeze(parts.module)
        self._precision.prepare(parts.module)
        self._module = parts.module.to(self._device)
        self._module.train()
        self._trained = self._wrap(self._module)
        self._task = parts.task
        self._clipping = parts.clipping
        self._skip_nonfinite = parts.skip_nonfinite
        self._requests = parts.requests
        self._optimizer = self._precision.build_optimizer(parts.optimizer, self._target())
        self._params = self._trainable()
        self._window: Window | None = None
        self._losses: list[Tensor] = []
        self._mean_loss = torch.zeros(())
        self._has_stepped = False
        self._warned_unused = False

    def forward_backward(self, window: Window) -> Tensor:
        """Accumulate the gradient of the window's mean loss; see `Engine`."""
        self._window = window
        self._losses = []
        # A window of masked targets only has no gradient, not a division by zero.
        divisor = max(1, window.num_targets)
        for place, micro_batch in enumerate(window.micro_batches, 1):
            last = place == len(window.micro_batches)
            with self._accumulation(last=last):
                with self._precision.autocast():
                    inputs = self._on_device(micro_batch.inputs)
                    outputs = self._trained(**self._task.forward_inputs(inputs))
                    loss = self._task.loss(outputs, inputs) / divisor
                self._losses.append(loss.detach())
                if last:
                    self._share(torch.stack(self._losses).sum() if place > 1 else self._losses[0])
                scale = self._precision.loss_scale
                (scale.scale(loss) if scale else loss).backward()  # type: ignore[no-untyped-call]
        return self._mean_loss

    def update(self, lr: float | None) -> UpdateStats:
        """Unscale, check, clip, step, and clear the gradients; see `Engine`."""
        self._has_stepped = True
        grads = [p.grad for p in self._params if p.grad is not None]
        scale = self._precision.loss_scale
        factor = scale.value if scale else None
        if scale:
            scale.unscale(grads)
        norm = gradient_norm(self._params, self._gradient_sharding)
        finite, requests = self._read(norm)
        if finite:
            self._warn_unused_parameters()
            clip_(self._params, self._clipping, norm, self._gradient_sharding)
            for group in self._optimizer.param_groups:
                if lr is not None:
                    group["lr"] = lr * group["lr_scale"]
            self._step()
        elif scale and self._mean_loss.isfinite():
            _log.debug("update skipped: gradients overflow at a loss scale of %g", factor)
        else:
            self._refuse(norm)
        if scale:
            scale.update(overflowed=not finite)
        self._optimizer.zero_grad(set_to_none=True)
        return UpdateStats(norm, finite, factor, requests)

    def evaluate(
        self, micro_batches: Iterable[MicroBatch], predict: Predict
    ) -> Iterator[Mapping[str, Tensor]]:
        """Predict without gradient, dropout off; see `Engine`."""
        self._training(on=False)
        try:
            with torch.no_grad(), self._precision.evaluation(self._module):
                predictions: list[Mapping[str, Tensor]] = []
                for micro_batch in micro_batches:
                    inputs = self._on_device(micro_batch.inputs)
                    outputs = self._module(**self._task.forward_inputs(inputs))
                    count = len(micro_batch.indices)
                    found = {name: v[:count] for name, v in predict(outputs, inputs).items()}
                    predictions.append(found)
                    if len(predictions) == _GATHERED_TOGETHER:
                        yield from self._gather(predictions)
                        predictions = []
                yield from self._gather(predictions)
        finally:
            self._training(on=True)

    def agree(self, request: Request) -> Request:
        """Return the union of all ranks' requests; see `Engine`."""
        return request

    @contextlib.contextmanager
    def full_module(self) -> Iterator[nn.Module | None]:
        """Give the module in evaluation mode on rank 0; see `Engine`."""
        self._training(on=False)
        try:
            yield self._module if self._world.rank == 0 else None
        finally:
            self._training(on=True)

    def state(self) -> EngineState:
        """Parameters, buffers and optimizer state by name; see `Engine`."""
        model = {f"model.{name}": tensor for name, tensor in named_tensors(self._module).items()}
        formats = {f"precision.{name}": value for name, value in self._precision.state().items()}
        take = optimizer_tensors if self._has_stepped else optimizer_template
        return {**model, **formats, **take(self._optimizer, self._names())}

    def load_state(self, state: EngineState) -> None:
        """Take over a state, strictly; see `Engine`."""
        given = {name: _plain(name, value) for name, value in state.items()}
        model = {k.removeprefix("model."): v for k, v in given.items() if k.startswith("model.")}
        formats = {k: v for k, v in given.items() if k.startswith("precision.")}
        rest = {k: v for k, v in given.items() if not k.startswith(("model.", "precision."))}
        self._load_model(model)
        load_optimizer(self._optimizer, self._names(), rest)
        self._has_stepped = True
        self._load_formats({k.removeprefix("precision."): v for k, v in formats.items()})

    def close(self) -> None:
        """Nothing to release: the process owns its device alone."""

    # What ranks exchange.

    def _wrap(self, module: nn.Module) -> nn.Module:
        """Return what forward passes of training call; `module` keeps the canonical names."""
        return module

    def _accumulation(self, *, last: bool) -> AbstractContextManager[object]:
        """Give the context of a micro-batch's forward and backward pass."""
        del last
        return contextlib.nullcontext()

    def _share(self, loss: Tensor) -> None:
        """Add up the ranks' losses and requests; called before the window's last backward pass."""
        self._mean_loss = loss

    def _target(self) -> OptimizerTarget:
        """Return what the optimizer is built for: the module, or what this rank holds of it."""
        return OptimizerTarget(self._module, self._device.type)

    def _trainable(self) -> list[nn.Parameter]:
        """Return the parameters whose gradients are checked and clipped."""
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _step(self) -> None:
        """Let the optimizer step."""
        self._optimizer.step()

    def _read(self, norm: Tensor) -> tuple[bool, Request]:
        """Return whether loss and gradient norm are finite, and what the ranks ask for."""
        # The one number read from the device each step: without it a NaN would reach the weights.
        return math.isfinite((norm + self._mean_loss).item()), self._requests()

    def _same_error(self, error: NonFinite, *, bad_loss: bool) -> NonFinite:
        """Return the error that all ranks report; a rank whose own loss is bad knows most."""
        del bad_loss
        return error

    def _gather(
        self, predictions: Sequence[Mapping[str, Tensor]]
    ) -> Iterable[Mapping[str, Tensor]]:
        """Return the predictions of all data ranks' micro-batches, in sample order."""
        return predictions

    # End of what ranks exchange.

    def _load_model(self, given: Mapping[str, Tensor]) -> None:
        live = named_tensors(self._module)
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

    def _names(self) -> dict[Tensor, str]:
        return {p: canonical_name(name) for name, p in self._module.named_parameters()}

    def _warn_unused_parameters(self) -> None:
        """Name, once, the trainable parameters that take no part in the loss."""
        if self._warned_unused:
            return
        self._warned_unused = True
        params = self._names().items()
        if idle := [name for p, name in params if p.requires_grad and p.grad is None]:
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
        """Return what was not finite, and in which micro-batch."""
        window = self._window
        assert window is not None, "update follows forward_backward"  # noqa: S101
        for micro_batch, loss in zip(window.micro_batches, self._losses, strict=True):
            if not math.isfinite(loss.item()):
                error = NonFinite(f"the loss is {loss.item()}", micro_batch.indices)
                return self._same_error(error, bad_loss=True)
        indices = [i for micro_batch in window.micro_batches for i in micro_batch.indices]
        names = self._names()
        bad = next(
            (names[p] for p in self._params if p.grad is not None and not p.grad.isfinite().all()),
            None,
        )
        where = f"; the first such gradient is {bad}" if bad else ""
        error = NonFinite(f"the gradient norm is {norm.item()}{where}", indices)
        return self._same_error(error, bad_loss=False)


def _plain(name: str, value: Tensor | LocalShard) -> Tensor:
    if isinstance(value, LocalShard):
        raise CheckpointError(f"{name} is sharded, but this engine holds whole tensors")
    return value
