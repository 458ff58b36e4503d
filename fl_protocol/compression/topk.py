"""`topk`: the elements of largest magnitude, the same share of every vector, exactly so many.

Biased; contracts: |a - q|^2 <= (1 - share) |a|^2 with exact values, and nearly so with rounded ones (sparse.py).

Source: deep gradient compression (Lin et al. 2018) and Aji and Heafield (2017), over the whole vector; with error
feedback (Stich et al. 2018).
"""

from typing import ClassVar, Self

from numpy.random import Generator

from fl_protocol.compression.floats import finite
from fl_protocol.compression.grid import bounded
from fl_protocol.compression.sparse import DEFAULT_SHARE, MIN_SHARE, Sparse, SparseValues, largest
from fl_protocol.parameters import Parameters
from fl_protocol.tensors import ModelLayout, SparseVector, Vector


class TopK(Sparse):
    """`share` of the parameters, 0.0001 to 1, at least one."""

    name = "topk"
    example: ClassVar = {"name": "topk", "share": "0.01", "values": "4"}

    def __init__(self, layout: ModelLayout, share: float, values: SparseValues) -> None:
        self._size = layout.num_parameters
        self._count = max(1, round(share * self._size))
        self._values = values

    @classmethod
    def make(cls, layout: ModelLayout, parameters: Parameters, _max_bytes: int | None) -> Self:
        """As the plan's settings say: `share`, `values`, `coder`."""
        share = parameters.number("share", DEFAULT_SHARE, MIN_SHARE, 1.0)
        return cls(layout, share, SparseValues.make(layout.num_parameters, parameters))

    def compress(self, vector: Vector, _rng: Generator, /) -> bytes:
        """Shape (P,) -> bytes, deterministic. Raises `ValueError` for a vector that is not finite."""
        values = bounded(finite(vector, self._size))
        return self._values.encode(values, largest(values, self._count))

    def _decode(self, payload: bytes) -> SparseVector:
        return self._values.decode(payload)
