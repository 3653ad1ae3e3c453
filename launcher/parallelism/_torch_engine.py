"""Forward, backward and update in torch: the arithmetic that every engine must reproduce."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from launcher.contracts import (
    UNSHARDED,
    LocalShard,
    OptimizerTarget,
    Sharding,
    UpdateStats,
    canonical_name,
    named_tensors,
)
from launcher.errors import NonFinite
from launcher.parallelism._clipping import clip_, gradient_norm
from launcher.parallelism._gradient_check import GradientCheck, warn_unused
from launcher.parallelism._optimizer_state import (
    load_optimizer,
    optimizer_template,
    optimizer_tensors,
)
from launcher.parallelism._state import (
    average_state,
    load_formats,
    load_model,
    local_tensors,
    optimizer_shards,
)

if TYPE_CHECKING:
    from launcher.contracts import EngineParts, EngineState, MicroBatch, Request, Window
    from launcher.contracts.engine import Predict

_log = logging.getLogger("trainctl.engine")
# Micro-batches of an evaluation whose predictions are gathered in one collective: fewer are slower,
# more take memory.
_GATHERED_TOGETHER = 16


class TorchEngine:
    """Train a module on this rank's device; base class of engines that torch steps.

    An engine of several ranks overrides the methods between "Methods to override" and "End of
    methods to override".

    Attributes:
        module: The plain module, with canonical names, on the device.
        wrapped: What `wrap_module` made of it; forward passes of training call it.
        evaluated: Those of an evaluation call it; `wrap_module` may replace the plain module.
        params: `trainable_parameters`, computed once.
        requests: Return this rank's requests; called once per step.
        mean_loss: The window's global mean loss, as `reduce_loss` left it. Shape ().
        auxiliary_losses: Terms of `mean_loss` that the module itself added, by name. Shape () each.
    """

    gradient_sharding: Sharding = UNSHARDED
    """Description of the gradients as shards, for their norm and clipping."""

    def __init__(self, parts: EngineParts) -> None:
        self.device = torch.device(parts.world.device)
        self.world = parts.world
        self._precision = parts.precision.build(self.device.type)
        # Before wrapping: DistributedDataParallel waits for gradients of all that is not frozen.
        parts.optimizer.groups.freeze(parts.module)
        # Before the move: 16-bit parameters then take half the device memory from the start.
        self._precision.prepare(parts.module)
        self._adapter = parts.adapter
        if parts.adapter is not None:
            parts.adapter.prepare(parts.module)
        self.module = self.place_module(parts.module)
        self.module.train()
        self.evaluated = self.module
        self.wrapped = self.wrap_module(self.module)
        self._task = parts.task
        self._clipping = parts.clipping
        self._skip_nonfinite = parts.skip_nonfinite
        self.requests = parts.requests
        # After the wrapping, because sharding replaces parameters.
        target = self.optimizer_target()
        self._optimizer_sharding = target.sharding
        self.optimizer = self._precision.build_optimizer(parts.optimizer, target)
        self.params = self.trainable_parameters()
        self._gradient_check = GradientCheck(
            () if self._adapter is None else self._adapter.trained, self._optimizer_sharding
        )
        trained = {name: p for p, name in self.parameter_names().items() if p.requires_grad}
        self._average = parts.ema.build(trained) if parts.ema else None
        self._window: Window | None = None
        self._losses: list[Tensor] = []
        self.mean_loss = torch.zeros(())
        self.auxiliary_losses: dict[str, Tensor] = {}
        self._auxiliary = parts.auxiliary_losses
        self._has_stepped = False
        self._warned_unused = False
        self._evaluation: Generator[Mapping[str, Tensor]] | None = None
        # Parameters that have no optimizer state after a step: `state` need not step them again.
        self._stateless: set[Tensor] = set()

    def forward_backward(self, window: Window) -> Tensor:
        self._end_evaluation()
        self._window = window
        self._losses = []
        self.auxiliary_losses = {}
        # A window of masked targets only has no gradient, not a division by zero.
        divisor = max(1, window.num_targets)
        for place, micro_batch in enumerate(window.micro_batches, 1):
            last = place == len(window.micro_batches)
            with self.accumulation_context(last=last):
                with self._precision.autocast():
                    inputs = self._on_device(micro_batch.inputs)
                    outputs = self.wrapped(**self._task.forward_inputs(inputs))
                    share = micro_batch.num_targets / divisor
                    # By the window's targets: gradients add up however the window is cut.
                    loss = self._task.loss(outputs, inputs) / divisor
                    loss = self._add_auxiliary_losses(loss, outputs, share)
                    del outputs  # often the largest tensor of a step
                self._losses.append(loss.detach())
                self.check_forward()
                if last:
                    # Before the backward pass, so that the collective overlaps with it.
                    self.reduce_loss(
                        torch.stack(self._losses).sum() if place > 1 else self._losses[0]
                    )
                scale = self._precision.loss_scale
                self.backward(scale.scale(loss) if scale else loss)
        return self.mean_loss

    def update(self, lr: float | None) -> UpdateStats:
        self._has_stepped = True
        grads = [p.grad for p in self.params if p.grad is not None]
        scale = self._precision.loss_scale
        factor = scale.value if scale else None
        if scale:
            scale.unscale(grads)
        # Unscaled first: limits and logs are in units of the loss.
        norm = gradient_norm(self.params, self.gradient_sharding)
        finite, requests = self.check_finite(norm)
        if finite:
            if not self._warned_unused:  # once: a search of all names in each step is not free
                self._warned_unused = True
                warn_unused(self.parameter_names())
            self._gradient_check(self.params, self.parameter_names(), lr)
            clip_(self.params, self._clipping, norm, self.gradient_sharding)
            for group in self.optimizer.param_groups:
                if lr is not None:
                    group["lr"] = lr * group["lr_scale"]
            self.step_optimizer()
            if self._average is not None:
                self._average.update()
        # A loss scale causes overflows of gradients now and then, but none of the loss itself.
        elif scale and self.mean_loss.isfinite():
            _log.debug("update skipped: gradients overflow at a loss scale of %g", factor)
        else:
            self._refuse(norm)
        if scale:
            scale.update(overflowed=not finite)
        self.optimizer.zero_grad(set_to_none=True)
        return UpdateStats(norm, finite, factor, requests, self.auxiliary_losses)

    def evaluate(
        self, micro_batches: Iterable[MicroBatch], predict: Predict
    ) -> Iterator[Mapping[str, Tensor]]:
        self._end_evaluation()
        self._evaluation = self._predictions(micro_batches, predict)
        return self._evaluation

    def _predictions(
        self, micro_batches: Iterable[MicroBatch], predict: Predict
    ) -> Generator[Mapping[str, Tensor]]:
        with (
            self._evaluation_mode(averaged=bool(self._average and self._average.in_evaluation)),
            torch.no_grad(),
            self._precision.evaluation(self.module),
        ):
            predictions: list[Mapping[str, Tensor]] = []
            for micro_batch in micro_batches:
                inputs = self._on_device(micro_batch.inputs)
                outputs = self.evaluated(**self._task.forward_inputs(inputs))
                # A row without index is padding: ranks need equally many micro-batches.
                count = len(micro_batch.indices)
                found = {name: v[:count] for name, v in predict(outputs, inputs).items()}
                predictions.append(found)
                if len(predictions) == _GATHERED_TOGETHER:
                    yield from self.gather_predictions(predictions)
                    predictions = []
            yield from self.gather_predictions(predictions)

    def agree(self, request: Request) -> Request:
        return request

    @contextlib.contextmanager
    def full_module(self) -> Iterator[nn.Module | None]:
        self._end_evaluation()
        averaged = self._average is not None and self._average.in_export
        with self._evaluation_mode(averaged=averaged), self.whole_module() as module:
            yield module

    def state(self) -> EngineState:
        self._end_evaluation()
        model = {f"model.{name}": value for name, value in self._saved_tensors().items()}
        formats = {f"precision.{name}": value for name, value in self._precision.state().items()}
        averages = average_state(self._average, self.parameter_names(), self._optimizer_sharding)
        return {**model, **formats, **self._optimizer_state(), **averages}

    def load_state(self, state: EngineState) -> None:
        self._end_evaluation()
        model = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
        formats = {k: v for k, v in state.items() if k.startswith("precision.")}
        averages = {k: v for k, v in state.items() if k.startswith("ema")}
        rest = {k: v for k, v in state.items() if not k.startswith(("model.", "precision.", "ema"))}
        # It may step the optimizer on zero gradients: before the weights are loaded.
        live = self._optimizer_state(for_load=True)
        names = self.parameter_names()
        load_optimizer(self.optimizer, names, local_tensors(rest, live), self._stateless)
        load_model(self._saved_tensors(), model)
        load_model(average_state(self._average, names, self._optimizer_sharding), averages)
        self.publish_weights()
        self._has_stepped = True
        load_formats(self._precision, {k.removeprefix("precision."): v for k, v in formats.items()})

    def close(self) -> None:
        pass

    # Methods to override.

    def place_module(self, module: nn.Module) -> nn.Module:
        """Move the module to the device."""
        return module.to(self.device)

    def wrap_module(self, module: nn.Module) -> nn.Module:
        """Wrap the module for the forward passes of training."""
        return module

    def accumulation_context(self, *, last: bool) -> AbstractContextManager[object]:
        """Return the context of a micro-batch's forward and backward pass.

        After that of the window's last micro-batch, gradients must be complete.
        """
        del last
        return contextlib.nullcontext()

    def reduce_loss(self, loss: Tensor) -> None:
        """Set `mean_loss` to the sum of all ranks' losses; called before the last backward pass.

        It may sum `requests` and `auxiliary_losses` in the same collective. `loss` is this rank's
        part of the window's mean loss, shape (), on the device.
        """
        self.mean_loss = loss

    def check_forward(self) -> None:
        """Check a micro-batch between its forward and its backward pass."""

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a micro-batch's share of the window's loss."""
        loss.backward()  # type: ignore[no-untyped-call]

    def optimizer_target(self) -> OptimizerTarget:
        """Return the module to optimize, or this rank's shards of it."""
        return OptimizerTarget(self.module, self.device.type)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters whose gradients are checked and clipped."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def step_optimizer(self) -> None:
        """Step the optimizer, after clipping and with the learning rates set."""
        self.optimizer.step()

    def check_finite(self, norm: Tensor) -> tuple[bool, Request]:
        """Return True if loss and gradient norm are finite, and the union of all requests."""
        # The only read from the device in a step: without it a NaN would reach the weights.
        return math.isfinite((norm + self.mean_loss).item()), self.requests()

    def agree_on_error(self, error: NonFinite, *, bad_loss: bool) -> NonFinite:
        """Return the error that all ranks raise; one of a rank with a bad loss is most precise."""
        del bad_loss
        return error

    def gather_predictions(
        self, predictions: Sequence[Mapping[str, Tensor]]
    ) -> Iterable[Mapping[str, Tensor]]:
        """Return the predictions of all data ranks' micro-batches, in sample order."""
        return predictions

    def parameter_names(self) -> dict[Tensor, str]:
        """Return the optimizer's parameters with their canonical names."""
        return {p: canonical_name(name) for name, p in self.module.named_parameters()}

    def model_tensors(self) -> Mapping[str, Tensor | LocalShard]:
        """Return the live parameters and persistent buffers by canonical name, for checkpoints."""
        return named_tensors(self.module)

    def whole_module(self) -> AbstractContextManager[nn.Module | None]:
        """Return the context of the plain module with whole weights on rank 0, None elsewhere."""
        return contextlib.nullcontext(self.module if self.world.rank == 0 else None)

    def publish_weights(self) -> None:
        """Bring weights that were set in the optimizer's parameters to the module, on all ranks."""

    def end_evaluation(self) -> None:
        """Release what the forward passes of an evaluation have left."""

    def first_nonfinite_gradient(self) -> str | None:
        """Return the name of the first parameter whose gradient is not finite."""
        names = self.parameter_names()
        return next(
            (names[p] for p in self.params if p.grad is not None and not p.grad.isfinite().all()),
            None,
        )

    # End of methods to override.

    def _optimizer_state(self, *, for_load: bool = False) -> Mapping[str, Tensor | LocalShard]:
        names = self.parameter_names()
        # The template takes a step on zero gradients: never after an update, which it would change.
        if self._has_stepped and not for_load:
            tensors = optimizer_tensors(self.optimizer, names)
        else:
            tensors = optimizer_template(self.optimizer, names, self._stateless)
        return optimizer_shards(tensors, self.optimizer, names, self._optimizer_sharding)

    def _saved_tensors(self) -> Mapping[str, Tensor | LocalShard]:
        tensors = self.model_tensors()
        return tensors if self._adapter is None else {n: tensors[n] for n in self._adapter.saved}

    def _add_auxiliary_losses(self, loss: Tensor, outputs: Any, share: float) -> Tensor:
        # Such losses (of routers) are means over the micro-batch: its share of the targets makes
        # their sum the mean over the window.
        for name, mean in self._auxiliary(outputs).items():
            part = mean * share
            loss = loss + part
            before = self.auxiliary_losses.get(name)
            self.auxiliary_losses[name] = part.detach() + (0 if before is None else before)
        return loss

    def _on_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.to(self.device, non_blocking=True) for k, v in inputs.items()}

    def _end_evaluation(self) -> None:
        # The caller of `evaluate` may stop before its end: closing it restores training mode.
        evaluation, self._evaluation = self._evaluation, None
        if evaluation is not None:
            evaluation.close()

    @contextlib.contextmanager
    def _evaluation_mode(self, *, averaged: bool) -> Iterator[None]:
        swap = self._average.swap if self._average and averaged else None
        self._training(on=False, swap=swap)
        try:
            yield
        finally:
            self.end_evaluation()
            self._training(on=True, swap=swap)

    def _training(self, *, on: bool, swap: Callable[[], None] | None) -> None:
        self.module.train(on)
        # Schedule-free optimizers keep other weights for evaluation than for training.
        switch = getattr(self.optimizer, "train" if on else "eval", None)
        # In reverse at the end: each restores what it has found.
        changes = [each for each in ((swap, switch) if on else (switch, swap)) if each is not None]
        for change in changes:
            change()
        if changes:
            self.publish_weights()

    def _refuse(self, norm: Tensor) -> None:
        error = self._explain(norm)
        if not self._skip_nonfinite:
            self.optimizer.zero_grad(set_to_none=True)
            raise error
        _log.warning("update skipped: %s", error)

    def _explain(self, norm: Tensor) -> NonFinite:
        # A search on the device and a collective: only for the message of an update that failed.
        window = self._window
        assert window is not None, "update follows forward_backward"  # noqa: S101
        # On every rank, also where the loss explains it: it may be a collective.
        bad = self.first_nonfinite_gradient()
        for micro_batch, loss in zip(window.micro_batches, self._losses, strict=True):
            if not math.isfinite(loss.item()):
                error = NonFinite(f"the loss is {loss.item()}", micro_batch.indices)
                return self.agree_on_error(error, bad_loss=True)
        indices = [i for each in window.micro_batches for i in each.indices]
        where = f"; the first such gradient is {bad}" if bad else ""
        error = NonFinite(f"the gradient norm is {norm.item()}{where}", indices)
        return self.agree_on_error(error, bad_loss=False)


class SingleEngine(TorchEngine):
    """The engine of one process; every other engine must reproduce it."""
