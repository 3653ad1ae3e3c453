"""Move what blocks save for the backward pass to the host's memory, and back."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from typing_extensions import override

from launcher.blocks import give_class


def offload_blocks(blocks: Iterable[nn.Module], *, min_bytes: int, pin_memory: bool) -> None:
    """Let blocks keep their saved tensors in the host's memory.

    Args:
        blocks: In the order of their forward passes; none within another.
        min_bytes: Smaller tensors stay where they are.
        pin_memory: Page-lock the host's memory, if the blocks are on an accelerator.
    """
    host = HostMemory(min_bytes, pin_memory=pin_memory)
    mixin = type("Offloaded", (Offloaded,), {"host": host})
    for block in blocks:
        give_class(block, mixin)


class HostMemory:
    """Copies tensors of blocks to the host and back, on streams of their own.

    Args:
        min_bytes: Smaller tensors stay where they are.
        pin_memory: Page-lock the host's memory.
    """

    def __init__(self, min_bytes: int, *, pin_memory: bool) -> None:
        self.min_bytes = min_bytes
        self.pin_memory = pin_memory
        self._newest: weakref.ref[Pass] | None = None
        self._streams: dict[torch.device, tuple[Any, Any]] = {}

    def begin(self, block: nn.Module) -> Pass:
        """Return the record of a block's forward pass, which begins."""
        previous = self._newest() if self._newest is not None else None
        begun = Pass(self, block, previous)
        self._newest = weakref.ref(begun)
        return begun

    def streams(self, device: torch.device) -> tuple[Any, Any]:
        """Return the streams of copies from and to a device."""
        if device not in self._streams:
            self._streams[device] = (torch.Stream(device=device), torch.Stream(device=device))
        return self._streams[device]


class Pass:
    """One forward pass of one block, and the tensors that it saves.

    Args:
        host: What copies.
        block: The block.
        previous: The pass of the block before it, whose tensors the backward pass needs next.
    """

    def __init__(self, host: HostMemory, block: nn.Module, previous: Pass | None) -> None:
        self.host = host
        self.previous = previous
        self.copied: Any = None
        self._block: nn.Module | None = block
        self._kept: set[int] | None = None
        # Several operations save the same tensor: one copy is enough. With the tensor, so that no
        # other takes its place in memory.
        self._by_place: dict[Any, tuple[Saved, Tensor]] = {}
        # Weak, because a saved tensor holds its pass: memory must not wait for the collector.
        self._saved: list[weakref.ref[Saved]] = []
        self._is_fetched = False

    def pack(self, tensor: Tensor) -> Tensor | Saved:
        """Return a saved tensor's replacement in the graph."""
        if tensor.numel() * tensor.element_size() < self.host.min_bytes or self._stays(tensor):
            # Detached: an output of the operation that saves it would keep itself alive.
            return tensor.detach()
        place = (
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
            tensor._version,  # noqa: SLF001 - torch has no other name for it
        )
        if place not in self._by_place:
            saved = Saved(self, tensor.detach())
            self._by_place[place] = saved, tensor.detach()
            self._saved.append(weakref.ref(saved))
        return self._by_place[place][0]

    def end(self) -> None:
        """Record the end of the forward pass: device memory of the previous block is released."""
        # The originals of this pass are kept until the next one ends: a copy that waited for its
        # own end would not overlap with anything.
        self._block = self._kept = None
        self._by_place = {}
        if self._saved and self.copied is None:
            self.copied = self._record()
        if self.previous is not None:
            self.previous.release()

    def release(self) -> None:
        """Release the device memory of what is copied."""
        for saved in self._living():
            if saved.original is not None and self.copied is not None:
                # The allocator may give the memory to the current stream at once.
                torch.accelerator.current_stream(saved.device).wait_event(self.copied)
            saved.original = None

    def fetch(self) -> None:
        """Start the copies back to the device."""
        if self._is_fetched:
            return
        self._is_fetched = True
        for saved in self._living():
            saved.fetch()

    def _stays(self, tensor: Tensor) -> bool:
        # Not parameters, which are on the device anyway: looked up here, because an engine that
        # shards them gathers them after the pass has begun.
        if self._kept is None:
            tensors = [] if self._block is None else list(self._block.parameters())
            self._kept = {_storage(tensor) for tensor in tensors}
        return _storage(tensor) in self._kept

    def _record(self) -> Any:
        device = next((saved.device for saved in self._living()), torch.device("cpu"))
        if device.type == "cpu":
            return None
        return self.host.streams(device)[0].record_event()

    def _living(self) -> list[Saved]:
        return [saved for ref in self._saved if (saved := ref()) is not None]


class Saved:
    """A tensor in the host's memory, until the backward pass has used it.

    Args:
        owner: The pass that saved it.
        tensor: The tensor on the device.

    Attributes:
        original: The tensor on the device, until its memory is released.
    """

    def __init__(self, owner: Pass, tensor: Tensor) -> None:
        self._pass = owner
        self.device = tensor.device
        self._back: Tensor | None = None
        self._arrived: Any = None
        if self.device.type == "cpu":
            self.original: Tensor | None = None
            self._host = tensor.clone()
            return
        self.original = tensor
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=owner.host.pin_memory)
        out, _ = owner.host.streams(self.device)
        out.wait_stream(torch.accelerator.current_stream(self.device))
        with out:
            self._host.copy_(tensor, non_blocking=True)

    def fetch(self) -> None:
        """Start the copy back, unless the tensor is still there."""
        if self._back is not None or self.original is not None or self.device.type == "cpu":
            return
        _, back = self._pass.host.streams(self.device)
        back.wait_event(self._pass.copied)
        with back:
            self._back = self._host.to(self.device, non_blocking=True)
        self._arrived = back.record_event()

    def unpack(self) -> Tensor:
        """Return the tensor on its device, and start the copies that the next block needs."""
        self.fetch()
        if self._pass.previous is not None:
            self._pass.previous.fetch()
        if self._back is None:
            return self._host if self.original is None else self.original
        current = torch.accelerator.current_stream(self.device)
        current.wait_event(self._arrived)
        self._back.record_stream(current)
        return self._back


class Offloaded(nn.Module):
    """A block whose saved tensors are in the host's memory."""

    # Around the call, and not in `forward`: torch.compile cannot look into the hooks, but saves
    # the tensors of a compiled block through those that are around it.

    host: ClassVar[HostMemory]

    @override
    def __call__(self, *args: Any, **inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().__call__(*args, **inputs)
        begun = self.host.begin(self)
        with saved_tensors_hooks(begun.pack, _unpack):
            found = super().__call__(*args, **inputs)
        begun.end()
        return found


def _unpack(saved: Tensor | Saved) -> Tensor:
    return saved.unpack() if isinstance(saved, Saved) else saved


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
