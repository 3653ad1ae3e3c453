"""Initialise weights; each parameter is drawn from (seed, name)."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

# From (seed, name), because then an engine that builds the full model, one that builds it on the
# meta device, and a pipeline stage with some of its blocks start from the same weights, and none
# needs memory for the weights of the others.
# The drawing itself is the library's: the `_init_weights` of the transformers model, or the
# `reset_parameters` of a module. On the CPU, because generators of devices draw other numbers.

# Most names of tensors in a message.
_NAMED = 5


def initialize_weights(
    module: nn.Module,
    seed: int,
    *,
    device: str = "cpu",
    only: Collection[str] | None = None,
    tensors: Collection[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Allocate and draw the parameters and buffers that are on the meta device.

    Args:
        module: The model. Tied parameters stay tied.
        seed: Seed of all draws.
        device: Where to allocate.
        only: Names of the submodules to initialise, with their children; None for all.
        tensors: Names of the tensors to initialise; None for all of these submodules.
        overwrite: Draw tensors with memory, too.

    Raises:
        ValueError: Neither `_init_weights` nor `reset_parameters` fills a tensor.
    """
    chosen = {
        name: tensor
        for name, tensor in named_tensors(module)
        if (overwrite or tensor.is_meta)
        and (only is None or _is_below(name, only))
        and (tensors is None or name in tensors)
    }
    if not chosen:
        return
    was_meta = {name for name, tensor in chosen.items() if tensor.is_meta}
    replaced = {tensor: _allocated(tensor, device) for tensor in chosen.values() if tensor.is_meta}
    replace_tensors(module, replaced)
    # Of all tensors: what is drawn for others must not count as an intermediate value.
    names = {_storage(tensor): name for name, tensor in named_tensors(module)}
    own = {_storage(replaced.get(tensor, tensor)) for tensor in chosen.values()}
    others = {_storage(t) for _, t in named_tensors(module) if not t.is_meta} - own
    # A tied tensor is drawn by each module that holds it: the last one counts.
    places = [name for name, tensor in named_tensors(module, every=True) if _storage(tensor) in own]
    state = torch.get_rng_state()
    try:
        with torch.no_grad(), _NamedDraws(seed, names, others) as draws:
            for name, initialize in _initializers(module):
                if tensors is not None and not any(_is_below(each, [name]) for each in places):
                    continue
                draws.enter(name)
                initialize()
    finally:
        torch.set_rng_state(state)
    filled = {names[storage] for storage in draws.written if storage in names}
    if empty := sorted(was_meta - filled):
        more = f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
        raise ValueError(
            "neither _init_weights nor reset_parameters fills tensors that are on the meta device: "
            f"{', '.join(empty[:_NAMED])}{more}; add a reset_parameters method to their modules, "
            "or build them with memory"
        )


class _NamedDraws(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch types neither
    """Seeds every random operation from the name of the tensor that it fills."""

    # Intercepted below the libraries, because their functions draw several tensors in one call, in
    # an order of their own.

    def __init__(self, seed: int, names: Mapping[int, str], protected: Collection[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # likewise
        self.written: set[int] = set()
        self._seed = seed
        self._names = names
        self._protected = protected
        self._module = ""
        self._counts: dict[str, int] = {}

    def enter(self, module: str) -> None:
        """Set the module whose tensors are drawn from now on."""
        self._module = module

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = _target(func, args, kwargs)
        if target is not None:
            if _storage(target) in self._protected:
                return target
            self.written.add(_storage(target))
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        # A tensor without a name is an intermediate value: it belongs to the module.
        source = self._names.get(_storage(target), "") if target is not None else ""
        key = source or f"{self._module}()"
        count = self._counts[key] = self._counts.get(key, -1) + 1
        digest = hashlib.blake2b(f"{self._seed}/{key}/{count}".encode(), digest_size=8).digest()
        torch.default_generator.manual_seed(int.from_bytes(digest, "big") >> 1)
        if target is None:
            device = kwargs.get("device")
            if device is None or torch.device(device).type in {"cpu", "meta"}:
                return func(*args, **kwargs)
            return func(*args, **{**kwargs, "device": "cpu"}).to(device)
        if target.device.type in {"cpu", "meta"}:
            return func(*args, **kwargs)
        return target.copy_(func(torch.empty_like(target, device="cpu"), *args[1:], **kwargs))


def _target(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the tensor that an operation writes to."""
    for place, argument in enumerate(func._schema.arguments):  # noqa: SLF001 - its only name
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            if isinstance(value, Tensor):
                return value
    return None


def _storage(tensor: Tensor) -> int:
    """Return the identity of a tensor's storage, which views share."""
    # A data pointer would be 0 for all tensors on the meta device.
    number: int = tensor.untyped_storage()._cdata  # noqa: SLF001
    return number


def _initializers(module: nn.Module) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the function that initialises each submodule, by name."""
    # Children first: parents may draw weights of their children again, such as scaled projections.
    owners: dict[nn.Module, nn.Module | None] = {}
    order: list[tuple[str, nn.Module]] = []
    names = {child: name for name, child in module.named_modules()}

    def visit(current: nn.Module, owner: nn.Module | None) -> None:
        owners[current] = owner = current if _initializes_others(current) else owner
        for child in current.children():
            if child not in owners:
                visit(child, owner)
        order.append((names[current], current))

    visit(module, None)
    for name, current in order:
        owner = owners[current]
        if owner is not None:
            yield name, lambda owner=owner, current=current: owner._init_weights(current)  # type: ignore[misc]  # noqa: SLF001 - transformers' convention
            continue
        for method in ("reset_parameters", "_reset_parameters"):
            if reset := getattr(current, method, None):
                yield name, reset
                break


def _initializes_others(module: nn.Module) -> bool:
    initialize = getattr(module, "_init_weights", None)
    return initialize is not None and len(inspect.signature(initialize).parameters) == 1


def named_tensors(module: nn.Module, *, every: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers; a tied one once, by its first name, or by `every` name."""
    return chain(
        module.named_parameters(remove_duplicate=not every),
        module.named_buffers(remove_duplicate=not every),
    )


def _is_below(name: str, modules: Collection[str]) -> bool:
    return any(not module or name.startswith(f"{module}.") for module in modules)


def _allocated(tensor: Tensor, device: str) -> Tensor:
    empty = torch.empty_like(tensor, device=device)
    if not isinstance(tensor, nn.Parameter):
        return empty
    return nn.Parameter(empty, requires_grad=tensor.requires_grad)


def replace_tensors(module: nn.Module, replaced: Mapping[Tensor, Tensor]) -> None:
    """Replace tensors, under each of their names."""
    for child in module.modules():
        for tensors in (child._parameters, child._buffers):  # noqa: SLF001 - as nn.Module.to_empty
            for name, tensor in tensors.items():
                if tensor is not None and tensor in replaced:
                    tensors[name] = replaced[tensor]  # type: ignore[assignment]
