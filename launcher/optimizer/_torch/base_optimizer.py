"""Base class of optimizers that can be copied, pickled and called with a closure."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override


class Copyable:
    """Keeps the settings of a library's optimizer in copies; inherit it before the library's."""

    # torch's __getstate__ has groups and state only.

    @override
    def __getstate__(self) -> dict[str, Any]:
        settings = {key: value for key, value in vars(self).items() if key[0] != "_"}
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]
        return {**settings, **state}


class BaseOptimizer(torch.optim.Optimizer):
    """Runs the closure with gradients and the update without, and can be copied and pickled."""

    kept: ClassVar[tuple[str, ...]] = ()
    """Attributes that a copy needs, which torch's own __getstate__ leaves out."""
    takes_groups: ClassVar[bool] = False
    """False where each parameter's role was decided from the module when this was built."""

    _is_built = False

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self._is_built = True

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        # torch's constructor calls this for each group.
        if self._is_built and not self.takes_groups:
            raise RuntimeError(
                f"{type(self).__name__} takes no parameters after it was built; build a new one"
            )
        super().add_param_group(param_group)

    @override
    def __getstate__(self) -> dict[str, Any]:
        kept = {key: self.__dict__[key] for key in ("_is_built", *self.kept)}
        return {**super().__getstate__(), **kept}

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _run_closure(closure)
        self._step()
        return loss

    @abstractmethod
    def _step(self) -> None:
        pass


class PerParameterOptimizer(BaseOptimizer):
    """Updates one parameter after another."""

    @override
    def _step(self) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, group)

    @abstractmethod
    def _update(self, param: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        pass


class FusedSGD(torch.optim.SGD):
    """torch's SGD for parameters whose first gradient comes later than that of others."""

    # The fused kernel takes all parameters with a momentum buffer, or none. Not a hook, because
    # copies of an optimizer lose their hooks; not `step`, because torch calls the hooks in the
    # `step` of each class.

    @override
    def _init_group(self, group: dict[str, Any], *lists: Any) -> bool:
        self._give_late_momentum(group)
        is_sparse: bool = super()._init_group(group, *lists)  # type: ignore[no-untyped-call] # torch's own has no types
        return is_sparse

    def _give_late_momentum(self, group: Mapping[str, Any]) -> None:
        params = [param for param in group["params"] if param.grad is not None]
        late = [p for p in params if "momentum_buffer" not in self.state.get(p, ())]
        if group["momentum"] == 0 or len(late) == len(params):
            return
        for param in late:
            first = param.grad.add(param, alpha=group["weight_decay"])
            # momentum * buffer + (1 - dampening) * first is then `first`, as in a first step.
            buffer = first.mul_(group["dampening"] / group["momentum"])
            self.state[param]["momentum_buffer"] = buffer


def _run_closure(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
