"""`qsgd`: a uniform grid of k bits between -max|a| and max|a|, tensor by tensor, rounded at random: unbiased.

With m = 2^(k-1) - 1 and s = max|a|:  q is a neighbour of m a / s, the upper one with the probability that makes the
mean right; what arrives is q s / m, and E = a. k = 8 is int8, 4 is int4, 2 is ternary: TernGrad (Wen et al. 2017). At
k = 1 there is no zero: +s with probability (1 + a/s) / 2, else -s. The error of an element is less than s / m (2 s at
k = 1). `rounding` = "nearest" halves that, is biased, and contracts for k > 1, as error feedback wants it.

    scales (scales.py), rounded up, of s / m a tensor · symbols of all tensors in a row, by `coder`

Source: QSGD (Alistarh et al. 2017) with the largest magnitude instead of the norm, as deep learning has used it since,
and no buckets: tensors are the buckets.
"""

from typing import ClassVar, Self

import numpy as np
from numpy.random import Generator

from fl_protocol.compression.coders import Coder
from fl_protocol.compression.floats import finite
from fl_protocol.compression.grid import Rounding, bounded, cut, round_to_grid, rounding_of, scale_by_tensor
from fl_protocol.compression.scales import decode_scales, encode_scales, num_bytes
from fl_protocol.compression.sparse import Dense
from fl_protocol.parameters import Parameters
from fl_protocol.tensors import ModelLayout, Vector


class Qsgd(Dense):
    """`bits` 1 to 8 a parameter before the coder."""

    name = "qsgd"
    example: ClassVar = {"name": "qsgd", "bits": "4", "coder": "range"}

    def __init__(self, layout: ModelLayout, bits: int, rounding: Rounding, coder: str) -> None:
        self._size = layout.num_parameters
        self._tensors = [where for _, where in layout.parameter_slices()]
        self._head = num_bytes(len(self._tensors))
        self._most = max(1, 2 ** (bits - 1) - 1)
        self._one_bit = bits == 1
        self._rounding: Rounding = rounding
        self._coder = Coder(coder, 0 if self._one_bit else -self._most, self._most)

    @classmethod
    def make(cls, layout: ModelLayout, parameters: Parameters, _max_bytes: int | None) -> Self:
        """As the plan's settings say: `bits`, `rounding`, `coder`."""
        bits = parameters.whole("bits", 4, 1, 8)
        rounding = rounding_of(parameters.choice("rounding", ("stochastic", "nearest")))
        return cls(layout, bits, rounding, parameters.choice("coder", ("packed", "range", "rice", "deflate")))

    def compress(self, vector: Vector, rng: Generator, /) -> bytes:
        """Shape (P,) -> bytes. Raises `ValueError` for a vector that is not finite."""
        values = bounded(finite(vector, self._size))
        peaks = np.array([np.abs(values[t]).max() for t in self._tensors], np.float32)
        head, scales = encode_scales(peaks / np.float32(self._most), "up")
        for scale, tensor in zip(scales, self._tensors, strict=True):
            if scale > 0:
                values[tensor] /= scale
            else:
                values[tensor] = 0
        if self._one_bit:
            values = (values + 1) * np.float32(0.5)
        symbols = np.clip(round_to_grid(values, self._rounding, rng), self._coder.low, self._most)
        return head + self._coder.encode([symbols])

    def decompress(self, payload: bytes) -> Vector:
        """Shape (P,), the same bits on every processor. Raises `ProtocolError(E_SIZE | E_SCHEMA | E_NAN)`."""
        head, stream = cut(payload, self._head)
        scales = decode_scales(head, len(self._tensors))
        (symbols,) = self._coder.decode(stream, [self._size])
        return scale_by_tensor(2 * symbols - 1 if self._one_bit else symbols, scales, self._tensors)
