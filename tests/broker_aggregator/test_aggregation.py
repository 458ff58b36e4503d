"""One buffer in, one step out: computed by hand, and held to its properties."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_aggregator.aggregation import UpdateMeta, UpdateSet
from broker_aggregator.aggregation.mean import WeightedMean
from broker_aggregator.aggregation.recipes import make_aggregator, make_server_optimizer
from broker_aggregator.releasing import Buffered, first_release, next_release
from broker_aggregator.server_optimizer import SGD
from broker_aggregator.staleness import staleness_discount
from fl_protocol.compression import encode_statistics
from fl_protocol.errors import ConfigError
from fl_protocol.messages import Plan
from tests.support.fleet import INITIAL, LAYOUT, make_update

RNG = np.random.default_rng(0)


def updates(*rows: tuple[float, int, int]) -> UpdateSet:
    """One-parameter updates as (delta, staleness, num_examples)."""
    meta = [UpdateMeta(f"d{i}", tau, n, 1, abs(d)) for i, (d, tau, n) in enumerate(rows)]
    return UpdateSet(meta, lambda i: np.array([rows[i][0]], np.float32))


def step(rule: WeightedMean, rows: UpdateSet, share: float = 1.0) -> float:
    return float(rule.aggregate(rule.init(1), rows, share, RNG)[1].step[0])


def test_the_mean_weighs_by_examples():
    """rho = 1: (3 * 100 + 6 * 300) / 400; rho = 0: (3 + 6) / 2; rho = .5: (3 * 10 + 6 * sqrt 300) / (10 + sqrt 300)."""
    rows = updates((3, 0, 100), (6, 0, 300))
    assert step(WeightedMean(1, 0), rows) == pytest.approx(5.25)
    assert step(WeightedMean(0, 0), rows) == pytest.approx(4.5)
    assert step(WeightedMean(0.5, 0), rows) == pytest.approx((30 + 6 * 300**0.5) / (10 + 300**0.5))


def test_staleness_is_not_cancelled_when_all_are_stale():
    """s(3) = 1/2 at p = .5: three updates of 4, all three versions old, ask for 2 and not for 4."""
    assert staleness_discount(3, 0.5) == 0.5
    assert step(WeightedMean(0, 0.5), updates((4, 3, 1), (4, 3, 1), (4, 3, 1))) == pytest.approx(2)


def test_a_part_full_buffer_asks_for_a_part_of_the_step():
    """b / K = 2 / 8."""
    assert step(WeightedMean(0, 0), updates((4, 0, 1), (4, 0, 1)), share=0.25) == pytest.approx(1)


def test_an_empty_buffer_is_a_bug_of_ours():
    """There is no mean of nothing."""
    with pytest.raises(ValueError, match="without updates"):
        step(WeightedMean(), updates())


@given(
    rows=st.lists(
        st.tuples(st.floats(-100, 100, width=32), st.integers(0, 20), st.integers(1, 10**6)), min_size=1, max_size=20
    ),
    rho=st.sampled_from([0, 0.5, 1]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_the_order_of_updates_matters_to_no_more_than_1e_6(rows, rho, seed):
    """Permutation invariance, relative to the largest delta."""
    rule = WeightedMean(rho, 0.5)
    shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    largest = max(1.0, *(abs(r[0]) for r in rows))
    assert step(rule, updates(*rows)) == pytest.approx(step(rule, updates(*shuffled)), abs=1e-6 * largest)


@given(st.lists(st.tuples(st.floats(-1, 1, width=32), st.integers(0, 9), st.integers(1, 99)), min_size=1, max_size=9))
def test_shares_sum_to_one_at_most(rows):
    """No buffer moves the model further than its furthest update."""
    rule = WeightedMean(0.5, 0.5)
    rows = updates(*rows)
    shares = rule.shares(rows.meta, 1.0)
    assert 0 < sum(shares) <= 1 + 1e-9
    assert abs(step(rule, rows)) <= max(m.norm for m in rows.meta) * (1 + 1e-6)


def test_server_momentum_by_hand():
    """m1 = 1, m2 = .5 * 1 + 1 = 1.5; w = 0 + 2 * 1 + 2 * 1.5 = 5. The arguments stay as they are."""
    optimizer = SGD(learning_rate=2, momentum=0.5)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    params, state = optimizer.apply(zero, one, optimizer.init(1))
    params, state = optimizer.apply(params, one, state)
    assert params.tolist() == [5]
    assert state["momentum"].tolist() == [1.5]
    assert (one.tolist(), zero.tolist()) == ([1], [0])


PLAN = Plan(
    task="fan",
    revision=1,
    state="running",
    bundle_sha256="0" * 64,
    bundle_size=1,
    fingerprint=LAYOUT.fingerprint,
    buffer=4,
    example_exponent="0",
)


def buffered(device: str, delta: list[float], statistics: list[float], base: int = 0) -> Buffered:
    update = make_update(device, 1, base, delta, statistics=encode_statistics(np.array(statistics, np.float32)))
    return Buffered(update, float(np.linalg.norm(delta)), 1.0, 100)


def test_a_release_by_hand():
    """Two of four: half of the mean step, and half-way to the devices' mean statistics."""
    base = first_release(PLAN, LAYOUT, 0, INITIAL)
    release = next_release(PLAN, LAYOUT, base, [buffered("a", [1, 0, 2], [1, 2]), buffered("b", [3, 0, 0], [2, 3])])
    np.testing.assert_allclose(release.vector, [1 + 1, 2, 3 + 0.5, 1.0, 2.0])
    assert (release.version, release.share, release.staleness) == (1, 0.5, (0, 0))
    assert release.sha256 != base.sha256


@given(st.lists(st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3), min_size=1, max_size=6))
@settings(deadline=None)
def test_making_a_release_again_gives_the_same_bits(deltas):
    """What replay rests on."""
    base = first_release(PLAN, LAYOUT, 0, INITIAL)
    used = [buffered(f"d{i}", delta, [0.5, 1.5]) for i, delta in enumerate(deltas)]
    assert next_release(PLAN, LAYOUT, base, used).sha256 == next_release(PLAN, LAYOUT, base, used).sha256


@pytest.mark.parametrize(
    ("field", "value", "make"),
    [
        ("staleness_exponent", "9", make_aggregator),
        ("example_exponent", "-1", make_aggregator),
        ("server_learning_rate", "0", make_server_optimizer),
        ("server_momentum", "1", make_server_optimizer),
    ],
)
def test_impossible_settings_name_the_field(field, value, make):
    """With the range that would do."""
    with pytest.raises(ConfigError, match=rf"(?s){field} = {value}.*choose {field} from"):
        make(replace(PLAN, **{field: value}))
