"""`none`: float32 as it is, lossless; 32 bits a parameter."""

from typing import ClassVar, Self

from numpy.random import Generator

from fl_protocol.compression.floats import decode_floats, encode_floats, finite
from fl_protocol.compression.sparse import Dense
from fl_protocol.parameters import Parameters
from fl_protocol.tensors import ModelLayout, Vector


class Float32(Dense):
    """What the other codecs are measured against."""

    name = "none"
    example: ClassVar = {"name": "none"}

    def __init__(self, layout: ModelLayout) -> None:
        self._size = layout.num_parameters

    @classmethod
    def make(cls, layout: ModelLayout, _parameters: Parameters, _max_bytes: int | None) -> Self:
        """There is nothing to set."""
        return cls(layout)

    def compress(self, vector: Vector, _rng: Generator, /) -> bytes:
        """Shape (P,) -> 4 P bytes. Raises `ValueError` for a vector that is not finite."""
        return encode_floats(finite(vector, self._size), "<f4")

    def decompress(self, payload: bytes) -> Vector:
        """The same bits, shape (P,). Raises `ProtocolError(E_SIZE | E_NAN)`."""
        return decode_floats(payload, "<f4", self._size)
