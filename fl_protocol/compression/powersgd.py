"""`powersgd`: matrices as products of two thin ones, rank 1 to 4; what is no matrix, or a small one, as float16.

With M of m rows (the tensor's first axis) and n columns, and Q of n by r drawn at random:  P = orthonormal(M Q),
Q = M^T P, twice; what arrives is P Q^T. Biased; contracts, since P P^T projects. The paper begins with the Q of the
last update, a state on the device; the second turn stands in for it.

    for each tensor: P, then Q, or all of it; each as its largest magnitude, float32, and float16 of value / largest

Source: Vogels, Karimireddy and Jaggi 2019.
"""

from typing import ClassVar, Self

import numpy as np
from numpy.random import Generator

from fl_protocol.compression.floats import decode_floats, encode_floats, finite
from fl_protocol.compression.grid import bounded
from fl_protocol.compression.sparse import Dense
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.parameters import Parameters
from fl_protocol.tensors import ModelLayout, TensorEntry, Vector


class PowerSgd(Dense):
    """`rank` 1 to 4."""

    name = "powersgd"
    example: ClassVar = {"name": "powersgd", "rank": "2"}

    def __init__(self, layout: ModelLayout, rank: int) -> None:
        self._size = layout.num_parameters
        self._rank = rank
        self._tensors = [(where, *self._thin(entry)) for entry, where in layout.parameter_slices()]

    @classmethod
    def make(cls, layout: ModelLayout, parameters: Parameters, _max_bytes: int | None) -> Self:
        """As the plan's settings say: `rank`."""
        return cls(layout, parameters.whole("rank", 2, 1, 4))

    def compress(self, vector: Vector, rng: Generator, /) -> bytes:
        """Shape (P,) -> bytes. Raises `ValueError` for a vector that is not finite."""
        values = bounded(finite(vector, self._size))
        parts = []
        for where, rows, columns in self._tensors:
            tensor = values[where]
            if not rows:
                parts.append(_encode(tensor))
                continue
            matrix = tensor.reshape(rows, columns).astype(np.float64)
            right = rng.standard_normal((columns, self._rank))
            for _ in range(2):
                left, _ = np.linalg.qr(matrix @ right)
                right = matrix.T @ left
            parts += [_encode(left.T.astype(np.float32)), _encode(right.T.astype(np.float32))]
        return b"".join(parts)

    def decompress(self, payload: bytes) -> Vector:
        """Shape (P,), by multiplications and sums in a fixed order: the same bits on every processor.

        Raises `ProtocolError(E_SIZE | E_SCHEMA | E_NAN)`.
        """
        sizes = [n * self._rank for _, rows, columns in self._tensors for n in (rows, columns) if rows]
        sizes += [where.stop - where.start for where, rows, _ in self._tensors if not rows]
        if len(payload) != sum(4 + 2 * size for size in sizes):
            raise ProtocolError(Code.SIZE, f"{len(payload)} bytes; {sum(4 + 2 * size for size in sizes)} were to come")
        vector = np.empty(self._size, np.float32)
        at = 0
        with np.errstate(over="ignore", invalid="ignore"):  # hostile factors; found below
            for where, rows, columns in self._tensors:
                if not rows:
                    vector[where], at = _decode(payload, at, where.stop - where.start)
                    continue
                left, at = _decode(payload, at, rows * self._rank)
                right, at = _decode(payload, at, columns * self._rank)
                matrix = vector[where].reshape(rows, columns)
                matrix[:] = 0
                for p, q in zip(left.reshape(self._rank, rows), right.reshape(self._rank, columns), strict=True):
                    matrix += p[:, None] * q
        if not np.isfinite(vector).all():
            raise ProtocolError(Code.NAN, "a product is beyond float32")
        return vector

    def _thin(self, entry: TensorEntry) -> tuple[int, int]:
        """Rows and columns, or zeros where two thin matrices would be no smaller."""
        rows = entry.shape[0] if entry.shape else 1
        columns = entry.size // rows
        return (rows, columns) if self._rank * (rows + columns) < entry.size else (0, 0)


def _encode(values: Vector) -> bytes:
    largest = np.abs(values).max()
    ratios = values / largest if largest > 0 else values
    return encode_floats(np.array([largest], np.float32), "<f4") + encode_floats(ratios, "<f2")


def _decode(payload: bytes, at: int, size: int) -> tuple[Vector, int]:
    """The numbers, and where the next ones begin."""
    largest = decode_floats(payload[at : at + 4], "<f4", 1)
    ratios = decode_floats(payload[at + 4 : at + 4 + 2 * size], "<f2", size)
    if np.abs(ratios).max() > 1:
        raise ProtocolError(Code.SCHEMA, "a value that is larger than the largest")
    return ratios * largest, at + 4 + 2 * size
