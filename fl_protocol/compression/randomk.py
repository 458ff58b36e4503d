"""`randomk`: elements that a seed chooses, and nothing that says which: values and a seed travel.

Each element is chosen with the probability `share`, whatever it is. With `gain` = "unbiased" what arrives is
a / share, and E = a, with a variance of a^2 (1 / share - 1); with "least" it is a itself: biased, contracts in the mean
by 1 - share, and is what error feedback needs. Sums of masked values can be taken by who knows only the seed.

    seed, 8 bytes · largest magnitude, float32 · float16 of a / largest; or k bits (qsgd.py), by `coder`

Half-precision values are off by 2^-11 at most, to the nearest; k bits are rounded at random with "unbiased", else to
the nearest.
Source: Konecny et al. 2016 (random masks); seeds drawn as draws.py says.
"""

from typing import ClassVar, Self

import numpy as np
from numpy.random import Generator

from fl_protocol.compression.coders import Coder
from fl_protocol.compression.draws import SEED_BYTES, draw_positions, draw_seed
from fl_protocol.compression.floats import decode_floats, encode_floats, finite
from fl_protocol.compression.grid import Rounding, bounded, cut, round_to_grid, scale_by_tensor
from fl_protocol.compression.sparse import Sparse
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.parameters import Parameters
from fl_protocol.tensors import ModelLayout, SparseVector, Vector

HALF = 16


class RandomK(Sparse):
    """`share` of the parameters, 0.001 to 1, in the mean."""

    name = "randomk"
    example: ClassVar = {"name": "randomk", "share": "0.1", "values": "4"}

    def __init__(self, layout: ModelLayout, share: float, bits: int, gain: str, coder: str) -> None:
        self._size = layout.num_parameters
        self._share = share
        self._most = None if bits == HALF else 2 ** (bits - 1) - 1
        self._rounding: Rounding = "stochastic" if gain == "unbiased" else "nearest"
        self._gain = np.float32(1 / share if gain == "unbiased" else 1)
        self._coder = Coder(coder, -(self._most or 0), self._most or 0)

    @classmethod
    def make(cls, layout: ModelLayout, parameters: Parameters, _max_bytes: int | None) -> Self:
        """As the plan's settings say: `share`, `values`, `gain`, `coder`."""
        share = parameters.number("share", 0.1, 0.001, 1.0)
        bits = int(parameters.choice("values", ("16", "2", "3", "4", "5", "6", "7", "8")))
        gain = parameters.choice("gain", ("least", "unbiased"))
        return cls(layout, share, bits, gain, parameters.choice("coder", ("packed", "range", "rice", "deflate")))

    def compress(self, vector: Vector, rng: Generator, /) -> bytes:
        """Shape (P,) -> bytes. Raises `ValueError` for a vector that is not finite."""
        values = bounded(finite(vector, self._size))
        seed = draw_seed(rng)
        chosen = values[draw_positions(seed, self._size, self._share)]
        largest = np.abs(chosen).max(initial=np.float32(0))
        ratios = chosen / largest if largest > 0 else chosen
        if self._most is None:
            stream = encode_floats(ratios, "<f2")
        else:
            stream = self._coder.encode([round_to_grid(ratios * np.float32(self._most), self._rounding, rng)])
        return seed + encode_floats(np.array([largest]), "<f4") + stream

    def _decode(self, payload: bytes) -> SparseVector:
        seed, largest, stream = cut(payload, SEED_BYTES, SEED_BYTES + 4)
        scale = decode_floats(largest, "<f4", 1)
        positions = draw_positions(seed, self._size, self._share)
        if self._most is None:
            ratios = decode_floats(stream, "<f2", len(positions))
            if np.abs(ratios).max(initial=0) > 1:
                raise ProtocolError(Code.SCHEMA, "a value that is larger than the largest")
        else:
            (symbols,) = self._coder.decode(stream, [len(positions)])
            ratios = symbols.astype(np.float32) / np.float32(self._most)
        with np.errstate(over="ignore", invalid="ignore"):  # a hostile scale; found by what is called
            values = scale_by_tensor(ratios, scale * self._gain, [slice(0, len(positions))])
        return SparseVector(positions, values, self._size)
