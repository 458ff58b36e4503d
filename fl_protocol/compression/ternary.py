"""`ternary`: the largest magnitudes as plus or minus their mean, all others zero.

With T the `share` of the whole vector that is largest in magnitude and mu its mean magnitude: mu sign(a) on T. Biased;
contracts, since mu is the nearest scale: |a - q|^2 = |a|^2 - |T| mu^2.

    mu, float32 · symbols -1, 0, 1, by `coder`

Source: sparse ternary compression (Sattler et al. 2019, arXiv 1903.02891); its Golomb code is Rice's here. TernGrad,
which rounds every element at random to three values, is `qsgd` with 2 bits.
"""

from typing import ClassVar, Self

import numpy as np
from numpy.random import Generator

from fl_protocol.compression.coders import Coder
from fl_protocol.compression.floats import decode_floats, encode_floats, finite
from fl_protocol.compression.grid import bounded, cut, scale_by_tensor
from fl_protocol.compression.sparse import DEFAULT_SHARE, MIN_SHARE, Sparse, largest
from fl_protocol.parameters import Parameters
from fl_protocol.tensors import ModelLayout, SparseVector, Vector


class Ternary(Sparse):
    """`share` of the parameters, 0.0001 to 1, at least one."""

    name = "ternary"
    example: ClassVar = {"name": "ternary", "share": "0.03"}

    def __init__(self, layout: ModelLayout, share: float, coder: str) -> None:
        self._size = layout.num_parameters
        self._count = max(1, round(share * self._size))
        self._coder = Coder(coder, -1, 1)

    @classmethod
    def make(cls, layout: ModelLayout, parameters: Parameters, _max_bytes: int | None) -> Self:
        """As the plan's settings say: `share`, `coder`."""
        share = parameters.number("share", DEFAULT_SHARE, MIN_SHARE, 1.0)
        return cls(layout, share, parameters.choice("coder", ("rice", "range", "deflate", "packed")))

    def compress(self, vector: Vector, _rng: Generator, /) -> bytes:
        """Shape (P,) -> bytes, deterministic. Raises `ValueError` for a vector that is not finite."""
        values = bounded(finite(vector, self._size))
        positions = largest(values, self._count)
        mean = np.sum(np.abs(values[positions]), dtype=np.float64) / max(1, len(positions))
        symbols = np.zeros(self._size, np.int32)
        symbols[positions] = np.sign(values[positions])
        return encode_floats(np.array([mean], np.float32), "<f4") + self._coder.encode([symbols])

    def _decode(self, payload: bytes) -> SparseVector:
        head, stream = cut(payload, 4)
        scale = decode_floats(head, "<f4", 1)
        ((positions, symbols),) = self._coder.decode_sparse(stream, [self._size])
        return SparseVector(positions, scale_by_tensor(symbols, scale, [slice(0, len(positions))]), self._size)
