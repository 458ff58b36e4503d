"""One buffer in, one step and one release out: computed by hand, and held to its properties.

Each rule against its paper is in aggregation/.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_aggregator.aggregation import Context, UpdateMeta, UpdateSet
from broker_aggregator.aggregation.mean import WeightedMean
from broker_aggregator.aggregation.recipes import ALIASES, make_aggregator, make_server_optimizer
from broker_aggregator.releasing import Buffered, first_release, next_release
from broker_aggregator.staleness import Discount, staleness_discount
from fl_protocol.compression import encode_statistics
from fl_protocol.errors import ConfigError
from tests.broker_aggregator.aggregation.sets import PLAN
from tests.support.fleet import INITIAL, LAYOUT, make_update

RNG = np.random.default_rng(0)


def updates(*rows: tuple[float, int, int]) -> UpdateSet:
    """One-parameter updates as (delta, staleness, num_examples)."""
    meta = [UpdateMeta(f"d{i}", tau, n, 1, abs(d)) for i, (d, tau, n) in enumerate(rows)]
    return UpdateSet(meta, lambda i: np.array([rows[i][0]], np.float32), 1)


def mean(rho: float, exponent: float = 0.0) -> WeightedMean:
    return WeightedMean(rho, Discount(exponent=exponent))


def step(rule: WeightedMean, rows: UpdateSet) -> float:
    return float(rule.aggregate(rule.init(1), rows, Context(), RNG)[1][0])


def test_the_mean_weighs_by_examples():
    """rho = 1: (3 * 100 + 6 * 300) / 400; rho = 0: (3 + 6) / 2; rho = .5: (3 * 10 + 6 * sqrt 300) / (10 + sqrt 300)."""
    rows = updates((3, 0, 100), (6, 0, 300))
    assert step(mean(1), rows) == pytest.approx(5.25)
    assert step(mean(0), rows) == pytest.approx(4.5)
    assert step(mean(0.5), rows) == pytest.approx((30 + 6 * 300**0.5) / (10 + 300**0.5))


def test_nobody_counts_for_more_than_ten_ordinary_devices():
    """A million examples where others have 100 are taken for 1,000: (0 * 100 * 2 + 12 * 1000) / 1200."""
    assert step(mean(1), updates((0, 0, 100), (0, 0, 100), (12, 0, 10**6))) == pytest.approx(10)


def test_staleness_is_not_cancelled_when_all_are_stale():
    """s(3) = 1/2 at p = .5: three updates of 4, all three versions old, ask for 2 and not for 4."""
    assert staleness_discount(3, 0.5) == 0.5
    assert step(mean(0, 0.5), updates((4, 3, 1), (4, 3, 1), (4, 3, 1))) == pytest.approx(2)


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
    rule = mean(rho, 0.5)
    shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    largest = max(1.0, *(abs(r[0]) for r in rows))
    assert step(rule, updates(*rows)) == pytest.approx(step(rule, updates(*shuffled)), abs=1e-6 * largest)


@given(st.lists(st.tuples(st.floats(-1, 1, width=32), st.integers(0, 9), st.integers(1, 99)), min_size=1, max_size=9))
def test_factors_sum_to_one_at_most(rows):
    """No buffer moves the model further than its furthest update."""
    rule = mean(0.5, 0.5)
    rows = updates(*rows)
    assert 0 < sum(rule.factors(rows.meta)) <= 1 + 1e-9
    assert abs(step(rule, rows)) <= max(m.norm for m in rows.meta) * (1 + 1e-6)


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


def test_a_part_full_buffer_makes_a_part_of_any_rules_step():
    """b / K scales after the rule: the median of three is (2, 0, 0), three of four make 1.5 of it."""
    base = first_release(PLAN, LAYOUT, 0, INITIAL)
    used = [buffered(name, [x, 0, 0], [0.5, 1.5]) for name, x in (("a", 1), ("b", 2), ("c", 900))]
    plan = replace(PLAN, rule={"name": "median", "f": "1"})
    np.testing.assert_allclose(next_release(plan, LAYOUT, base, used).vector[:3], [1 + 1.5, 2, 3])
    tier = next_release(replace(plan, mode="synchronous", tiers=2), LAYOUT, base, used)
    np.testing.assert_allclose(tier.vector[:3], [1 + 1.5, 2, 3], err_msg="a tier's step is its part of the fleet's")
    whole = next_release(replace(plan, mode="synchronous"), LAYOUT, base, used)
    np.testing.assert_allclose(whole.vector[:3], [1 + 2, 2, 3])


@pytest.mark.parametrize(("origin", "moved"), [(10, 1.0), (5, 2 * 4**-0.25), (0, 2.0)])
def test_an_exponent_is_annealed_over_a_models_own_life(origin, moved):
    """From 1/2 to 0 in ten versions after `origin`; the update of 2 is three versions old, and the version is 10."""
    rule = {"name": "mean", "staleness_end": "0", "anneal": "10"}
    plan = replace(PLAN, buffer=1, origin=origin, rule=rule)
    base = first_release(plan, LAYOUT, 10, INITIAL)
    release = next_release(plan, LAYOUT, base, [buffered("a", [2, 0, 0], [0.5, 1.5])], staleness=[3])
    assert release.vector[0] - INITIAL[0] == pytest.approx(moved)


@pytest.mark.parametrize(("rule", "bounded"), [({"name": "median", "f": "1"}, True), (None, False)])
def test_a_liars_statistics_move_a_robust_model_by_a_few_honest_ranges_at_most(rule, bounded):
    """A million, and a million examples, where honest devices say 1 to 4: ten times their width is not gone beyond."""
    plan = replace(PLAN, mode="synchronous", rule=rule)
    base = first_release(plan, LAYOUT, 0, INITIAL)
    used = [buffered(f"d{i}", [0, 0, 0], [x, 2.0]) for i, x in enumerate([1.0, 2.0, 3.0, 4.0, 1e6])]
    used[4] = replace(used[4], update=replace(used[4].update, num_examples=10**6))
    found = float(next_release(plan, LAYOUT, base, used).vector[3])
    assert (1 <= found <= 34) == bounded


@given(
    st.lists(st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from(["mean", "robust", "bucketing+krum", "screen+centred-clipping", "bulyan"]),
)
@settings(deadline=None)
def test_making_a_release_again_gives_the_same_bits(deltas, name):
    """What replay rests on; also where a rule draws."""
    plan = replace(PLAN, rule={"name": name})
    base = first_release(plan, LAYOUT, 0, INITIAL)
    used = [buffered(f"d{i}", delta, [0.5, 1.5]) for i, delta in enumerate(deltas)]
    assert next_release(plan, LAYOUT, base, used).sha256 == next_release(plan, LAYOUT, base, used).sha256


def test_aliases_are_what_they_stand_for():
    """The same bits under both names."""
    base = first_release(PLAN, LAYOUT, 0, INITIAL)
    used = [buffered(f"d{i}", [i, 1, -i * i], [0.5, 1.5]) for i in range(5)]
    for alias, name in ALIASES.items():
        one, other = (next_release(replace(PLAN, rule={"name": n}), LAYOUT, base, used) for n in (alias, name))
        assert one.sha256 == other.sha256


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
