"""Numbers drawn from a seed that travels: the same on every processor, with every numpy, in any language.

splitmix64 (Steele, Lea and Flood 2014), number i of a seed: z = seed + (i + 1) 0x9E3779B97F4A7C15, then mixed.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from fl_protocol.compression.rice import Bytes

SEED_BYTES = 8
AT_ONCE = 1 << 14  # words: they stay in the processor's cache, and memory is that of what is drawn


def draw_seed(rng: Generator) -> bytes:
    """A new one."""
    return rng.bytes(SEED_BYTES)


def draw_words(seed: Bytes, count: int, first: int = 0) -> NDArray[np.uint64]:
    """64 random bits each, shape `(count,)`: numbers `first` and following of the seed."""
    z = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(int.from_bytes(seed, "little"))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw_positions(seed: Bytes, size: int, share: float) -> NDArray[np.int64]:
    """Each of `size` places with the probability `share`, to 2^-32, ascending."""
    below = np.uint64(round(share * 2**32))
    places = [np.zeros(0, np.int64)]
    for first in range(0, size, AT_ONCE):
        words = draw_words(seed, min(AT_ONCE, size - first), first)
        places.append(first + np.flatnonzero(words >> np.uint64(32) < below))
    return np.concatenate(places)


def draw_signs(seed: Bytes, count: int) -> NDArray[np.float32]:
    """1 or -1, shape `(count,)`."""
    words = draw_words(seed, (count + 63) // 64).astype("<u8")
    return 1 - 2 * np.unpackbits(words.view(np.uint8), count=count).astype(np.float32)
