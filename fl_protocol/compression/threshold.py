"""`threshold`: in each tensor the elements of at least `level` times its root mean square, however many those are.

Biased; contracts, since the threshold is at most the tensor's largest magnitude: something always arrives. A device
that learnt something unusual says more, one that learnt nothing new says little. Values and bytes as in sparse.py.

Source: Strom (2015), with a threshold that follows the tensor; error feedback carries what is below.
"""

from typing import ClassVar, Self

import numpy as np
from numpy.random import Generator

from fl_protocol.compression.floats import finite
from fl_protocol.compression.grid import bounded
from fl_protocol.compression.sparse import Sparse, SparseValues
from fl_protocol.parameters import Parameters
from fl_protocol.tensors import ModelLayout, SparseVector, Vector


class Threshold(Sparse):
    """`level` in root mean squares, 0.1 to 20."""

    name = "threshold"
    example: ClassVar = {"name": "threshold", "level": "2.5", "values": "4"}

    def __init__(self, layout: ModelLayout, level: float, values: SparseValues) -> None:
        self._size = layout.num_parameters
        self._tensors = [where for _, where in layout.parameter_slices()]
        self._level = level
        self._values = values

    @classmethod
    def make(cls, layout: ModelLayout, parameters: Parameters, _max_bytes: int | None) -> Self:
        """As the plan's settings say: `level`, `values`, `coder`."""
        level = parameters.number("level", 2.5, 0.1, 20.0)
        return cls(layout, level, SparseValues.make(layout.num_parameters, parameters))

    def compress(self, vector: Vector, _rng: Generator, /) -> bytes:
        """Shape (P,) -> bytes, deterministic. Raises `ValueError` for a vector that is not finite."""
        values = bounded(finite(vector, self._size))
        chosen = np.zeros(self._size, np.bool_)
        for tensor in self._tensors:
            magnitudes = np.abs(values[tensor])
            rms = np.sqrt(np.mean(np.square(magnitudes, dtype=np.float64)))
            chosen[tensor] = (magnitudes >= min(self._level * rms, magnitudes.max())) & (magnitudes > 0)
        return self._values.encode(values, np.flatnonzero(chosen))

    def _decode(self, payload: bytes) -> SparseVector:
        return self._values.decode(payload)
