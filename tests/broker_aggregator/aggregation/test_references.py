"""Each rule and wrapper equals a reference written from its paper, in float64 and loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_aggregator.aggregation import Context
from broker_aggregator.staleness import Discount
from tests.broker_aggregator.aggregation import references as ref
from tests.broker_aggregator.aggregation.sets import Drawn, gaussian, rule_of, set_of, step_of

SEEDS = st.integers(0, 2**32 - 1)
AGES = [0, 1, 3, 0, 7, 2, 11, 5, 0, 4, 1]
EXAMPLES = [10, 400, 90, 55, 3, 100_000, 70, 120, 300, 31, 64]
STEPS = [5, 5, 20, 1, 9, 300, 4, 7, 8, 2, 11]


def wide(rows):
    return [row.astype(np.float64) for row in rows]


def assert_step(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, ref.length(expected)))


@pytest.mark.parametrize("version", [0, 3, 40, 100, 250])
@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ({}, lambda tau, _: ref.polynomial(tau, 0.5)),
        ({"staleness": "constant"}, lambda *_: 1.0),
        ({"staleness": "hinge", "hinge_after": "2", "hinge_slope": "0.5"}, lambda tau, _: ref.hinge(tau, 2, 0.5)),
        ({"staleness": "hinge"}, lambda tau, _: ref.hinge(tau, 6, 10)),
        ({"staleness_end": "0"}, lambda tau, v: ref.annealed(tau, 0.5, 0, 100, v)),
        ({"staleness_end": "1.5", "anneal": "40"}, lambda tau, v: ref.annealed(tau, 0.5, 1.5, 40, v)),
        ({"staleness_end": "0", "anneal": "0"}, lambda *_: 1.0),
    ],
)
def test_the_mean_and_every_discount(settings, reference, version):
    """In the mean, and before a rule that knows no age."""
    rows = gaussian(1, 11)
    updates = set_of(rows, staleness=AGES, examples=EXAMPLES)
    discounts = [reference(tau, version) for tau in AGES]
    expected = ref.weighted_mean(wide(rows), EXAMPLES, discounts, 0)
    assert_step(step_of(rule_of("mean", **settings), updates, version=version), expected)
    shorter = [row * s for row, s in zip(wide(rows), discounts, strict=True)]
    assert_step(step_of(rule_of("median", **settings), updates, version=version), ref.median(shorter))
    assert_step(
        step_of(rule_of("arc+nnm+trimmed-mean", 3, **settings), updates, version=version),
        ref.trimmed_mean(ref.nnm(ref.arc(shorter, 3), 3), 3),
    )


@given(st.integers(0, 50), st.floats(0, 4), st.floats(0, 4), st.integers(0, 200), st.integers(0, 400))
def test_a_discount_never_lengthens(staleness, exponent, end, anneal, version):
    """0 < s <= 1, and 1 for what is fresh."""
    for discount in (
        Discount("polynomial", exponent, end, anneal),
        Discount("hinge", after=3, slope=exponent + 0.001),
        Discount("constant"),
    ):
        assert 0 < discount(staleness, version) <= 1
        assert discount(0, version) == 1


@given(SEEDS, st.integers(0, 3), st.integers(0, 3), st.integers(1, 9))
def test_rules_without_memory(seed, f, more, size):
    """Median, trimmed mean, Krum, Multi-Krum, Bulyan."""
    rows = gaussian(seed, 4 * f + 3 + more, size + 1)
    n, updates, exact = len(rows), set_of(rows), wide(rows)
    for name, expected in (
        ("median", ref.median(exact)),
        ("trimmed-mean", ref.trimmed_mean(exact, f)),
        ("krum", ref.multi_krum(exact, f, 1)),
        ("multi-krum", ref.multi_krum(exact, f, n - f)),
        ("bulyan", ref.bulyan(exact, f)),
    ):
        assert_step(step_of(rule_of(name, f), updates), expected)
    assert_step(step_of(rule_of("multi-krum", f, keep="2"), updates), ref.multi_krum(exact, f, 2))


@given(SEEDS, st.integers(1, 12), st.integers(1, 6))
@settings(max_examples=25)
def test_no_step_from_the_geometric_median_shortens_the_distances(seed, n, size):
    """Their sum is as small as a slow minimiser's, and no small move makes it smaller.

    Weiszfeld's iteration is slow where the median is one of the updates: 32 leave some 0.5 %, 200 a tenth of that.
    """
    rows = gaussian(seed, n, size)
    least = ref.sum_of_distances(wide(rows), ref.geometric_median(wide(rows)))
    roughly = step_of(rule_of("geometric-median"), set_of(rows)).astype(np.float64)
    assert ref.sum_of_distances(wide(rows), roughly) <= 1.02 * least + 1e-6
    found = step_of(rule_of("geometric-median", iterations="200"), set_of(rows)).astype(np.float64)
    total = ref.sum_of_distances(wide(rows), found)
    assert total <= 1.002 * least + 1e-6
    rng = np.random.default_rng(seed)
    for move in rng.normal(size=(20, size)) * 0.05:
        assert ref.sum_of_distances(wide(rows), found + move) >= total * (1 - 2e-3) - 1e-6


def test_the_geometric_median_of_a_triangle_by_hand():
    """Fermat's point of an equilateral triangle is its centre; with an angle of 120 degrees or more, that corner."""
    corner = np.sqrt(3) / 2
    even = set_of([[1, 0], [-0.5, corner], [-0.5, -corner]])
    np.testing.assert_allclose(step_of(rule_of("geometric-median"), even), [0, 0], atol=1e-6)
    flat = set_of([[0, 0], [1, 0.1], [-1, 0.1]])
    np.testing.assert_allclose(step_of(rule_of("geometric-median", iterations="200"), flat), [0, 0], atol=5e-3)


@pytest.mark.parametrize("settings", [{}, {"radius": "0.7"}, {"radius": "0.7", "iterations": "1"}])
def test_centred_clipping_goes_on_from_its_last_step(settings):
    """Four buffers, the centre carried from each to the next."""
    rule, size = rule_of("centred-clipping", **settings), 5
    state, centre = rule.init(size), np.zeros(size)
    radius = float(settings["radius"]) if settings else None
    for seed in range(4):
        rows = gaussian(seed, 7, size)
        state, step = rule.aggregate(state, set_of(rows), Context(), np.random.default_rng(0))
        centre = ref.centred_clipping(wide(rows), centre, radius, int(settings.get("iterations", 3)))
        assert_step(step, centre)


def test_fltrust_goes_by_the_newest_word_of_the_trusted_device():
    """Nothing moves before it has said one; afterwards the last one it said."""
    rule, size = rule_of("fltrust"), 4
    state, trusted = rule.init(size), None
    for seed, with_it in enumerate([False, True, False, True]):
        rows = gaussian(seed, 6, size)
        rows[3] *= -2
        devices = ["d0" if with_it else "d9", *(f"d{i}" for i in range(1, 6))]
        state, step = rule.aggregate(state, set_of(rows, devices=devices), Context(), np.random.default_rng(0))
        if with_it:
            trusted = rows[0].astype(np.float64)
        assert_step(step, np.zeros(size) if trusted is None else ref.fltrust(wide(rows), trusted))


@given(SEEDS, st.integers(0, 4), st.integers(0, 4))
def test_wrappers_before_the_median(seed, f, more):
    """ARC, NNM, near, FedNova, clipping to the median norm and to a fixed one."""
    rows = gaussian(seed, 2 * f + 1 + more)
    n, exact = len(rows), wide(rows)
    steps = (STEPS * 2)[:n]
    updates = set_of(rows, steps=steps)
    middle = float(np.median([ref.length(row) for row in exact]))
    assert_step(step_of(rule_of("arc+median", f), updates), ref.median(ref.arc(exact, f)))
    assert_step(step_of(rule_of("nnm+median", f), updates), ref.median(ref.nnm(exact, f)))
    assert_step(step_of(rule_of("nova+median", f), updates), ref.median(ref.fednova(exact, steps)))
    assert_step(step_of(rule_of("clip+median", f), updates), ref.median(ref.clip_to(exact, middle)))
    fixed = step_of(rule_of("clip+median", f, clip="fixed", clip_norm="1.3"), updates)
    assert_step(fixed, ref.median(ref.clip_to(exact, 1.3)))


@given(SEEDS, st.integers(1, 12))
def test_clipping_before_the_mean(seed, n):
    """FedClipping: lengths are bounded first, then weighed by examples and age."""
    rows = gaussian(seed, n, spread=2)
    examples, ages = (EXAMPLES * 2)[:n], (AGES * 2)[:n]
    middle = float(np.median([ref.length(row.astype(np.float64)) for row in rows]))
    expected = ref.weighted_mean(ref.clip_to(wide(rows), middle), examples, [ref.polynomial(t, 0.5) for t in ages], 0)
    assert_step(step_of(rule_of("clip+mean"), set_of(rows, staleness=ages, examples=examples)), expected)


def test_near_keeps_what_lies_near():
    """Of eleven, those within `reach` median distances of the geometric median."""
    for seed in range(20):
        rows = gaussian(seed, 11, 3, spread=1)
        rows[:2] *= 3
        assert_step(step_of(rule_of("near+mean", 2), set_of(rows)), ref.mean_of(ref.near(wide(rows), 2)[0]))
        found = step_of(rule_of("near+median", 2, reach="1.3"), set_of(rows))
        assert_step(found, ref.median(ref.near(wide(rows), 1.3)[0]))


def test_near_remembers_what_was_ordinary():
    """When most have little left to say, the few that still learn lie far off; what was near before stays near."""
    size, seen = 3, 0.0
    for memory in (1.0, 0.5, 0.0):
        rule = rule_of("near+mean", 2, memory=str(memory))
        state, seen = rule.init(size), 0.0
        for seed, spread in enumerate((1.0, 0.2, 0.05, 0.05)):
            rows = gaussian(seed, 11, size, spread=spread)
            rows[0] *= 8
            kept, seen = ref.near(wide(rows), 2, memory * seen)
            state, step = rule.aggregate(state, set_of(rows), Context(), np.random.default_rng(0))
            assert_step(step, ref.mean_of(kept))
            assert np.isclose(state["near.ordinary"][0], seen, rtol=1e-3)


def test_near_remembers_who_was_left_out():
    """How many updates of a device were seen, and how many of those left out."""
    rule, size = rule_of("near+mean"), 4
    state = rule.init(size)
    for seed in range(3):
        rows = gaussian(seed, 7, size, spread=0.1)
        rows[2] *= -50
        state, _ = rule.aggregate(state, set_of(rows), Context(), np.random.default_rng(0))
    assert state["near.device/d2"].tolist() == [3, 3]
    assert state["near.device/d1"].tolist()[0] == 3


def test_adaptive_clipping_follows_the_quantile():
    """It begins at the first buffer's median norm; each buffer is clipped at the bound that the last ones made."""
    rule, size, bound = rule_of("clip+mean", clip="quantile", quantile="0.8"), 5, None
    state = rule.init(size)
    for seed in range(6):
        rows = gaussian(seed, 9, size, spread=2)
        exact = wide(rows)
        bound = float(np.median([ref.length(row) for row in exact])) if bound is None else bound
        state, step = rule.aggregate(state, set_of(rows), Context(), np.random.default_rng(0))
        assert_step(step, ref.mean_of(ref.clip_to(exact, bound)))
        bound = ref.next_bound(bound, exact, 0.8)
        assert float(state["clip.bound"][0]) == pytest.approx(bound, rel=1e-6)


@given(SEEDS, st.integers(2, 5), st.permutations(list(range(13))))
def test_bucketing_before_krum(seed, size, order):
    """Averages of what a known draw puts together; the last bucket may hold fewer."""
    rows = gaussian(seed, 13)
    merged = ref.buckets(wide(rows), order, size)
    found = step_of(rule_of("bucketing+krum", 1, bucket=str(size)), set_of(rows), rng=Drawn(order))
    assert_step(found, ref.multi_krum(merged, 1, 1))


@given(SEEDS, st.integers(0, 4), st.integers(0, 3))
def test_a_chain_of_three(seed, f, more):
    """ARC, then NNM, then the trimmed mean, in this order, with outliers among the rows."""
    rows = gaussian(seed, 2 * f + 1 + more)
    rows[:f] *= -7
    expected = ref.trimmed_mean(ref.nnm(ref.arc(wide(rows), f), f), f)
    assert_step(step_of(rule_of("arc+nnm+trimmed-mean", f), set_of(rows)), expected)


def test_screening_over_many_buffers():
    """An attacker that always goes the other way is left out from its seventh suspect update on; others come and go."""
    size, f = 6, 1
    screen, rule = ref.Screen(size), rule_of("screen+arc+nnm+trimmed-mean", f)
    state, left_out = rule.init(size), 0
    for seed in range(14):
        rows = np.random.default_rng(seed).normal(size=(6, size)).astype(np.float32) * 0.4 + 1
        rows[0] *= -3
        devices = ["bad", *(f"d{(seed + i) % 9}" for i in range(5))]
        kept = screen.kept(wide(rows), devices)
        left_out += len(kept) < len(rows)
        expected = ref.trimmed_mean(ref.nnm(ref.arc(kept, f), f), f)
        screen.moved(expected)
        state, step = rule.aggregate(state, set_of(rows, devices=devices), Context(), np.random.default_rng(0))
        assert_step(step, expected)
    assert left_out == 14 - 7
    assert float(state["screen.device/bad"][0]) == pytest.approx(screen.names["bad"], rel=1e-5)


def test_distances_of_updates_that_are_nearly_equal():
    """They are differences of products: to a thousandth of their length, differences of 1e-5 of it are still right."""
    rng = np.random.default_rng(3)
    common = rng.normal(size=5000)
    rows = (common + 1e-5 * rng.normal(size=(6, 5000))).astype(np.float32)
    found = np.sqrt(set_of(rows).squared_distances())
    expected = [[ref.distance(a, b) for b in wide(rows)] for a in wide(rows)]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-12)
