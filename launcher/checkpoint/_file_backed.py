"""Tensors whose memory is a file: a model that is larger than the host's memory can be handled."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from launcher.errors import CheckpointError

# Below it a tensor takes plain memory: a file costs a system call, and pages of 4 KiB.
_SMALLEST = 1 << 16


def file_backed(shape: Sequence[int], dtype: torch.dtype, folder: Path) -> Tensor:
    """Return a tensor whose pages the kernel writes to a file and drops when memory is short.

    The file has no name: its space is free again when the tensor is, also after a kill.

    Args:
        shape: The tensor's shape; its values are undefined.
        dtype: Its number format.
        folder: A folder on a disk with room for it.

    Raises:
        CheckpointError: The disk is full.
    """
    numel = math.prod(shape)
    num_bytes = numel * dtype.itemsize
    if num_bytes < _SMALLEST:
        return torch.empty(tuple(shape), dtype=dtype)
    descriptor, name = tempfile.mkstemp(prefix=".tensor-", dir=folder)
    try:
        # Reserved first: a write to a mapped page that finds no room kills the process (SIGBUS).
        os.posix_fallocate(descriptor, 0, num_bytes)
        flat = torch.from_file(name, shared=True, size=numel, dtype=dtype)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: no room for {num_bytes:,} bytes of a tensor: {error.strerror or error}; "
            "write to another disk"
        ) from error
    finally:
        os.close(descriptor)
        Path(name).unlink()
    return flat.view(tuple(shape))
