"""What holds of every rule: a new one is tested by being registered in `recipes.RULES` or composed in sets.py."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker_aggregator.aggregation import Context, UpdateSet
from broker_aggregator.aggregation.recipes import ALIASES, RULES, WRAPPERS, make_aggregator
from tests.broker_aggregator.aggregation.sets import (
    CHAINS,
    COMPOSED,
    ROBUST,
    TRUSTED,
    Drawn,
    enough,
    gaussian,
    plan_of,
    rule_of,
    set_of,
    step_of,
)

SEEDS = st.integers(0, 2**32 - 1)
FAR = 1e6  # times the honest updates' lengths
# Lengths are measured from zero: a device that learnt nothing sent no step, wherever the others went.
FROM_ZERO = {"arc", "clip", "screen", "fltrust", "centred-clipping"}


def words(name):
    return set(ALIASES.get(name, name).split("+"))


def close(found, expected, scale, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(scale, 1e-6))


def lengths(rows):
    return float(np.linalg.norm(rows.astype(np.float64), axis=1).max())


def test_every_wrapper_is_in_a_chain():
    """What is registered is tried."""
    assert set(WRAPPERS) <= {word for name in COMPOSED for word in words(name)}
    assert set(RULES) <= set(CHAINS)


@pytest.mark.parametrize("name", CHAINS)
@given(seed=SEEDS, more=st.integers(0, 6), f=st.integers(1, 3))
@settings(max_examples=30)
def test_the_order_of_the_updates_does_not_matter(name, seed, more, f):
    """To 1e-5 of the longest. Where buckets are drawn, the draw is turned with the updates."""
    rows = gaussian(seed, enough(name, f) + more)
    n, rng = len(rows), np.random.default_rng(seed)
    order, draw = rng.permutation(n), rng.permutation(n)
    staleness = [int(x) for x in rng.integers(0, 9, n)]
    steps = [int(x) for x in rng.integers(1, 99, n)]
    examples = [int(x) for x in rng.integers(1, 9999, n)]
    devices = [f"d{i}" for i in range(n)]

    def turned(values):
        return [values[i] for i in order]

    rule = rule_of(name, f)
    one = set_of(rows, devices=devices, staleness=staleness, steps=steps, examples=examples)
    other = set_of(
        rows[order],
        devices=turned(devices),
        staleness=turned(staleness),
        steps=turned(steps),
        examples=turned(examples),
    )
    expected = step_of(rule, one, rng=Drawn(draw))
    close(step_of(rule, other, rng=Drawn(np.argsort(order)[draw])), expected, lengths(rows))


@pytest.mark.parametrize("name", CHAINS)
@given(seed=SEEDS, f=st.integers(1, 3), times=st.floats(1e-3, 1e3))
@settings(max_examples=20)
def test_longer_updates_make_a_longer_step(name, seed, f, times):
    """Twice the updates, twice the step: no rule has a length of its own, but for `clip = fixed` and `radius`."""
    rows = gaussian(seed, enough(name, f) + 1)
    rule = rule_of(name, f)
    expected = step_of(rule, set_of(rows)).astype(np.float64) * np.float32(times)
    close(step_of(rule, set_of(rows * np.float32(times))), expected, times * lengths(rows))


@pytest.mark.parametrize("name", [name for name in CHAINS if not FROM_ZERO & words(name)])
@given(seed=SEEDS, f=st.integers(1, 3), far=st.floats(0.1, 100))
@settings(max_examples=20)
def test_what_all_have_in_common_is_the_steps(name, seed, f, far):
    """The same vector added to all fresh updates is added to the step; not where lengths are measured from zero."""
    rows = gaussian(seed, enough(name, f) + 1)
    move = (np.random.default_rng(seed + 1).normal(size=rows.shape[1]) * far).astype(np.float32)
    rule = rule_of(name, f)
    expected = step_of(rule, set_of(rows)).astype(np.float64) + move
    close(step_of(rule, set_of(rows + move)), expected, lengths(rows + move))


@given(seed=SEEDS, far=st.floats(0.1, 10))
def test_centred_clipping_moves_with_its_centre(seed, far):
    """Translated updates around a translated centre give a translated step."""
    rows = gaussian(seed, 7)
    move = (np.random.default_rng(seed + 1).normal(size=rows.shape[1]) * far).astype(np.float32)
    rule = rule_of("centred-clipping")
    ((name, zero),) = rule.init(rows.shape[1]).items()
    expected = step_of(rule, set_of(rows)) + move
    close(step_of(rule, set_of(rows + move), state={name: zero + move}), expected, lengths(rows + move))


def attacked(seed, n, f, how):
    """Honest rows, and all with f attackers at random places among them."""
    rows = gaussian(seed, n)
    rng = np.random.default_rng(seed)
    bad = sorted(rng.choice(n, f, replace=False).tolist())
    if how == "scattered":
        rows[bad] = rng.normal(size=(f, rows.shape[1])) * FAR
    elif how == "together":
        rows[bad] = rng.normal(size=rows.shape[1]) * FAR
    elif how == "backwards":
        rows[bad] = -FAR * rows.mean(axis=0)
    else:  # each ten times further than the one before, so that none is alone in its distance
        rows[bad] = rng.normal(size=rows.shape[1]) * np.logspace(0, 6, f)[:, None]
    return np.delete(rows, bad, axis=0), rows


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("how", ["scattered", "together", "backwards", "in a line"])
@given(seed=SEEDS, f=st.integers(1, 10), more=st.integers(0, 5))
@example(seed=0, f=10, more=0)
@settings(max_examples=15)
def test_f_attackers_draw_the_step_no_further_than_honest_devices_go(name, how, seed, f, more):
    """However far they go themselves: the step stays within a few of the longest honest update's lengths."""
    honest, rows = attacked(seed, enough(name, f) + more, f, how)
    devices = [f"d{i + 1}" for i in range(len(rows))]
    step = step_of(rule_of(name, f), set_of(rows, devices=devices)).astype(np.float64)
    assert np.linalg.norm(step - honest.mean(axis=0)) <= 4 * lengths(honest)


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("f", [1, 3])
def test_more_attackers_than_that_have_the_step(name, f):
    """n - f of them in one place: now they are the many, and the rule follows them. What it is told cannot save it."""
    n = enough(name, f)
    rows = gaussian(f, n)
    rows[f:] = FAR
    # Averages of buckets that each hold an attacker: none is left alone with honest company.
    draw = Drawn(np.arange(n))
    assert np.linalg.norm(step_of(rule_of(name, f), set_of(rows), rng=draw)) > FAR / 100


@pytest.mark.parametrize("name", ROBUST)
def test_what_a_device_says_of_its_examples_counts_for_nothing(name):
    """Behind a wrapper that stands attackers even the mean counts all alike: to claim many is free."""
    rows, n = gaussian(1, enough(name, 2) + 1), enough(name, 2) + 1
    rule = make_aggregator(replace(plan_of(name, 2), example_exponent="0.5"))
    claims = [2**40 if i < 2 else 10 for i in range(n)]
    assert np.array_equal(step_of(rule, set_of(rows, examples=claims)), step_of(rule, set_of(rows)))


def test_the_mean_stands_nobody():
    """One of a hundred is enough."""
    rows = gaussian(0, 100)
    rows[7] = -FAR
    assert np.linalg.norm(step_of(rule_of("mean"), set_of(rows))) > 1000


@pytest.mark.parametrize("name", CHAINS)
@given(seed=SEEDS, n=st.integers(1, 12), f=st.integers(0, 3), exponent=st.integers(-20, 15))
@settings(max_examples=20)
def test_equal_updates_are_the_step(name, seed, n, f, exponent):
    """Any number of them, of any length, more or fewer than the rule asks for; one alone too."""
    row = gaussian(seed, 1)[0] * np.float32(10.0**exponent)
    step = step_of(rule_of(name, f), set_of(np.tile(row, (n, 1))))
    np.testing.assert_allclose(step, row, rtol=1e-5, atol=1e-5 * float(np.abs(row).max()))


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_nothing_learnt_is_no_step(name, n):
    """Updates of zeros give zeros, and no NaN; a few among others do no harm."""
    assert not step_of(rule_of(name), set_of(np.zeros((n, 4)))).any()
    rows = gaussian(1, n, 4)
    rows[: n // 2] = 0
    assert np.isfinite(step_of(rule_of(name), set_of(rows))).all()


@pytest.mark.parametrize("name", CHAINS)
@given(seed=SEEDS, n=st.integers(1, 6), f=st.integers(0, 4))
@settings(max_examples=20)
def test_few_updates_do(name, seed, n, f):
    """A deadline may find fewer than the rule asks for: the step is finite, and about as long as they are.

    Medians of each coordinate may together be longer than any update, by the root of the size at most.
    """
    rows = gaussian(seed, n)
    step = step_of(rule_of(name, f), set_of(rows))
    assert np.linalg.norm(step) <= lengths(rows) * rows.shape[1] ** 0.5 * (1 + 1e-5)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("width", [1, 3, 7])
def test_the_size_of_a_block_does_not_matter(name, width):
    """Many blocks of few coordinates, or all in one."""
    rows = gaussian(5, 13, 23)
    staleness = [i % 4 for i in range(13)]
    whole = step_of(rule_of(name, 2), set_of(rows, staleness=staleness))
    parts = step_of(rule_of(name, 2), set_of(rows, staleness=staleness, block_bytes=4 * 13 * width))
    close(parts, whole, lengths(rows), 1e-6)


@pytest.mark.parametrize("name", CHAINS)
def test_arguments_stay_as_they_are_and_give_the_same_bits_again(name):
    """Neither rows nor memory are written to (`set_of` forbids it), and no call leaves anything behind."""
    rule, size = rule_of(name, 2), 6
    state = rule.init(size)
    for seed in range(3):
        for value in state.values():
            value.setflags(write=False)
        before = {key: value.tobytes() for key, value in state.items()}
        updates = set_of(gaussian(seed, 13, size))
        found = [rule.aggregate(state, updates, Context(seed), np.random.default_rng(seed)) for _ in range(2)]
        assert found[0][1].tobytes() == found[1][1].tobytes()
        assert {k: v.tobytes() for k, v in found[0][0].items()} == {k: v.tobytes() for k, v in found[1][0].items()}
        assert {key: value.tobytes() for key, value in state.items()} == before
        state, step = found[0]
        assert step.dtype == np.float32
        assert step.shape == (size,)
        assert all(value.dtype == np.float32 for value in state.values())


@pytest.mark.parametrize("name", CHAINS)
def test_a_memory_keeps_to_the_names_that_it_began_with(name):
    """Others would be dropped at the next release; a name that ends with a slash stands for many."""
    rule = rule_of(name)
    known = rule.init(6)
    state, _ = rule.aggregate(known, set_of(gaussian(0, 9)), Context(), np.random.default_rng(0))
    groups = tuple(key for key in known if key.endswith("/"))
    assert all(key in known or key.startswith(groups) for key in state)


@pytest.mark.parametrize("name", ["screen+mean", "screen+arc+nnm+trimmed-mean"])
def test_a_reputation_does_not_leave_a_buffer_empty(name):
    """Half of a buffer goes on, whatever is thought of all of them."""
    rule, size = rule_of(name), 4
    state = dict(rule.init(size))
    state["screen.direction"] = np.ones(size, np.float32)
    for _ in range(20):
        state, step = rule.aggregate(state, set_of(-np.ones((5, size))), Context(), np.random.default_rng(0))
        assert np.isfinite(step).all()
    assert np.linalg.norm(step) > 0


def test_rows_made_of_rows():
    """Scaled, chosen, mixed and scaled again: what is computed of them is what a plain matrix gives."""
    rows = gaussian(4, 5, 7).astype(np.float64)
    rng = np.random.default_rng(4)
    one, mix, two, three = rng.random(5), rng.random((3, 4)), rng.random(3), rng.random(3)
    updates = set_of(rows).scaled(one).scaled(one).chosen([4, 1, 0, 2])
    updates = updates.mixed(mix, updates.meta[:3]).scaled(two)
    expected = two[:, None] * (mix @ (rows * one[:, None] ** 2)[[4, 1, 0, 2]])
    vector = rng.normal(size=7).astype(np.float32)
    np.testing.assert_allclose(updates.gram(), expected @ expected.T, rtol=1e-6)
    np.testing.assert_allclose(updates.norms(), np.linalg.norm(expected, axis=1), rtol=1e-6)
    np.testing.assert_allclose(updates.products(vector), expected @ vector, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(updates.weighted_sum(three), three @ expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(updates.by_coordinates(lambda block: block[2]), expected[2], rtol=1e-5, atol=1e-6)
    scaled = set_of(rows).scaled(one)
    np.testing.assert_allclose(scaled.gram(), (rows * one[:, None]) @ (rows * one[:, None]).T, rtol=1e-6)
    np.testing.assert_allclose(scaled.products(vector), one * (rows @ vector), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scaled.by_coordinates(lambda b: b[3]), one[3] * rows[3], rtol=1e-6)
    for wrong in (lambda: scaled.scaled(np.ones(4)), lambda: scaled.mixed(np.ones((2, 4)), scaled.meta[:2])):
        with pytest.raises(ValueError, match="rows"):
            wrong()


def test_a_buffer_without_updates_is_a_bug_of_ours():
    """There is no step of nothing."""
    with pytest.raises(ValueError, match="without updates"):
        UpdateSet([], lambda _: np.zeros(1, np.float32), 1)


def test_the_trusted_device_is_one_of_the_buffer():
    """What FLTrust goes by in these tests."""
    assert plan_of("fltrust").rule["trusted"] == TRUSTED == set_of(gaussian(0, 2)).meta[0].device
