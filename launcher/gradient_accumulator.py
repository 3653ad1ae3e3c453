"""Gradient accumulation for custom training loops, weighted by targets as in trainctl's engines.

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
    """Sum gradients over micro-batches, then divide once by the number of all targets.

    The sums are each parameter's `.grad`, which the constructor clears: they need no extra memory,
    and hooks of `backward` (DDP, gradient checkpointing) work as usual. Nothing waits for the
    device.
    """

    # Engines divide each loss before its backward pass, because they know the window's number of
    # targets in advance; a custom loop often learns it with the last micro-batch.
    # Sums, not a mean of means, which would give a target in a short micro-batch more weight than
    # one in a long one. The interface (add, gradients, step, reset) is that of transformers'
    # TensorFlow GradientAccumulator, which leaves the division to the caller.

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
        """Number of `add` calls since the last reset."""
        return self._num_added

    @property
    def num_targets(self) -> float | Tensor:
        """Number of targets since the last reset; a tensor of shape () if counts are tensors."""
        return self._num_targets

    def add(self, given: Tensor | Gradients, num_targets: float | Tensor) -> None:
        """Add one micro-batch.

        Args:
            given: The sum of the losses of its targets, shape (), on which `backward` is called; or
                the gradients of that sum, one for each parameter that requires one.
            num_targets: Targets that it sums over, or the sum of their weights; 0 is allowed. A
                tensor of shape () avoids waiting for a count that is on the device.

        Raises:
            ValueError: Wrong number or shape, or `finish` was called after the last `reset`.
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
        """Mean gradient over all targets so far, per parameter; None for one without gradient.

        Copies until `finish` was called, then the parameters' own `.grad`.
        """
        self._check_not_empty()
        grads = [param.grad for param in self._params]
        if self._finished:
            return grads
        divisor = self._divisor(self._num_targets)
        return [None if grad is None else grad / divisor for grad in grads]

    def finish(self, num_targets: float | Tensor | None = None) -> None:
        """Divide in place, so that each `.grad` is the mean for clipping and the optimizer.

        Args:
            num_targets: Divisor instead of the targets added here: the targets of all ranks, for
                gradients that were summed over ranks.

        Raises:
            ValueError: Nothing was added, or this has been called already.
        """
        self._check_not_empty()
        if self._finished:
            raise ValueError("the gradients are divided already; call reset() first")
        divisor = self._divisor(self._num_targets if num_targets is None else num_targets)
        torch._foreach_div_([p.grad for p in self._params if p.grad is not None], divisor)
        self._finished = True

    def reset(self) -> None:
        """Clear all gradients and counts, at any time."""
        # None instead of zeros: frees the memory, and the next `backward` need not add.
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
        # All are checked before any is added: an error leaves the sums as they were.
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

    def _check_not_empty(self) -> None:
        if self._num_added == 0:
            raise ValueError("nothing was added: there are no gradients yet")

    @staticmethod
    def _divisor(num_targets: float | Tensor) -> float | Tensor:
        # Without targets all gradients are 0, and 0 / 0 would make them NaN. `where`, because a
        # comparison in Python would wait for the device.
        if isinstance(num_targets, Tensor):
            return num_targets.where(num_targets != 0, 1)
        return num_targets or 1
