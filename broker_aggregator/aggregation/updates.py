"""The updates of one buffer, and what is computed of them: sums, inner products, blocks of coordinates.

Whatever a wrapper does (scale, mix, average, leave out) makes of K updates M rows that are linear in them, so a set
is the updates, decoded when they are needed, and a matrix of shape (M, K). Norms, distances and angles of the rows
come of the updates' Gram matrix, which is computed once; only rules that work coordinate by coordinate ever see the
rows themselves, a block at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from broker_aggregator.aggregation import sums
from fl_protocol.tensors import SparseVector, Vector

Matrix = NDArray[np.float64]
BLOCK_BYTES = 64 << 20  # of all updates of a block together, as float32


@dataclass(frozen=True)
class UpdateMeta:
    """What a rule may know of an update besides its numbers. `norm` is the Euclidean one of its delta."""

    device: str
    staleness: int
    num_examples: int
    local_steps: int
    norm: float


def squared_distances(gram: Matrix) -> Matrix:
    """Between all rows of which these are the inner products, shape (M, M)."""
    squares = np.diag(gram)
    distances = np.maximum(0.0, squares[:, None] + squares[None, :] - 2 * gram)
    np.fill_diagonal(distances, 0.0)
    return distances


class _Deltas:
    """K deltas of P values, decoded when they are asked for; all at once where they fit into a block."""

    def __init__(
        self,
        num: int,
        size: int,
        decode: Callable[[int], Vector],
        decode_sparse: Callable[[int], SparseVector | None],
        block_bytes: int,
    ) -> None:
        self.num, self.size = num, size
        self._decode, self.decode_sparse = decode, decode_sparse
        self._width = max(1, block_bytes // (4 * max(1, num)))
        self._whole: Vector | None = None  # shape (K, P)

    def decode(self, i: int) -> Vector:
        return self._decode(i) if self._whole is None else self._whole[i]

    def blocks(self) -> Iterator[Vector]:
        """Shape (K, B) each, from the first coordinates to the last; one is over when the next is asked for."""
        if self._whole is not None:
            yield self._whole
            return
        room = np.empty((self.num, min(self.size, self._width)), np.float32)
        for start in range(0, self.size, self._width):
            block = room[:, : min(self._width, self.size - start)]
            for i in range(self.num):
                block[i] = self._decode(i)[start : start + self._width]
            if block.shape[1] == self.size:
                self._whole = block
            yield block

    @cached_property
    def gram(self) -> Matrix:
        return sums.gram(self.blocks())


class UpdateSet:
    """The updates of one buffer in record order; `decode(i)` is the delta of the i-th, shape (P,)."""

    def __init__(
        self,
        meta: Sequence[UpdateMeta],
        decode: Callable[[int], Vector],
        size: int,
        decode_sparse: Callable[[int], SparseVector | None] = lambda _: None,
        *,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        if not meta:
            raise ValueError("a buffer without updates asks for no step")
        self.meta, self.size = tuple(meta), size
        self._deltas = _Deltas(len(meta), size, decode, decode_sparse, block_bytes)
        self._mix: Matrix | None = None  # shape (M, K), or (K,) on its diagonal; None: each row is an update
        self._norms: Matrix | None = np.array([m.norm for m in meta], np.float64)

    def __len__(self) -> int:
        return len(self.meta)

    # --- other rows of the same updates ---

    def scaled(self, factors: Matrix) -> "UpdateSet":
        """Each row times its factor, shape (M,)."""
        if factors.shape != (len(self),):
            raise ValueError(f"{factors.shape} factors for {len(self)} rows")
        norms = None if self._norms is None else self._norms * np.abs(factors)
        mix = factors if self._mix is None else (factors * self._mix.T).T
        return self._derived(mix, self.meta, norms)

    def mixed(self, matrix: Matrix, meta: Sequence[UpdateMeta] | None = None) -> "UpdateSet":
        """Row j is sum_i matrix[j, i] row_i. `meta` describes the new rows, where they are others than before."""
        meta = self.meta if meta is None else tuple(meta)
        if matrix.shape != (len(meta), len(self)):
            raise ValueError(f"a matrix of shape {matrix.shape} makes no {len(meta)} rows of {len(self)}")
        if self._mix is None:
            return self._derived(matrix, meta)
        return self._derived(matrix * self._mix if self._mix.ndim == 1 else matrix @ self._mix, meta)

    def chosen(self, rows: Sequence[int]) -> "UpdateSet":
        """Some of the rows, in the given order."""
        norms = None if self._norms is None else self._norms[list(rows)]
        whole = np.eye(len(self)) if self._mix is None else np.diag(self._mix) if self._mix.ndim == 1 else self._mix
        return self._derived(whole[list(rows)], tuple(self.meta[i] for i in rows), norms)

    def _derived(self, mix: Matrix, meta: tuple[UpdateMeta, ...], norms: Matrix | None = None) -> "UpdateSet":
        made = copy(self)
        made.__dict__.update(meta=meta, _mix=mix, _norms=norms)
        return made

    # --- what is computed of them ---

    def gram(self) -> Matrix:
        """Inner products of the rows, shape (M, M)."""
        gram, mix = self._deltas.gram, self._mix
        if mix is None:
            return gram
        if mix.ndim == 1:
            scaled: Matrix = gram * np.outer(mix, mix)
            return scaled
        mixed: Matrix = mix @ gram @ mix.T
        return (mixed + mixed.T) / 2  # symmetric to the last bit: each of two rows is as far from the other

    def norms(self) -> Matrix:
        """Euclidean norms of the rows, shape (M,)."""
        if self._norms is None:
            self._norms = np.sqrt(np.maximum(0.0, np.diag(self.gram())))
        return self._norms

    def squared_distances(self) -> Matrix:
        """Between all rows, shape (M, M)."""
        return squared_distances(self.gram())

    def products(self, vector: Vector) -> Matrix:
        """Inner product of each row with a vector of shape (P,); shape (M,)."""
        wide = vector.astype(np.float64)
        found: Matrix = np.array([wide @ self._deltas.decode(i) for i in range(self._deltas.num)])
        if self._mix is not None:
            found = self._mix * found if self._mix.ndim == 1 else self._mix @ found
        return found

    def weighted_sum(self, factors: Matrix) -> Vector:
        """sum_j factors[j] row_j, shape (P,). Never holds more than one dense delta; sparse ones stay so."""
        mix = self._mix
        own = factors if mix is None else factors * mix if mix.ndim == 1 else factors @ mix
        deltas = self._deltas

        def found() -> Iterator[tuple[float, Vector | SparseVector]]:
            for i, factor in enumerate(own):
                if factor:
                    sparse = deltas.decode_sparse(i)
                    yield float(factor), deltas.decode(i) if sparse is None else sparse

        return sums.weighted_sum(found(), self.size)

    def by_coordinates(self, rule: Callable[[Vector], Vector]) -> Vector:
        """A rule from blocks of all rows, shape (M, B), to shape (B,); joined to shape (P,)."""
        mix = None if self._mix is None else self._mix.astype(np.float32)

        def rows(block: Vector) -> Vector:
            if mix is None:
                return block
            found: Vector = block * mix[:, None] if mix.ndim == 1 else mix @ block
            return found

        parts = [rule(rows(block)) for block in self._deltas.blocks()]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)
