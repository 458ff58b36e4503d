"""Which of two values is better."""

from math import nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.better import best_of, improves, reaches

values = st.lists(st.floats(-1e6, 1e6), max_size=8)


@given(values)
def test_the_best_is_the_extreme_at_the_better_end(of):
    """Property: the largest or the least; none of none."""
    assert best_of(of, "higher") == max(of, default=None)
    assert best_of(of, "lower") == min(of, default=None)


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_lower_is_higher_turned_round(value, other):
    """Property: what holds of values holds of their negatives with the other end better; equals never improve."""
    assert improves(value, other, "lower") == improves(-value, -other, "higher")
    assert reaches(value, other, "lower") == reaches(-value, -other, "higher")
    assert reaches(value, value, "lower")
    assert not improves(value, value, "lower")


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_what_is_no_number_is_never_the_best(better):
    """A version that diverged is not chosen."""
    assert best_of([nan, 0.5, nan], better) == 0.5
    assert best_of([nan], better) is None
    assert not reaches(nan, 0.5, better)
