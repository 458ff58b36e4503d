"""Weighted sums are nearer to the exact ones than plain float32 is; inner products are float64's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_aggregator.aggregation.sums import FAN, gram, weighted_sum
from fl_protocol.compression.sparse import dense
from fl_protocol.tensors import SparseVector, Vector

factors = st.lists(st.floats(-2, 2) | st.sampled_from([0.25, 0.25, 1e-30, 0.0]), min_size=0, max_size=3 * FAN)


def vectors(count: int, size: int, seed: int) -> list[Vector]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size, dtype=np.float32) for _ in range(count)]


def sparsified(vector: Vector, rng: np.random.Generator) -> SparseVector:
    indices = np.flatnonzero(rng.random(vector.size) < 0.2)
    return SparseVector(indices, vector[indices], vector.size)


def exact(factors: list[float], vectors: list[Vector], size: int) -> np.ndarray:
    terms = (factor * vector.astype(np.float64) for factor, vector in zip(factors, vectors, strict=True))
    return sum(terms, np.zeros(size))


@settings(max_examples=150, deadline=None)
@given(factors, st.integers(0, 1000), st.floats(0, 1))
def test_the_sum_is_within_its_bound(given_factors: list[float], seed: int, share: float) -> None:
    """2^-24 (3 + 16 levels) sum |factor vector|, for any factors, dense and sparse vectors mixed."""
    size, rng = 50, np.random.default_rng(seed)
    whole = vectors(len(given_factors), size, seed)
    mixed = [sparsified(v, rng) if rng.random() < share else v for v in whole]
    plain = [dense(v) if isinstance(v, SparseVector) else v for v in mixed]
    found = weighted_sum(zip(given_factors, mixed, strict=True), size)
    wanted = exact(given_factors, plain, size)
    reach = exact([abs(f) for f in given_factors], [np.abs(v) for v in plain], size)
    assert found.dtype == np.float32
    assert (np.abs(found - wanted) <= 2.0**-24 * (3 + 2 * FAN) * reach + 1e-40).all()


@pytest.mark.parametrize("equal", [True, False])
def test_a_hundred_vectors_lose_half_of_what_plain_float32_does(equal: bool) -> None:
    """Root mean squares, as the module says."""
    size, rng = 20_000, np.random.default_rng(0)
    many = vectors(100, size, 1)
    weights = [0.01] * 100 if equal else (rng.random(100) / 50).tolist()
    wanted = exact(weights, many, size)
    plain = np.zeros(size, np.float32)
    for weight, vector in zip(weights, many, strict=True):
        plain += np.float32(weight) * vector
    found = weighted_sum(zip(weights, many, strict=True), size)
    lost, of_plain = (np.sqrt(np.mean((v - wanted) ** 2) / np.mean(wanted**2)) for v in (found, plain))
    assert lost < 0.6 * of_plain
    assert lost < 1.2e-7


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=300))
def test_whole_numbers_are_summed_exactly(numbers: list[int]) -> None:
    """However many levels the tree has: nothing is counted twice, or left out."""
    terms = [(1.0, np.full(3, n, np.float32)) for n in numbers]
    assert (weighted_sum(terms, 3) == sum(numbers)).all()


def test_vectors_stay_as_they_are_and_come_one_at_a_time() -> None:
    """A caller may decode each into the same memory: it is not read again."""
    buffer = np.zeros(4, np.float32)

    def decoded() -> list[tuple[float, Vector]]:
        for n in range(40):
            buffer.fill(n)
            yield 0.5 + n % 2, buffer
            assert (buffer == n).all()

    assert (weighted_sum(decoded(), 4) == sum(n * (0.5 + n % 2) for n in range(40))).all()


def test_factors_of_every_size_stay_finite() -> None:
    """A first factor of next to nothing is no unit for the others."""
    one = np.ones(2, np.float32)
    assert (weighted_sum([(1e-300, one), (1.0, one)], 2) == 1).all()
    assert (weighted_sum([(1e-30, one), (-1e30, one), (1e-30, one)], 2) == np.float32(-1e30)).all()


def test_nothing_sums_to_zero() -> None:
    """No terms, or only such as count nothing."""
    for terms in ([], [(0.0, np.ones(3, np.float32))]):
        assert np.array_equal(weighted_sum(terms, 3), np.zeros(3, np.float32))


def test_sparse_vectors_sum_as_float64_does() -> None:
    """Exactly what it says, rounded once."""
    rng = np.random.default_rng(0)
    weights = rng.random(30).tolist()
    sparse = [sparsified(v, rng) for v in vectors(30, 1000, 2)]
    wanted = np.zeros(1000)
    for weight, vector in zip(weights, sparse, strict=True):
        wanted += weight * dense(vector).astype(np.float64)
    assert np.array_equal(weighted_sum(zip(weights, sparse, strict=True), 1000), wanted.astype(np.float32))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(0, 1000))
def test_inner_products_are_float64s_however_the_columns_are_cut(rows: int, widths: list[int], seed: int) -> None:
    """Blocks of any widths, shape (K, K), symmetric to the bit."""
    block = np.random.default_rng(seed).standard_normal((rows, sum(widths)), dtype=np.float32)
    found = gram(np.split(block, np.cumsum(widths)[:-1], axis=1))
    wide = block.astype(np.float64)
    assert np.allclose(found, wide @ wide.T, rtol=1e-13, atol=1e-12)
    assert np.array_equal(found, found.T)


def test_near_copies_are_told_apart() -> None:
    """Distances of a millionth of the norm, which float32 products would lose."""
    base = np.random.default_rng(0).standard_normal(200_000, dtype=np.float32)
    block = np.stack([base, base, base])
    block[1, 0] += np.float32(1e-3)
    block[2, 0] += np.float32(2e-3)
    g = gram([block])
    for i, j, distance in ((0, 1, 1e-3), (1, 2, 1e-3), (0, 2, 2e-3)):
        assert g[i, i] + g[j, j] - 2 * g[i, j] == pytest.approx(distance**2, rel=1e-2)


def test_no_blocks_are_a_mistake() -> None:
    """There is no shape to give."""
    with pytest.raises(ValueError, match="no blocks"):
        gram([])
