"""Medians and trimmed means are those of float64, in blocks of every shape."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from broker_aggregator.aggregation import order_statistics
from broker_aggregator.aggregation.order_statistics import median, trimmed_mean
from fl_protocol.tensors import Vector

numbers = st.floats(-(2.0**100), 2.0**100, width=32)
blocks = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40), elements=numbers)


@settings(max_examples=200, deadline=None)
@given(blocks)
def test_the_median_is_float64s_rounded_once(block: Vector) -> None:
    """Exactly numpy's of the same numbers in float64, of an even number the mean of the middle two."""
    expected = np.median(block.astype(np.float64), axis=0).astype(np.float32)
    assert np.array_equal(median(block), expected)


@settings(max_examples=200, deadline=None)
@given(blocks, st.floats(0, 1, exclude_max=True))
def test_the_trimmed_mean_is_the_exact_one_rounded(block: Vector, share: float) -> None:
    """Of fractions: off by one float32 at most of what is summed, since float64 sums before it is rounded once."""
    f = int(share * ((len(block) + 1) // 2))
    found = trimmed_mean(block, f)
    for column, value in zip(block.T, found, strict=True):
        kept = sorted(Fraction(float(x)) for x in column)[f : len(column) - f]
        exact = sum(kept) / len(kept)
        reach = max(map(abs, kept)) * Fraction(2) ** -45 + abs(exact) * Fraction(2) ** -24 + Fraction(2) ** -149
        assert abs(Fraction(float(value)) - exact) <= reach


def test_by_hand() -> None:
    """Of 1 2 3 10, with and without both ends; and one update alone is its own median."""
    block = np.array([[10], [1], [3], [2]], np.float32)
    assert trimmed_mean(block, 0) == [4]
    assert trimmed_mean(block, 1) == [2.5] == median(block)
    assert median(block[:3]) == [3]
    assert median(block[:1]) == [10] == trimmed_mean(block[:1], 0)


def test_rows_may_come_in_any_order_and_columns_in_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits, also where the columns do not fill the scratch evenly, and for a block that is a view."""
    rng = np.random.default_rng(0)
    block = rng.standard_normal((31, 1000), dtype=np.float32)
    expected = trimmed_mean(block, 7)
    assert np.array_equal(trimmed_mean(rng.permutation(block), 7), expected)
    assert np.array_equal(trimmed_mean(block[:, 17:300], 7), expected[17:300])
    assert np.array_equal(trimmed_mean(np.asfortranarray(block), 7), expected)
    monkeypatch.setattr(order_statistics, "SCRATCH_BYTES", 1)
    assert np.array_equal(trimmed_mean(block, 7), expected)


def test_the_block_stays_as_it_is() -> None:
    """It is sorted in a copy."""
    block = np.random.default_rng(0).standard_normal((9, 50), dtype=np.float32)
    before = block.copy()
    median(block)
    assert np.array_equal(block, before)


def test_both_zeros_are_one() -> None:
    """Where a sort puts -0.0 among zeros is the processor's own: what comes is 0.0."""
    for rows in ([[0.0], [-0.0], [-0.0]], [[-0.0], [-0.0]]):
        assert not np.signbit(median(np.array(rows, np.float32))).any()


def test_no_columns_have_no_medians() -> None:
    """Shape (0,)."""
    assert median(np.zeros((3, 0), np.float32)).shape == (0,)


@pytest.mark.parametrize(("num", "f"), [(4, 2), (5, 3), (1, 1), (3, -1)])
def test_what_would_leave_nothing_is_a_mistake(num: int, f: int) -> None:
    """2 f values at least are trimmed away."""
    with pytest.raises(ValueError, match="leave none"):
        trimmed_mean(np.zeros((num, 2), np.float32), f)
