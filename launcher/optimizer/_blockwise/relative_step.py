"""Adafactor's own learning rate, a function of the step alone; options know it without torch."""

import math

LARGEST_RELATIVE_STEP = 1e-2
"""The relative step before the root of the step count brings it down."""


def relative_step(step: int, *, warmup_init: bool) -> float:
    """The learning rate at a step, counted from 1, before the parameters' scale.

    Source: Shazeer & Stern 2018, arXiv:1804.04235, §9; the warm-up as in transformers.
    """
    start = 1e-6 * step if warmup_init else LARGEST_RELATIVE_STEP
    return min(start, 1.0 / math.sqrt(step))
