"""Forward, backward and update in torch: the arithmetic that every engine must reproduce."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

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
    """Train a module on this rank's device; base class of engines that torch steps.

    As it is, it is the engine of one process. An engine of several ranks overrides the methods
    between "Methods to override" and "End of methods to override".

    Attributes:
        module: The plain module, with canonical names, on the device.
        wrapped: What `wrap_module` made of it; forward passes of training call it.
        optimizer: Built for `optimizer_target`.
        params: `trainable_parameters`, taken once.
        device: This rank's device.
        world: This rank's place among the ranks.
        requests: Called once per step: the requests of this rank to all ranks.
        mean_loss: The window's global mean loss, as `reduce_loss` left it. Shape ().
        auxiliary_losses: The parts of it that the module itself added, by name, likewise.

    Each micro-batch's summed loss is divided by the window's number of targets over all ranks
    before its backward pass, so that the gradients add up to that of the window's mean loss however
    the window is cut.
    """

    gradient_sharding: Sharding = UNSHARDED
    """Description of the gradients as shards, for their norm and clipping."""

    def __init__(self, parts: EngineParts) -> None:
        self.device = torch.device(parts.world.device)
        self.world = parts.world
        self._precision = parts.precision.build(self.device.type)
        parts.optimizer.groups.freeze(parts.module)
        self._precision.prepare(parts.module)
        self.module = parts.module.to(self.device)
        self.module.train()
        self.wrapped = self.wrap_module(self.module)
        self._task = parts.task
        self._clipping = parts.clipping
        self._skip_nonfinite = parts.skip_nonfinite
        self.requests = parts.requests
        self.optimizer = self._precision.build_optimizer(parts.optimizer, self.optimizer_target())
        self.params = self.trainable_parameters()
        self._window: Window | None = None
        self._losses: list[Tensor] = []
        self.mean_loss = torch.zeros(())
        self.auxiliary_losses: dict[str, Tensor] = {}
        self._auxiliary = parts.auxiliary_losses
        self._has_stepped = False
        self._warned_unused = False
        self._evaluation: Generator[Mapping[str, Tensor]] | None = None
        self._stateless: set[Tensor] = set()

    def forward_backward(self, window: Window) -> Tensor:
        """Accumulate the gradient of the window's mean loss; see `Engine`."""
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
                    loss = self._task.loss(outputs, inputs) / divisor
                    loss = self._add_auxiliary_losses(loss, outputs, share)
                self._losses.append(loss.detach())
                if last:
                    self.reduce_loss(
                        torch.stack(self._losses).sum() if place > 1 else self._losses[0]
                    )
                scale = self._precision.loss_scale
                (scale.scale(loss) if scale else loss).backward()  # type: ignore[no-untyped-call]
        return self.mean_loss

    def update(self, lr: float | None) -> UpdateStats:
        """Unscale, check, clip, step, and clear the gradients; see `Engine`."""
        self._has_stepped = True
        grads = [p.grad for p in self.params if p.grad is not None]
        scale = self._precision.loss_scale
        factor = scale.value if scale else None
        if scale:
            scale.unscale(grads)
        norm = gradient_norm(self.params, self.gradient_sharding)
        finite, requests = self.check_finite(norm)
        if finite:
            self._warn_unused_parameters()
            clip_(self.params, self._clipping, norm, self.gradient_sharding)
            for group in self.optimizer.param_groups:
                if lr is not None:
                    group["lr"] = lr * group["lr_scale"]
            self.step_optimizer()
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
        """Predict without gradient, dropout off; see `Engine`."""
        self._end_evaluation()
        self._evaluation = self._predictions(micro_batches, predict)
        return self._evaluation

    def _predictions(
        self, micro_batches: Iterable[MicroBatch], predict: Predict
    ) -> Generator[Mapping[str, Tensor]]:
        self._training(on=False)
        try:
            with torch.no_grad(), self._precision.evaluation(self.module):
                predictions: list[Mapping[str, Tensor]] = []
                for micro_batch in micro_batches:
                    inputs = self._on_device(micro_batch.inputs)
                    outputs = self.module(**self._task.forward_inputs(inputs))
                    count = len(micro_batch.indices)
                    found = {name: v[:count] for name, v in predict(outputs, inputs).items()}
                    predictions.append(found)
                    if len(predictions) == _GATHERED_TOGETHER:
                        yield from self.gather_predictions(predictions)
                        predictions = []
                yield from self.gather_predictions(predictions)
        finally:
            self._training(on=True)

    def agree(self, request: Request) -> Request:
        """Return the union of all ranks' requests; see `Engine`."""
        return request

    @contextlib.contextmanager
    def full_module(self) -> Iterator[nn.Module | None]:
        """Give the module in evaluation mode on rank 0; see `Engine`."""
        self._end_evaluation()
        self._training(on=False)
        try:
            yield self.module if self.world.rank == 0 else None
        finally:
            self._training(on=True)

    def state(self) -> EngineState:
        """Parameters, buffers and optimizer state by name; see `Engine`."""
        self._end_evaluation()
        model = {f"model.{name}": tensor for name, tensor in named_tensors(self.module).items()}
        formats = {f"precision.{name}": value for name, value in self._precision.state().items()}
        names = self.parameter_names()
        if self._has_stepped:
            return {**model, **formats, **optimizer_tensors(self.optimizer, names)}
        return {**model, **formats, **optimizer_template(self.optimizer, names, self._stateless)}

    def load_state(self, state: EngineState) -> None:
        """Load a state, strictly; see `Engine`."""
        self._end_evaluation()
        given = {name: _plain(name, value) for name, value in state.items()}
        model = {k.removeprefix("model."): v for k, v in given.items() if k.startswith("model.")}
        formats = {k: v for k, v in given.items() if k.startswith("precision.")}
        rest = {k: v for k, v in given.items() if not k.startswith(("model.", "precision."))}
        # It may step the optimizer on zero gradients: before the weights are loaded.
        load_optimizer(self.optimizer, self.parameter_names(), rest, self._stateless)
        self._load_model(model)
        self._has_stepped = True
        self._load_formats({k.removeprefix("precision."): v for k, v in formats.items()})

    def close(self) -> None:
        """Release process groups and hooks; there are none in one process."""

    # Methods to override.

    def wrap_module(self, module: nn.Module) -> nn.Module:
        """Wrap the module for forward passes of training, e.g. in DistributedDataParallel."""
        return module

    def accumulation_context(self, *, last: bool) -> AbstractContextManager[object]:
        """Return the context of a micro-batch's forward and backward pass.

        Args:
            last: The window's last micro-batch, after which gradients must be complete.
        """
        del last
        return contextlib.nullcontext()

    def reduce_loss(self, loss: Tensor) -> None:
        """Set `mean_loss` to the sum of all ranks' losses; called before the last backward pass.

        A good place to add up `requests` and `auxiliary_losses` in the same collective.

        Args:
            loss: This rank's share of the window's mean loss. Shape (), on the device.
        """
        self.mean_loss = loss

    def optimizer_target(self) -> OptimizerTarget:
        """Return the module to optimize, or this rank's shards of it."""
        return OptimizerTarget(self.module, self.device.type)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters whose gradients are checked and clipped."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def step_optimizer(self) -> None:
        """Step the optimizer; gradients are clipped, learning rates are set."""
        self.optimizer.step()

    def check_finite(self, norm: Tensor) -> tuple[bool, Request]:
        """Return whether loss and gradient norm are finite, and the union of all requests.

        Both must be the same on every rank.
        """
        # The one number read from the device each step: without it a NaN would reach the weights.
        return math.isfinite((norm + self.mean_loss).item()), self.requests()

    def agree_on_error(self, error: NonFinite, *, bad_loss: bool) -> NonFinite:
        """Return the error that all ranks raise.

        Args:
            error: This rank's finding.
            bad_loss: This rank's own loss is not finite: its error is the most precise.
        """
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

    # End of methods to override.

    def _load_model(self, given: Mapping[str, Tensor]) -> None:
        live = named_tensors(self.module)
        if given.keys() != live.keys():
            missing, left = sorted(live.keys() - given.keys()), sorted(given.keys() - live.keys())
            raise CheckpointError(
                f"the checkpoint is of another model: missing {missing[:5]}, unexpected {left[:5]}"
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
        """Load the precision's own state; a run resumed in another precision has none."""
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

    def _add_auxiliary_losses(self, loss: Tensor, outputs: Any, share: float) -> Tensor:
        """Add the module's own losses, means over the micro-batch, by its share of the targets."""
        for name, mean in self._auxiliary(outputs).items():
            part = mean * share
            loss = loss + part
            before = self.auxiliary_losses.get(name)
            self.auxiliary_losses[name] = part.detach() + (0 if before is None else before)
        return loss

    def _on_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.to(self.device, non_blocking=True) for k, v in inputs.items()}

    def _end_evaluation(self) -> None:
        """Restore training mode if the caller of `evaluate` stopped before its end."""
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None

    def _training(self, *, on: bool) -> None:
        self.module.train(on)
        # Schedule-free optimizers keep other weights for evaluation than for training.
        switch = getattr(self.optimizer, "train" if on else "eval", None)
        if switch is not None:
            switch()

    def _warn_unused_parameters(self) -> None:
        """Name, once, the trainable parameters that take no part in the loss."""
        if self._warned_unused:
            return
        self._warned_unused = True
        params = self.parameter_names().items()
        if idle := [name for p, name in params if p.requires_grad and p.grad is None]:
            more = f" and {len(idle) - _NAMED} more" if len(idle) > _NAMED else ""
            _log.warning(
                "parameters without a gradient stay as they are until they get one: %s%s; if they "
                "never should, name them in optimizer.groups.frozen",
                ", ".join(idle[:_NAMED]),
                more,
            )

    def _refuse(self, norm: Tensor) -> None:
        """Raise NonFinite, or skip the window; the weights do not change."""
        error = self._explain(norm)
        if not self._skip_nonfinite:
            self.optimizer.zero_grad(set_to_none=True)
            raise error
        _log.warning("update skipped: %s", error)

    def _explain(self, norm: Tensor) -> NonFinite:
        """Return what was not finite, and in which micro-batch."""
        window = self._window
        assert window is not None, "update follows forward_backward"  # noqa: S101
        for micro_batch, loss in zip(window.micro_batches, self._losses, strict=True):
            if not math.isfinite(loss.item()):
                error = NonFinite(f"the loss is {loss.item()}", micro_batch.indices)
                return self.agree_on_error(error, bad_loss=True)
        indices = [i for micro_batch in window.micro_batches for i in micro_batch.indices]
        names = self.parameter_names()
        bad = next(
            (names[p] for p in self.params if p.grad is not None and not p.grad.isfinite().all()),
            None,
        )
        where = f"; the first such gradient is {bad}" if bad else ""
        error = NonFinite(f"the gradient norm is {norm.item()}{where}", indices)
        return self.agree_on_error(error, bad_loss=False)


def _plain(name: str, value: Tensor | LocalShard) -> Tensor:
    if isinstance(value, LocalShard):
        raise CheckpointError(f"{name} is sharded, but this engine holds whole tensors")
    return value


class SingleEngine(TorchEngine):
    """The engine of one process; every other engine must reproduce it."""
