"""Gradient accumulation for loops of one's own, weighted by targets as trainctl's engines do it.

>>> accumulator = GradientAccumulator(module.parameters())
>>> for number, (inputs, labels) in enumerate(micro_batches, start=1):
...     loss_sum = cross_entropy(module(inputs), labels, ignore_index=-100, reduction="sum")
...     accumulator.add(loss_sum, num_targets=(labels != -100).sum())
...     if number % 4 == 0:
...         accumulator.finish()
...         _ = clip_grad_norm_(module.parameters(), max_norm=1.0)
...         optimizer.step()
...         accumulator.reset()
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Gradients = Sequence[Tensor | None]
"""One gradient for each parameter, in order; None for one that took no part."""


class GradientAccumulator:
    """Sums gradients over micro-batches; their mean is over all targets, however these are spread.

    A mean of means would give a target in a short micro-batch more weight than one in a long one.
    Here losses are sums over their targets, and the division comes once, at the end: any cut of a
    batch gives the gradient of the whole.

    The sums are kept in each parameter's `.grad`, so that they take no memory beside it, and what
    hooks into `backward` (DDP, gradient checkpointing) works as ever. Nothing waits for the device.

    Source: the interface (add, gradients, step, reset) is that of transformers' TensorFlow
    GradientAccumulator, which leaves the division to the caller.

    Args:
        params: The parameters; their order is that of `gradients`. Gradients they hold are cleared.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        self._params = [param for param in params if param.requires_grad]
        if not self._params:
            raise ValueError("there is no parameter that requires a gradient")
        self._num_targets: float | Tensor = 0
        self._num_added = 0
        self._finished = False
        self.reset()

    @property
    def num_added(self) -> int:
        """How many times something was added since the last reset."""
        return self._num_added

    @property
    def num_targets(self) -> float | Tensor:
        """Targets since the last reset; a tensor of shape () where counts came as tensors."""
        return self._num_targets

    def add(self, given: Tensor | Gradients, num_targets: float | Tensor) -> None:
        """Take in one micro-batch.

        Args:
            given: The sum of the losses of its targets, shape (), on which `backward` is called; or
                the gradients of that sum, one for each parameter that requires one.
            num_targets: Targets that it sums over, or the sum of their weights; 0 is fine. A tensor
                of shape () spares the wait for a count that is on the device.

        Raises:
            ValueError: The loss is not one number, the gradients are not as many as the parameters
                or not of their shapes, or `finish` has been called and `reset` has not.
        """
        if self._finished:
            raise ValueError("the gradients are divided already; call reset() before adding more")
        if isinstance(given, Tensor):
            if given.dim() != 0:
                raise ValueError(
                    f"the loss must be one sum, but has the shape {tuple(given.shape)}"
                )
            given.backward()  # type: ignore[no-untyped-call]
        else:
            self._add_gradients(given)
        self._num_targets = self._num_targets + num_targets
        self._num_added += 1

    @property
    def gradients(self) -> list[Tensor | None]:
        """Mean gradient over all targets so far, one for each parameter; None where none came.

        Copies until `finish` was called, then the parameters' own `.grad`.

        Raises:
            ValueError: Nothing was added.
        """
        self._demand_something()
        grads = [param.grad for param in self._params]
        if self._finished:
            return grads
        divisor = self._divisor(self._num_targets)
        return [None if grad is None else grad / divisor for grad in grads]

    def finish(self, num_targets: float | Tensor | None = None) -> None:
        """Divide in place: each `.grad` becomes the mean that clipping and the optimizer expect.

        Args:
            num_targets: What to divide by instead of the targets added here; for sums that have
                been added up over ranks, the targets of all ranks.

        Raises:
            ValueError: Nothing was added, or this has been called already.
        """
        self._demand_something()
        if self._finished:
            raise ValueError("the gradients are divided already; call reset() first")
        divisor = self._divisor(self._num_targets if num_targets is None else num_targets)
        torch._foreach_div_([p.grad for p in self._params if p.grad is not None], divisor)
        self._finished = True

    def reset(self) -> None:
        """Forget all gradients and counts; may be called at any time."""
        for param in self._params:
            param.grad = None
        self._num_targets = 0
        self._num_added = 0
        self._finished = False

    def _add_gradients(self, gradients: Gradients) -> None:
        if len(gradients) != len(self._params):
            raise ValueError(
                f"expected {len(self._params)} gradients, one for each parameter, "
                f"but got {len(gradients)}"
            )
        for place, (param, gradient) in enumerate(zip(self._params, gradients, strict=True)):
            if gradient is not None and gradient.shape != param.shape:
                raise ValueError(
                    f"gradient {place} has the shape {tuple(gradient.shape)}, its parameter "
                    f"{tuple(param.shape)}"
                )
        sums: list[Tensor] = []
        added: list[Tensor] = []
        for param, gradient in zip(self._params, gradients, strict=True):
            if gradient is None:
                continue
            if param.grad is None:
                # A copy: the caller may write into its own tensor next.
                param.grad = gradient.detach().to(param, copy=True)
            else:
                sums.append(param.grad)
                added.append(gradient.detach())
        if sums:
            torch._foreach_add_(sums, added)

    def _demand_something(self) -> None:
        if self._num_added == 0:
            raise ValueError("nothing was added: there are no gradients yet")

    @staticmethod
    def _divisor(num_targets: float | Tensor) -> float | Tensor:
        """The targets; 1 where there are none, as masked targets alone have no gradient."""
        if isinstance(num_targets, Tensor):
            return num_targets.where(num_targets != 0, 1)
        return num_targets or 1
