"""A check that all ranks use the same parameters, before a collective of different sizes fails."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launcher.contracts import canonical_name
from launcher.errors import ConfigError, Problem

_NAMED = 5
_CHECKED = 8
"""Micro-batches that are checked: each check is a collective that the host waits for."""


class UsedModules:
    """Compares which modules with trained parameters a micro-batch uses on each rank.

    Engines that shard reduce gradients in the order in which the backward pass computes them. Where
    a rank leaves out a parameter, the others wait for it, or the process group aborts them.
    """

    def __init__(self, module: nn.Module, group: dist.ProcessGroup) -> None:
        self._group = group
        parts = {
            canonical_name(name): part
            for name, part in module.named_modules()
            if any(param.requires_grad for param in part.parameters(recurse=False))
        }
        self._names = list(parts)
        self._used = torch.zeros(len(parts), dtype=torch.uint8)
        # torch.compile would trace the hooks, and compile again when they are removed.
        compiled = [getattr(part, "_compiled_call_impl", None) for part in module.modules()]
        self._left = 0 if any(compiled) else _CHECKED
        self._hooks = [
            part.register_forward_pre_hook(self._note(place))
            for place, part in enumerate(parts.values())
            if self._left
        ]

    def clear(self) -> None:
        """Forget forward passes of evaluations."""
        self._used.zero_()

    def check(self) -> None:
        """Compare the ranks, after a forward pass; collective.

        Raises:
            ConfigError: They use different modules; the same error on all ranks.
        """
        if not self._left:
            return
        # On the CPU: the host need not wait for the device. The largest of both is 1 where some
        # rank uses a module and another does not.
        both = torch.stack([self._used, 1 - self._used])
        dist.all_reduce(both, op=dist.ReduceOp.MAX, group=self._group)
        if differing := both.all(dim=0).nonzero().flatten().tolist():
            raise self._error(differing)
        self._used.zero_()
        self._left -= 1
        if not self._left:
            self.close()

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _note(self, place: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(*_: object) -> None:
            self._used[place] = 1

        return note

    def _error(self, differing: list[int]) -> ConfigError:
        found: list[Tensor] = [torch.empty_like(self._used) for _ in range(self._group.size())]
        dist.all_gather(found, self._used, group=self._group)
        ranks = [n for n, used in enumerate(found) if any(not used[place] for place in differing)]
        names = ", ".join(self._names[place] for place in differing[:_NAMED])
        return ConfigError(
            [
                Problem(
                    "parallelism.kind",
                    "needs the same parameters in a micro-batch on all ranks, but ranks "
                    f"{', '.join(map(str, ranks))} leave out {names}, which others use; write "
                    "parallelism=ddp parallelism.find_unused_parameters=true",
                )
            ]
        )
