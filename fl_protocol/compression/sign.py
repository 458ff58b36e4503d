"""`sign`: one bit a parameter, and the mean magnitude of each tensor: what arrives is mean|a| sign(a).

Biased; no scale is nearer, and it contracts: |a - q|^2 = |a|^2 - n mean|a|^2, nearly so with a scale rounded by 6 % at
most. Zero counts as plus.

    scales (scales.py), a byte a tensor · a bit a parameter, 1 for minus

Source: scaled sign with error feedback (Seide et al. 2014; Karimireddy et al. 2019).
"""

from typing import ClassVar, Self

import numpy as np
from numpy.random import Generator

from fl_protocol.compression.floats import finite
from fl_protocol.compression.grid import bounded, cut, pack, scale_by_tensor, unpack
from fl_protocol.compression.scales import decode_scales, encode_scales, num_bytes
from fl_protocol.compression.sparse import Dense
from fl_protocol.parameters import Parameters
from fl_protocol.tensors import ModelLayout, Vector


class Sign(Dense):
    """The codec of constant size that needs no settings."""

    name = "sign"
    example: ClassVar = {"name": "sign"}

    def __init__(self, layout: ModelLayout) -> None:
        self._size = layout.num_parameters
        self._tensors = [where for _, where in layout.parameter_slices()]
        self._head = num_bytes(len(self._tensors))

    @classmethod
    def make(cls, layout: ModelLayout, _parameters: Parameters, _max_bytes: int | None) -> Self:
        """There is nothing to set."""
        return cls(layout)

    def compress(self, vector: Vector, _rng: Generator, /) -> bytes:
        """Shape (P,) -> bytes, deterministic. Raises `ValueError` for a vector that is not finite."""
        values = bounded(finite(vector, self._size))
        means = [np.mean(np.abs(values[t]), dtype=np.float64) for t in self._tensors]
        head, _ = encode_scales(np.array(means, np.float32), "nearest")
        return head + pack(values < 0, 1)

    def decompress(self, payload: bytes) -> Vector:
        """Shape (P,), the same bits on every processor. Raises `ProtocolError(E_SIZE | E_SCHEMA | E_NAN)`."""
        head, stream = cut(payload, self._head)
        scales = decode_scales(head, len(self._tensors))
        return scale_by_tensor(1 - 2 * unpack(stream, self._size, 1), scales, self._tensors)
