"""Seed, save and restore every random generator of this process."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import struct
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def capture() -> dict[str, Tensor]:
    """Return the state of each generator by name. uint8, shape (n,), on the CPU."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    states = {
        "python": _text([version, words, gauss]),
        "numpy": _text([name, np.asarray(keys).tolist(), position, has_gauss, cached]),
        "torch": torch.get_rng_state(),
    }
    for kind in _devices():
        states[kind] = torch.get_device_module(kind).get_rng_state()
    return states


def restore(states: Mapping[str, Tensor]) -> None:
    """Restore the generators from what `capture` returned."""
    version, words, gauss = json.loads(_string(states["python"]))
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = json.loads(_string(states["numpy"]))
    keys = np.array(keys, dtype=np.uint32)
    np.random.set_state((name, keys, position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    for kind in _devices():
        # A run may move from the CPU to a GPU.
        if kind in states:
            torch.get_device_module(kind).set_rng_state(states[kind])


def _devices() -> list[str]:

    # Reading the state of CUDA's generator initialises CUDA, which takes GPU memory in a CPU run.
    cuda = ["cuda"] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return cuda + (["mps"] if torch.backends.mps.is_available() else [])


def seed_everything(seed: int) -> None:
    """Seed all generators of this process."""
    # rich draws from Python's generator when it is imported. Imported later by a library, it would
    # do so once in each process: the state of a restarted run would be another one.
    if importlib.util.find_spec("rich") is not None:
        importlib.import_module("rich.style")
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from NumPy's global generator
    torch.manual_seed(seed)


def seed_step(seed: int, data_rank: int, step: int) -> None:
    """Seed torch's generators, from which dropout is drawn, for one optimizer step."""
    # By data rank, not rank: tensor-parallel ranks must draw the same dropout. By step, so that a
    # run that is resumed on another number of ranks needs no saved generator.
    # Neighbouring triples must not give neighbouring seeds: a hash keeps the streams apart.
    mixed = hashlib.blake2b(struct.pack("<QQQ", seed, data_rank, step), digest_size=8).digest()
    number = int.from_bytes(mixed, "little") >> 1
    torch.default_generator.manual_seed(number)
    for kind in _devices():
        torch.get_device_module(kind).manual_seed(number)


# Python's and NumPy's states are JSON in a tensor, because nothing in a checkpoint may be a pickle.
def _text(value: object) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _string(tensor: Tensor) -> str:
    return bytes(tensor.numpy()).decode()
