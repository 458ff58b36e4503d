"""Rate control: the step at which a vector's symbols take just no more than so many bytes, found anew for each vector.

The usual way follows the last update's size, step <- clamp(step (bytes / target)^0.3): a state that a crash forgets,
that one unusual delta misleads, and that takes some updates to arrive. Ours needs none. One histogram of |a| / step(1)
says how many symbols of each magnitude any step would give; Rice's code of gaps with a geometric law says what they
take; one to three encodings, ten at a flat top, settle what the forecast does not know. The payload says its own
scales, so that the reader needs none of this.

Measured: deltas of real models fill 95 to 99 % of 0.1 to 1 bits a parameter; a million parameters take 16 to 26 ms,
instead of 5 at the same step, and up to 50 where error feedback has left a flat top. Where more elements are exactly
equal than there are bytes for, all of them go: the codec has no way to send some.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fl_protocol.compression.rice import LEVELS, MAX_K
from fl_protocol.compression.scales import TINY
from fl_protocol.tensors import Vector

Floats = NDArray[np.float64]

FIRST, BINS = (127 - 8) << 5, 20 << 5  # 32 a doubling, from 2^-8 to 2^12 of a step
STEPS = 1200
ENOUGH, GOOD = 0.98, 0.9  # of the bytes that there are, at first and after some tries
FORECASTS, TRIES = 3, 8  # encodings: that the forecast proposes, and after which less will do


class Histogram:
    """How many elements have which magnitude, in units of the step at step 1."""

    def __init__(self) -> None:
        self._counts = np.zeros(BINS, np.int64)

    def add(self, values: Vector, unit: float) -> None:
        """Elements of one tensor, whose step is `unit` times the common one."""
        if np.float32(unit) >= TINY:
            bins = (np.abs(values / np.float32(unit)).view(np.int32) >> 18) - FIRST  # exponent, 5 bits of the fraction
            self._counts += np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)
        else:
            self._counts[0] += values.size

    def beyond(self, magnitudes: Floats) -> Floats:
        """How many elements have at least these magnitudes, in between by straight lines."""
        edges = np.arange(FIRST, FIRST + BINS + 1, dtype=np.int64) << 18
        left = np.append(np.cumsum(self._counts[::-1])[::-1], 0)
        return np.asarray(np.interp(magnitudes, edges.astype(np.int32).view(np.float32), left), np.float64)

    def bits(self, steps: Floats, rounding: float) -> Floats:
        """What rice.py takes for the symbols floor(x / step + rounding), by step."""
        reached = [np.full(steps.shape, float(self._counts.sum()))]
        reached += [self.beyond((level - rounding) * steps) for level in range(1, LEVELS + 1)]
        bits = reached[1].copy()  # the signs
        for among, count in pairwise(reached):
            bits += count * _rice_bits((among - count) / np.maximum(count, 1e-9))
        further = LEVELS + np.arange(1, 61)
        rest = np.sum([self.beyond((level - rounding) * steps) for level in further], axis=0)
        return np.asarray(bits + reached[-1] * _rice_bits(rest / np.maximum(reached[-1], 1e-9)), np.float64)


def _rice_bits(mean: Floats) -> Floats:
    """Bits a number of a geometric law with this mean takes, with its best k."""
    powers = (1 << np.arange(MAX_K + 1))[:, None]
    stays = (mean / (1 + mean)) ** powers  # P(number >= 2^k)
    bits: Floats = np.arange(MAX_K + 1)[:, None] + 1 + stays / np.maximum(1 - stays, 1e-12)
    return np.asarray(bits.min(axis=0), np.float64)


def fit(
    encode: Callable[[float], bytes], forecast: Callable[[Floats], Floats], most: int, low: float, high: float
) -> bytes:
    """`encode(step)` for nearly the smallest step from `low` to `high` that takes at most `most` bytes.

    `forecast` says about how many bytes each step takes. If `high` still takes more, that is what comes: the codec
    cannot say less.
    """
    steps = np.geomspace(low, high, STEPS)
    expected = forecast(steps)
    found: dict[int, int] = {}  # bytes by the number of the step
    best, truth, stride = b"", 1.0, 16  # truth: what the last encoding made of the forecast
    too_many, fits = -1, STEPS
    for attempt in range(2 * TRIES):
        likely = np.flatnonzero(expected * truth <= most * (1 + ENOUGH) / 2)
        at = int(likely[0]) if likely.size else STEPS - 1
        if attempt >= FORECASTS or not too_many < at < fits:  # the forecast has said what it knows
            at, stride = _between(too_many, fits, found, most, stride), 4 * stride
        payload = encode(float(steps[at]))
        found[at], truth = len(payload), len(payload) / expected[at]
        if len(payload) > most:
            too_many = at
        else:
            best, fits = payload, at
        if fits - too_many <= 1 or (best and len(best) >= (ENOUGH if attempt < TRIES else GOOD) * most):
            break
    return best or encode(high)


def _between(too_many: int, fits: int, found: dict[int, int], most: int, stride: int) -> int:
    """A step to try between those known to take too much and to fit: by what they take, else in growing strides."""
    if too_many in found and fits in found:
        more, less = math.log(found[too_many] / most), math.log(most / max(1, found[fits]))
        share = min(0.9, max(0.1, more / (more + less + 1e-9)))
        return min(fits - 1, max(too_many + 1, too_many + round(share * (fits - too_many))))
    middle = (too_many + fits) // 2
    return min(too_many + stride, middle) if too_many in found else max(fits - stride, middle)
