"""Random generators come back to where they were."""

import random

import numpy as np
import torch

from launcher.training import rng


def draw() -> tuple[float, float, float, float]:
    return random.random(), random.gauss(0, 1), float(np.random.rand()), torch.rand(()).item()  # noqa: NPY002


def test_restored_generators_draw_the_same() -> None:
    rng.seed_everything(3)
    draw()
    states = rng.capture()
    expected = [draw() for _ in range(5)]
    rng.seed_everything(4)
    rng.restore(states)
    assert [draw() for _ in range(5)] == expected


def test_states_are_tensors_of_bytes() -> None:
    assert {s.dtype for s in rng.capture().values()} == {torch.uint8}
