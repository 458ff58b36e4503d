"""Some of the elements, as positions and values: what `topk` and `threshold` share.

Values have 16 bits (float16 of value / largest) or k of 2 to 8: a sign, and the nearest of 2^(k-1) magnitudes evenly
between the least and the largest that is sent. So no value is off by more than its own magnitude: the whole contracts.

    least and largest magnitude, float32 · for k bits: symbols sign (1 + number of the magnitude), by `coder`
                                           for 16: bytes of float16, 4 bytes · float16 · symbols -1, 0, 1, by `coder`
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from fl_protocol.compression.coders import Coder
from fl_protocol.compression.floats import decode_floats, encode_floats
from fl_protocol.compression.grid import cut
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.parameters import Parameters
from fl_protocol.tensors import SparseVector, Vector

DEFAULT_SHARE, MIN_SHARE = 0.01, 0.0001
VALUES = ("4", "2", "3", "5", "6", "7", "8", "16")  # bits; the first is the default
HALF = 16

Positions = NDArray[np.int64]


class Dense:
    """A codec whose bytes say all values one by one: it has no shorter form of them."""

    def decompress_sparse(self, _payload: bytes) -> SparseVector | None:
        """None."""
        return None


class Sparse(ABC):
    """A codec whose bytes say where values are that are not zero."""

    def decompress(self, payload: bytes) -> Vector:
        """Shape (P,), the same bits on every processor. Raises `ProtocolError(E_SIZE | E_SCHEMA | E_NAN)`."""
        return dense(self._decode(payload))

    def decompress_sparse(self, payload: bytes) -> SparseVector | None:
        """The same without its zeros, unless those are too few. Raises what `decompress` does."""
        vector = self._decode(payload)
        return vector if worth(len(vector.values), vector.size) else None

    @abstractmethod
    def _decode(self, payload: bytes) -> SparseVector:
        """What the payload says, whatever that costs."""


def worth(count: int, size: int) -> bool:
    """Whether positions and values, 8 and 4 bytes each, take less memory than all values do."""
    return 12 * count < 4 * size


def dense(vector: SparseVector) -> Vector:
    """With its zeros, shape `(size,)`."""
    whole = np.zeros(vector.size, np.float32)
    whole[vector.indices] = vector.values
    return whole


def largest(vector: Vector, count: int) -> Positions:
    """Where the `count` largest magnitudes are, ascending; what is zero is left out."""
    magnitudes = np.abs(vector)
    if count >= vector.size:
        return np.flatnonzero(magnitudes)
    positions = np.sort(np.argpartition(magnitudes, vector.size - count)[vector.size - count :])
    return positions[magnitudes[positions] > 0]


class SparseValues:
    """Encodes a vector of `size` at chosen positions."""

    def __init__(self, size: int, bits: int, coder: str) -> None:
        self._size = size
        self._half = bits == HALF
        self._levels = 1 if self._half else 2 ** (bits - 1)
        self._coder = Coder(coder, -self._levels, self._levels)

    @classmethod
    def make(cls, size: int, parameters: Parameters) -> "SparseValues":
        """As the plan's settings say: `values`, `coder`."""
        bits = int(parameters.choice("values", VALUES))
        return cls(size, bits, parameters.choice("coder", ("rice", "range", "deflate")))

    def encode(self, vector: Vector, positions: Positions) -> bytes:
        """`vector` at `positions`, where it is not zero."""
        values = vector[positions]
        magnitudes = np.abs(values)
        low, high = magnitudes.min(initial=np.inf), magnitudes.max(initial=0)
        ends = np.array([min(low, high), high], np.float32)
        symbols = np.zeros(self._size, np.int32)
        if self._half:
            symbols[positions] = np.sign(values)
            tail = encode_floats(magnitudes / high, "<f2") if high > 0 else b""
        else:
            gap = (ends[1] - ends[0]) / np.float32(self._levels - 1)
            numbers = np.rint((magnitudes - low) / gap) if gap > 0 else np.zeros(len(values), np.float32)
            symbols[positions] = np.sign(values) * (1 + np.minimum(numbers, self._levels - 1))
            tail = b""
        stream = self._coder.encode([symbols])
        return encode_floats(ends, "<f4") + len(tail).to_bytes(4, "little") * self._half + tail + stream

    def decode(self, payload: bytes) -> SparseVector:
        """What is not zero, of `size` values. Raises `ProtocolError(E_SIZE | E_SCHEMA | E_NAN)`."""
        head, rest = cut(payload, 8)
        low, high = decode_floats(head, "<f4", 2)
        if not 0 <= low <= high:
            raise ProtocolError(Code.SCHEMA, f"magnitudes from {low} to {high}")
        tail = memoryview(b"")
        if self._half:
            length, rest = cut(rest, 4)
            if (num_bytes := int.from_bytes(length, "little")) > len(rest):
                raise ProtocolError(Code.SIZE, f"{num_bytes} bytes of values; {len(rest)} came")
            tail, rest = cut(rest, num_bytes)
        ((positions, chosen),) = self._coder.decode_sparse(rest, [self._size])
        if self._half:
            magnitudes = decode_floats(tail, "<f2", len(positions))
            if magnitudes.size and not 0 <= magnitudes.min() <= magnitudes.max() <= 1:
                raise ProtocolError(Code.SCHEMA, "a value that is larger than the largest, or negative")
            magnitudes = magnitudes * high
        else:
            gap = (high - low) / np.float32(self._levels - 1)
            with np.errstate(over="ignore"):  # by rounding, at the end of float32
                magnitudes = np.minimum(low + (np.abs(chosen) - 1).astype(np.float32) * gap, high)
        return SparseVector(positions, np.where(chosen < 0, -magnitudes, magnitudes), self._size)
