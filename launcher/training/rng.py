"""The state of every random generator of this process, as tensors.

Python's and NumPy's states are stored as JSON text in uint8 tensors: nothing in a checkpoint is a
pickle.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def capture() -> dict[str, Tensor]:
    """Every generator's state by name. uint8, shape (n,), on the CPU."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    states = {
        "python": _text([version, words, gauss]),
        "numpy": _text([name, np.asarray(keys).tolist(), position, has_gauss, cached]),
        "torch": torch.get_rng_state(),
    }
    for index in range(torch.cuda.device_count()):
        states[f"cuda{index}"] = torch.cuda.get_rng_state(index)
    return states


def restore(states: Mapping[str, Tensor]) -> None:
    """Put the generators back to where `capture` saw them.

    Generators of devices that are no longer there are left out: a run may move to another machine.
    """
    version, words, gauss = json.loads(_string(states["python"]))
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = json.loads(_string(states["numpy"]))
    keys = np.array(keys, dtype=np.uint32)
    np.random.set_state((name, keys, position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    for index in range(torch.cuda.device_count()):
        if f"cuda{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda{index}"], index)


def seed_everything(seed: int) -> None:
    """Seed all generators of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from NumPy's global generator
    torch.manual_seed(seed)


def _text(value: object) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _string(tensor: Tensor) -> str:
    return bytes(tensor.numpy()).decode()
