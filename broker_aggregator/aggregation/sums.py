"""Sums over many updates, and their inner products.

A bare pass of np.add over 100 vectors of 1M takes as long as reading them; a second pass makes it 1.7 times that, and
float64 five times. So dense vectors are summed in float32, 16 at a time and then the sums of 16, a tree as in np.sum's
pairwise summation, in units of the first factor: vectors with that factor are not multiplied at all.

What that loses: float64, rounded at the end, is off by 2.5e-8 of the result (root mean square; 100 Gaussian vectors),
this by 9.7e-8 with equal factors and 10.4e-8 with different ones, plain accumulation in float32 by 19.6e-8. Every
operation goes element by element in a fixed order, so the bits are the same on every processor; `gram` is BLAS's, whose
last bits (of float64) are the processor's own.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fl_protocol.tensors import SparseVector, Vector

FAN = 16  # summands of a node of the tree
LEAST_RATIO = 2.0**-20  # of factors in one float32 sum
AT_ONCE = 1 << 14  # elements in float64
GRAM_BYTES = 1 << 22  # of a block's columns in float64, at a time


class _Tree:
    """The sum of all that is added, in float32; a level is a sum of at most FAN sums of the level below."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._sums: list[Vector] = []
        self._counts: list[int] = []

    def add(self, vector: Vector, level: int = 0) -> None:
        if level == len(self._sums):
            self._sums.append(np.empty(self._size, np.float32))
            self._counts.append(0)
        own = self._sums[level]
        if self._counts[level]:
            np.add(own, vector, out=own)
        else:
            np.copyto(own, vector)
        self._counts[level] += 1
        if self._counts[level] == FAN:
            self.add(own, level + 1)
            self._counts[level] = 0

    def total(self) -> Vector:
        """Of all levels, the lowest first. The tree is used up."""
        levels = [level for level, count in zip(self._sums, self._counts, strict=True) if count]
        total = levels[0] if levels else np.zeros(self._size, np.float32)
        for level in levels[1:]:
            np.add(total, level, out=total)
        return total


class _Dense:
    """sum of factor * vector, in units of the first factor: an equal one costs no multiplication."""

    def __init__(self, size: int, factor: float) -> None:
        self._tree = _Tree(size)
        self._unit = factor
        self._scaled = np.empty(size, np.float32)

    def takes(self, factor: float) -> bool:
        """Whether float32 can hold the ratio of the factors, and of what is scaled with it."""
        return LEAST_RATIO * abs(self._unit) <= abs(factor) <= abs(self._unit) / LEAST_RATIO

    def add(self, factor: float, vector: Vector) -> None:
        if factor == self._unit:
            self._tree.add(vector)
        else:
            self._tree.add(np.multiply(vector, np.float32(factor / self._unit), out=self._scaled))

    def total(self) -> Vector:
        total = self._tree.total()
        for start in range(0, total.size if self._unit != 1 else 0, AT_ONCE):
            part = total[start : start + AT_ONCE]
            part[...] = np.multiply(part, self._unit, dtype=np.float64)
        return total


class _Exact:
    """The same in float64: for sparse vectors, which cost what they hold, and for odd factors."""

    def __init__(self, size: int) -> None:
        self._sum = np.zeros(size, np.float64)

    def add(self, factor: float, vector: Vector | SparseVector) -> None:
        if isinstance(vector, SparseVector):
            np.add.at(self._sum, vector.indices, np.multiply(vector.values, factor, dtype=np.float64))
        else:
            self._sum += np.multiply(vector, factor, dtype=np.float64)

    def total(self, dense: Vector | None) -> Vector:
        return (self._sum if dense is None else self._sum + dense).astype(np.float32)


def weighted_sum(terms: Iterable[tuple[float, Vector | SparseVector]], size: int) -> Vector:
    """sum of factor * vector, shape (size,). Holds one of the caller's vectors at a time, and three or four sums.

    The order of the terms matters to the last bits.
    """
    dense: _Dense | None = None
    exact: _Exact | None = None
    for factor, vector in terms:
        if isinstance(vector, np.ndarray) and factor:
            dense = dense or _Dense(size, factor)
            if dense.takes(factor):
                dense.add(factor, vector)
                continue
        exact = exact or _Exact(size)
        exact.add(factor, vector)
    total = None if dense is None else dense.total()
    if exact is not None:
        return exact.total(total)
    return np.zeros(size, np.float32) if total is None else total


def gram(blocks: Iterable[Vector]) -> NDArray[np.float64]:
    """Inner products of the rows of blocks of shape (K, B), shape (K, K), symmetric, in float64.

    Products of float32 are exact there, so squared distances, which are differences of these, are right to some 1e-15
    of the squared norms; in float32 two updates nearer than 1/3000 of their norm could not be told apart.
    """
    total: NDArray[np.float64] | None = None
    for block in blocks:
        num, size = block.shape
        if total is None:
            total = np.zeros((num, num))
        width = max(1, min(size, GRAM_BYTES // (8 * max(1, num))))
        scratch = np.empty((num, width))
        for start in range(0, size, width):
            wide = scratch[:, : min(width, size - start)]
            wide[...] = block[:, start : start + width]
            total += wide @ wide.T
    if total is None:
        raise ValueError("no blocks, no inner products")
    return total
