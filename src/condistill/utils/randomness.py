"""Counter-based random numbers: a draw is a function of (seed, stream, counters) and of nothing else.

So it does not matter how work is cut into batches and processes, or where a run was interrupted.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Stream(IntEnum):
    """What a draw is for; draws of different streams are independent."""

    TRAINING = 1
    CACHE_NOISE = 2
    CACHE_PROMPTS = 3
    EVALUATION_NOISE = 4
    EVALUATION_PROMPTS = 5
    PROMPT_CHOICE = 6
    CALIBRATION = 7


def generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """A Philox generator for up to three counters (Salmon et al., SC 2011).

    The lowest of Philox's four counter words is left at 0: it is what advances as numbers are drawn.
    """
    if len(counters) > 3:
        raise ValueError(f"at most 3 counters, given {len(counters)}")
    words = [0, *counters, *([0] * (3 - len(counters)))]
    return np.random.Generator(np.random.Philox(key=[seed, int(stream)], counter=words))


def image_noise(seed: int, stream: Stream, index: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Starting noise of image `index`: standard normal of `shape`."""
    return generator(seed, stream, index).standard_normal(shape, dtype=np.float32)


def image_seed(seed: int, stream: Stream, index: int) -> int:
    """Seed of image `index` for schedulers that add noise on the way."""
    return int(generator(seed, stream, index, 1).integers(2**62))
