"""Counter-based random numbers: a random number depends only on the seed, the stream and up to three counters.

Results are therefore independent of batch size, number of processes and interruptions.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Stream(IntEnum):
    """The purpose of random numbers; numbers of different streams are independent."""

    TRAINING = 1
    CACHE_NOISE = 2
    CACHE_PROMPTS = 3
    EVALUATION_NOISE = 4
    EVALUATION_PROMPTS = 5
    PROMPT_CHOICE = 6
    CALIBRATION = 7
    PREVIEWS = 8
    BOOTSTRAP = 20
    OTHER_EVALUATION_NOISE = 9
    DIVERSITY_NOISE = 10


def generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """Return a Philox generator for up to three counters (Salmon et al., SC 2011).

    The lowest of the four counter words of Philox starts at 0, because it advances as numbers are drawn.
    """
    if len(counters) > 3:
        raise ValueError(f"at most 3 counters, given {len(counters)}")
    words = [0, *counters, *([0] * (3 - len(counters)))]
    return np.random.Generator(np.random.Philox(key=[seed, int(stream)], counter=words))


def image_noise(seed: int, stream: Stream, index: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the starting noise of image `index`: standard normal, float32, of the given shape."""
    return generator(seed, stream, index).standard_normal(shape, dtype=np.float32)


def image_seed(seed: int, stream: Stream, index: int) -> int:
    """Return the seed of image `index` for schedulers that add noise during sampling."""
    return int(generator(seed, stream, index, 1).integers(2**62))
