"""Numbers drawn from a seed that travels: the same on every processor, with every numpy, in any language.

splitmix64 (Steele, Lea and Flood 2014), number i of a seed: z = seed + (i + 1) 0x9E3779B97F4A7C15, then mixed.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from fl_protocol.compression.rice import Bytes

SEED_BYTES = 8


def draw_seed(rng: Generator) -> bytes:
    """A new one."""
    return rng.bytes(SEED_BYTES)


def draw_words(seed: Bytes, count: int) -> NDArray[np.uint64]:
    """64 random bits each, shape `(count,)`."""
    z = np.arange(1, count + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(int.from_bytes(seed, "little"))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw_positions(seed: Bytes, size: int, share: float) -> NDArray[np.int64]:
    """Each of `size` places with the probability `share`, to 2^-32, ascending."""
    return np.flatnonzero(draw_words(seed, size) >> np.uint64(32) < np.uint64(round(share * 2**32)))


def draw_signs(seed: Bytes, count: int) -> NDArray[np.float32]:
    """1 or -1, shape `(count,)`."""
    words = draw_words(seed, (count + 63) // 64).astype("<u8")
    return 1 - 2 * np.unpackbits(words.view(np.uint8), count=count).astype(np.float32)
