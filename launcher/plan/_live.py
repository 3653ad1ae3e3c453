"""Count the bytes of tensors that are alive, operation by operation."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch types neither
    """Bytes of all tensors that operations made and that are still alive, and their peak.

    Memory inside of a kernel is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # likewise
        self.now = 0
        self.peak = 0
        self._known: dict[int, int] = {}

    def ignore(self, tensor: Tensor) -> None:
        """Leave a tensor that existed before out of the count."""
        storage = tensor.untyped_storage()
        self._add(storage, 0)

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self._add(storage, storage.nbytes())
        return result

    def _add(self, storage: Any, size: int) -> None:
        # By the identity of the storage: views share it.
        key = storage._cdata  # noqa: SLF001 - its only name
        if key in self._known:
            return
        self._known[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)
