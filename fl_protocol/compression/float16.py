"""`float16`: half precision; 16 bits a parameter, a relative error of at most 2^-11 from 2^-14 up to 65504.

Smaller values have an absolute error of at most 2^-25; larger ones become 65504, and error feedback carries the rest.
"""

from typing import ClassVar, Self

from numpy.random import Generator

from fl_protocol.compression.floats import decode_floats, encode_floats, finite
from fl_protocol.compression.sparse import Dense
from fl_protocol.parameters import Parameters
from fl_protocol.tensors import ModelLayout, Vector


class Float16(Dense):
    """The codec that needs no thought: half the bytes, no loss that training notices."""

    name = "float16"
    example: ClassVar = {"name": "float16"}

    def __init__(self, layout: ModelLayout) -> None:
        self._size = layout.num_parameters

    @classmethod
    def make(cls, layout: ModelLayout, _parameters: Parameters, _max_bytes: int | None) -> Self:
        """There is nothing to set."""
        return cls(layout)

    def compress(self, vector: Vector, _rng: Generator, /) -> bytes:
        """Shape (P,) -> 2 P bytes. Raises `ValueError` for a vector that is not finite."""
        return encode_floats(finite(vector, self._size), "<f2")

    def decompress(self, payload: bytes) -> Vector:
        """The rounded values, shape (P,). Raises `ProtocolError(E_SIZE | E_NAN)`."""
        return decode_floats(payload, "<f2", self._size)


def encode_statistics(vector: Vector) -> bytes:
    """A version's statistic entries, flat, as float16. Raises `ValueError` for values that are not finite."""
    return encode_floats(finite(vector, vector.size), "<f2")


def decode_statistics(payload: bytes, layout: ModelLayout) -> Vector:
    """Shape `(layout.num_statistics,)`. Raises `ProtocolError(E_SIZE | E_NAN)`."""
    return decode_floats(payload, "<f2", layout.num_statistics)
