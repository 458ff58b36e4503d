"""How long to wait for the next attempt, and which version it speaks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.reconnect import Backoff


@given(minimum=st.floats(0.01, 10), factor=st.floats(1, 1000), failures=st.integers(0, 200), seed=st.integers(0, 99))
def test_the_wait_is_within_its_limit_and_never_nothing(
    minimum: float, factor: float, failures: int, seed: int
) -> None:
    """At least a tenth of the minimum, at most minimum * 2**failures, and never above the maximum."""
    backoff = Backoff(minimum, minimum * factor, np.random.default_rng(seed))
    backoff.failures = failures
    assert minimum / 10 <= backoff.next() <= min(minimum * factor, minimum * 2.0**failures)
    assert backoff.failures == failures + 1
    assert minimum * factor / 2 <= backoff.long() <= minimum * factor


def test_the_jitter_is_full() -> None:
    """A fleet that lost its broker at once comes back evenly over the whole span, not in a wave."""
    waits = []
    for seed in range(2000):
        backoff = Backoff(1, 300, np.random.default_rng(seed))
        backoff.failures = 8
        waits.append(backoff.next())
    counts, _ = np.histogram(waits, bins=10, range=(0, 256))
    assert counts.min() > 140  # 200 are expected in each tenth, with a standard deviation of 13
    assert max(waits) <= 256


def test_the_limit_doubles_with_every_failure() -> None:
    """Means of many draws: half of the limit."""
    draws = np.array(
        [[b.next() for _ in range(5)] for b in (Backoff(1, 300, np.random.default_rng(s)) for s in range(4000))]
    )
    assert draws.mean(axis=0) == pytest.approx([0.505, 1, 2, 4, 8], rel=0.1)
