"""`uq`: a uniform quantiser with a dead zone, then entropy coding; 0.3 to 2 bits a parameter.

Tensor by tensor, with s = step * rms(a):  q = sign(a) floor(|a| / s + 0.33), and what arrives is q s. Values below
0.67 s become zero, which costs almost no bits; error feedback brings them in a later update. Tensors of fewer than 256
elements (biases, scales) travel as float16: they are few, and sensitive.

    one float32 s a quantised tensor · float16 of the small tensors · symbols (rice.py), all tensors in one row

Source: the measurements in `algorithms.md`, section 2, where it was the best of thirty. Added here: s is at most
max|a|, so that something always arrives: |a - q s|^2 <= (1 - 1/n) |a|^2, the contraction that error feedback rests on
(Stich et al. 2018). Without it a tensor of equal magnitudes would never be sent from step 1.5 up, and in 800 updates of
one steady Gaussian delta at step 3 the residual grew to 240 times its norm; with it, to 3 (to 1.4 at step 2).
"""

from itertools import accumulate, pairwise

import numpy as np
from numpy.random import Generator

from fl_protocol.compression import rice
from fl_protocol.compression.floats import decode_floats, encode_floats, finite
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.tensors import ModelLayout, Vector

ROUNDING = np.float32(0.33)
SMALL = 256  # elements; a tensor below that is float16
DEFAULT_STEP, MIN_STEP, MAX_STEP = 1.0, 0.5, 8.0
LARGEST = np.float32(1e36)  # far above any delta; below it q s cannot overflow
TINY = np.finfo(np.float32).tiny  # processors differ in how they multiply what is smaller


class DeadZone:
    """The default codec. `step` is in units of a tensor's root mean square: larger means fewer bytes and more loss."""

    name = "uq"

    def __init__(self, layout: ModelLayout, step: float = DEFAULT_STEP) -> None:
        self._step = step
        self._size = layout.num_parameters
        sliced = layout.parameter_slices()
        self._large, self._num_large = _side_by_side([s for entry, s in sliced if entry.size >= SMALL])
        self._small, self._num_small = _side_by_side([s for entry, s in sliced if entry.size < SMALL])

    def compress(self, vector: Vector, _rng: Generator, /) -> bytes:
        """Shape (P,) -> bytes, deterministic. Raises `ValueError` for a vector that is not finite."""
        finite(vector, self._size)
        scales = np.zeros(len(self._large), np.float32)
        symbols = np.zeros(self._num_large, np.int32)
        for i, (tensor, place) in enumerate(self._large):
            values = np.clip(vector[tensor], -LARGEST, LARGEST)
            rms = np.sqrt(np.mean(np.square(values, dtype=np.float64)))
            scale = np.float32(min(self._step * rms, np.abs(values).max()))
            if scale >= TINY:
                scales[i] = scale
                symbols[place] = values / scale + np.copysign(ROUNDING, values)  # truncated towards zero
        small = np.empty(self._num_small, np.float32)
        for tensor, place in self._small:
            small[place] = vector[tensor]
        return encode_floats(scales, "<f4") + encode_floats(small, "<f2") + rice.encode(symbols)

    def decompress(self, payload: bytes) -> Vector:
        """q s, shape (P,), by elementwise float32 multiplication alone: the same bits on every processor.

        Raises `ProtocolError(E_SIZE | E_SCHEMA | E_NAN)`.
        """
        small_at = 4 * len(self._large)
        symbols_at = small_at + 2 * self._num_small
        # From step 0.5 up, positions, signs and magnitudes take less than a byte an element together.
        if len(payload) > symbols_at + self._num_large + 32:
            raise ProtocolError(Code.SIZE, f"{len(payload)} bytes for {self._size} parameters")
        scales = decode_floats(payload[:small_at], "<f4", len(self._large))
        small = decode_floats(payload[small_at:symbols_at], "<f2", self._num_small)
        symbols = rice.decode(payload[symbols_at:], self._num_large)
        vector = np.empty(self._size, np.float32)
        with np.errstate(over="ignore"):  # a hostile scale; found below
            for scale, (tensor, place) in zip(scales, self._large, strict=True):
                vector[tensor] = symbols[place].astype(np.float32) * scale
        for tensor, place in self._small:
            vector[tensor] = small[place]
        if not np.isfinite(vector).all():
            raise ProtocolError(Code.NAN, "a symbol times its scale is beyond float32")
        return vector


def _side_by_side(tensors: list[slice]) -> tuple[list[tuple[slice, slice]], int]:
    """Each slice of the vector with its place when only these stand in a row, and the row's length."""
    ends = list(accumulate((t.stop - t.start for t in tensors), initial=0))
    places = [slice(start, stop) for start, stop in pairwise(ends)]
    return list(zip(tensors, places, strict=True)), ends[-1]
