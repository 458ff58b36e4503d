"""`eden`: a random rotation makes every element nearly Gaussian; then 1 or 2 bits an element are a good quantiser.

Blocks of 4,096 elements of the flat vector (the last one filled with zeros to a power of two): y = H D a with D random
signs and H the orthonormal Hadamard matrix; c = the nearest of Lloyd and Max's centroids for a Gaussian, +-0.7979 or
+-0.4528, +-1.5104, of y sqrt(d) / |y|. What arrives is f D H c, and `gain` chooses f:

    "unbiased"  |y|^2 / <y, c>: what arrives has exactly a's length along a, and, over uniformly random rotations, the
                mean a; the Hadamard matrix with random signs is nearly one (measured: a bias of 1.7 % of |a| with 1 bit
                and 1,024 elements of a Student's t)
    "least"     <y, c> / |c|^2: the least error; contracts, |a - q|^2 = |a|^2 - <y, c>^2 / |c|^2

    seed, 8 bytes · f, float32 a block · bits

Source: DRIVE (Vargaftik et al. 2021) for 1 bit, EDEN (Vargaftik et al. 2022).
"""

from typing import ClassVar, Self

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from fl_protocol.compression.draws import SEED_BYTES, draw_seed, draw_signs
from fl_protocol.compression.floats import decode_floats, encode_floats, finite
from fl_protocol.compression.grid import bounded, cut, pack, unpack
from fl_protocol.compression.sparse import Dense
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.parameters import Parameters
from fl_protocol.tensors import ModelLayout, Vector

BLOCK = 4096
CENTROIDS = {1: (0.7979,), 2: (0.4528, 1.5104)}


class Eden(Dense):
    """`bits` an element, 1 or 2."""

    name = "eden"
    example: ClassVar = {"name": "eden", "bits": "1"}

    def __init__(self, layout: ModelLayout, bits: int, gain: str) -> None:
        self._size = layout.num_parameters
        self._bits = bits
        self._centroids = np.array(CENTROIDS[bits], np.float32)
        self._unbiased = gain == "unbiased"
        whole, tail = divmod(self._size, BLOCK)
        shapes = [(whole, BLOCK), (1, 1 << (tail - 1).bit_length())] if tail else [(whole, BLOCK)]
        self._shapes = [shape for shape in shapes if shape[0]]  # blocks, elements
        self._num_blocks = sum(blocks for blocks, _ in self._shapes)
        self._padded = sum(blocks * elements for blocks, elements in self._shapes)

    @classmethod
    def make(cls, layout: ModelLayout, parameters: Parameters, _max_bytes: int | None) -> Self:
        """As the plan's settings say: `bits`, `gain`."""
        return cls(layout, parameters.whole("bits", 1, 1, 2), parameters.choice("gain", ("least", "unbiased")))

    def compress(self, vector: Vector, rng: Generator, /) -> bytes:
        """Shape (P,) -> bytes. Raises `ValueError` for a vector that is not finite."""
        seed = draw_seed(rng)
        padded = np.zeros(self._padded, np.float32)
        padded[: self._size] = bounded(finite(vector, self._size))
        padded *= draw_signs(seed, self._padded)
        factors, codes = [], []
        for blocks in self._blocks(padded):
            rotated = rotate(blocks)
            square = np.sum(np.square(rotated, dtype=np.float64), axis=1)
            spread = np.sqrt(square / rotated.shape[1])[:, None]
            outer = (
                np.abs(rotated) > spread * np.mean(self._centroids) if self._bits == 2 else np.zeros_like(rotated, bool)
            )
            code = 2 * outer.astype(np.uint8) + (rotated < 0)
            centroids = self._values(code)
            along = np.sum(np.multiply(rotated, centroids, dtype=np.float64), axis=1)
            over = along if self._unbiased else np.sum(np.square(centroids, dtype=np.float64), axis=1)
            factors.append(np.where(square > 0, (square if self._unbiased else along) / np.where(over > 0, over, 1), 0))
            codes.append(code.reshape(-1))
        scales = np.concatenate(factors).astype(np.float32)
        return seed + encode_floats(scales, "<f4") + pack(np.concatenate(codes), self._bits)

    def decompress(self, payload: bytes) -> Vector:
        """Shape (P,), by additions in a fixed order and multiplications: the same bits on every processor.

        Raises `ProtocolError(E_SIZE | E_NAN)`.
        """
        at = SEED_BYTES + 4 * self._num_blocks
        seed, head, stream = cut(payload, SEED_BYTES, at)
        factors = decode_floats(head, "<f4", self._num_blocks)
        padded = self._values(unpack(stream, self._padded, self._bits))
        with np.errstate(over="ignore", invalid="ignore"):  # hostile factors; found below
            for blocks in self._blocks(padded):
                blocks[:] = rotate(blocks * factors[: len(blocks), None])
                factors = factors[len(blocks) :]
            padded *= draw_signs(seed, self._padded)
        if not np.isfinite(padded).all():
            raise ProtocolError(Code.NAN, "what the bits say is beyond float32")
        return padded[: self._size].copy()

    def _values(self, codes: NDArray[np.integer]) -> Vector:
        """The centroids that codes mean: the lowest bit is the sign."""
        signed = np.stack([self._centroids, -self._centroids], axis=1).reshape(-1)
        values: Vector = signed[codes]
        return values

    def _blocks(self, padded: Vector) -> list[Vector]:
        """Views, shape (blocks, elements)."""
        views, start = [], 0
        for blocks, elements in self._shapes:
            views.append(padded[start : start + blocks * elements].reshape(blocks, elements))
            start += blocks * elements
        return views


def rotate(blocks: Vector) -> Vector:
    """Each row, of 2^n elements, times the orthonormal Hadamard matrix, which is its own inverse."""
    elements = blocks.shape[1]
    columns = np.ascontiguousarray(blocks.T) * np.float32(elements**-0.5)  # smaller first: no sum overflows
    half = 1
    while half < elements:
        pairs = columns.reshape(-1, 2, half, blocks.shape[0])
        columns = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
        half *= 2
    return np.ascontiguousarray(columns.reshape(elements, -1).T)
