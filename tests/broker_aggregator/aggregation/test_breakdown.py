"""How many attackers a buffer may hold, and what a plan must therefore say."""

import re
from dataclasses import replace
from math import comb

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from broker_aggregator.aggregation import breakdown
from broker_aggregator.aggregation.recipes import RULES, least_updates, make_aggregator, settled, tolerated
from fl_protocol.errors import ConfigError
from tests.broker_aggregator.aggregation import references as ref
from tests.broker_aggregator.aggregation.sets import COMPOSED, PLAN, stands_some
from tests.support.fleet import Gateway, tiny_bundle


def plan(name, buffer=8, tiers=None, **rule):
    return replace(PLAN, buffer=buffer, tiers=tiers, rule={"name": name, **rule})


@given(st.integers(1, 11), st.data(), st.floats(0, 0.49))
@settings(max_examples=60)
def test_the_chance_is_that_of_counting_all_buffers(num_devices, data, share):
    """Hypergeometric; m is the nearest whole number of N times the share."""
    buffer = data.draw(st.integers(1, num_devices))
    hostile = breakdown.attackers_among(num_devices, share)
    assert abs(hostile - share * num_devices) <= 0.5 + 1e-6
    for f in range(buffer + 1):
        exact = ref.chance_of_more(f, buffer, num_devices, hostile)
        assert breakdown.chance_of_more(f, buffer, num_devices, share) == pytest.approx(exact, abs=1e-12)


@given(st.integers(1, 2000), st.data(), st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.3, 0.49]))
@settings(max_examples=40)
def test_large_fleets_by_whole_numbers(num_devices, data, share):
    """Against binomial coefficients without rounding."""
    buffer = data.draw(st.integers(1, min(60, num_devices)))
    m, f = breakdown.attackers_among(num_devices, share), data.draw(st.integers(0, buffer))
    ways = sum(comb(m, x) * comb(num_devices - m, buffer - x) for x in range(f + 1, buffer + 1))
    exact = ways / comb(num_devices, buffer)
    assert breakdown.chance_of_more(f, buffer, num_devices, share) == pytest.approx(exact, rel=1e-6, abs=1e-12)


def test_the_chance_is_what_drawing_finds():
    """10,000 buffers of 12 out of 40 devices, 8 of them hostile."""
    rng = np.random.default_rng(0)
    found = rng.hypergeometric(8, 32, 12, size=10_000)
    for f in range(6):
        assert breakdown.chance_of_more(f, 12, 40, 0.2) == pytest.approx(float(np.mean(found > f)), abs=0.015)


@given(st.integers(1, 300), st.data(), st.floats(0, 0.49))
def test_the_declared_f_is_the_least_that_does(num_devices, data, share):
    """P(X > f) < 1 %, and P(X > f - 1) is not."""
    buffer = data.draw(st.integers(1, num_devices))
    f = breakdown.declared_f(buffer, num_devices, share)
    assert breakdown.chance_of_more(f, buffer, num_devices, share) < 0.01
    assert f == 0 or breakdown.chance_of_more(f - 1, buffer, num_devices, share) >= 0.01


CHAINS = [name for name in (*RULES, *COMPOSED) if stands_some(name)]


@given(
    st.sampled_from(CHAINS),
    st.integers(1, 40),
    st.integers(0, 200),
    st.sampled_from(["0", "0.1", "0.2", "0.3", "0.45"]),
    st.sampled_from([None, 2, 3]),
)
@settings(max_examples=150)
def test_a_refusal_names_a_buffer_that_is_then_accepted(name, buffer, num_devices, attackers, tiers):
    """And what is accepted stands what it must, with as many updates as it waits for."""
    wanted = plan(name, buffer, tiers, attackers=attackers)
    try:
        found = settled(wanted, num_devices)
    except ConfigError as refused:
        other = re.search(r"buffer = (\d+) with f = (\d+) would do", str(refused))
        assume(other)
        wanted = replace(wanted, buffer=int(other[1]))
        assert wanted.buffer > buffer
        found = settled(wanted, num_devices)
        assert found.rule["f"] == other[2]
    assert found == replace(wanted, rule={**wanted.rule, "f": found.rule["f"]})
    f, groups = tolerated(found), tiers or 1
    each = -(-found.buffer // groups)
    assert least_updates(found) <= each
    assert breakdown.chance_of_more(f, each, max(each, num_devices // groups), float(attackers)) < 0.01
    assert settled(found, num_devices) == found
    make_aggregator(found)


@pytest.mark.parametrize(
    ("wanted", "num_devices", "said"),
    [
        (plan("krum", 4, attackers="0.2"), 40, r"buffer = 4 of 40 devices, 8 of them hostile.*buffer = \d+ with f ="),
        (plan("median", 8, attackers="0.45"), 8, "no buffer of this fleet would do"),
        (plan("median", 9, f="1", attackers="0.2"), 20, r"more than 1 of them with a chance of 62.5%"),
        (plan("median", 9, f="1", attackers="0.2"), 20, r"buffer = 9 with f = 4 would do"),
        (
            plan("bucketing+krum", 12, attackers="0.1"),
            50,
            "may hold 3 of them, and stands as many of 9 buckets or more",
        ),
        (plan("mean", 8, f="1"), 20, "stands no attacker"),
        (plan("clip+mean", 8, attackers="0.2"), 20, "stands no attacker"),
    ],
)
def test_a_refusal_says_what_would_do(wanted, num_devices, said):
    """K, N, the hostile ones, the chance, and the way out."""
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        settled(wanted, num_devices)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"name": "madian"}, "there is no rule 'madian'.*median"),
        ({"name": "arcc+median"}, "there is no wrapper 'arcc'.*arc"),
        ({"name": "clip+clip+mean"}, "says clip twice"),
        ({"name": "bucketing+screen+median"}, "say screen before it"),
        ({"name": "nnm+near+median"}, "say near before it"),
        ({"name": "bucketing+fltrust", "trusted": "a"}, "leave bucketing out"),
        ({"name": "nnm+mean"}, "no robust rule for nnm"),
        ({"name": "fltrust"}, "trusted is missing"),
        ({"name": "median", "keep": "3"}, "has no parameter 'keep'"),
        ({"name": "clip+mean", "clip_norm": "2"}, "has no parameter 'clip_norm'"),
        ({"name": "clip+mean", "clip": "fixed", "clip_norm": "0"}, "clip_norm is a number from"),
        ({"name": "mean", "hinge_after": "3"}, "has no parameter 'hinge_after'"),
        ({"name": "mean", "anneal": "3"}, "has no parameter 'anneal'"),
        ({"name": "centred-clipping", "iterations": "11"}, "iterations is a whole number from 1 to 10"),
        ({"name": "median", "attackers": "0.5"}, "attackers is a number from 0.0 to 0.49"),
        ({"name": "multi-krum", "f": "-1"}, "f is a whole number"),
    ],
)
def test_settings_that_cannot_be_are_refused(rule, said):
    """With the word that is wrong, and those that would do."""
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        make_aggregator(replace(PLAN, rule=rule))


def test_buckets_count_as_rows():
    """f = 1 of Krum needs five buckets of two: nine updates make five."""
    assert least_updates(plan("bucketing+krum", f="1")) == 9
    assert least_updates(plan("krum", f="1")) == 5
    assert least_updates(plan("mean")) == 1


def test_tiers_are_fleets_of_their_own():
    """Two tiers of ten: each fills half of the buffer from half of the fleet."""
    whole, halves = settled(plan("median", 12), 10), settled(plan("median", 24, tiers=2), 20)
    assert whole.rule["f"] == halves.rule["f"]


def test_a_large_fleet_is_answered_at_once():
    """20,000 devices, of which no buffer would do for Bulyan, and a large one for the median."""
    with pytest.raises(ConfigError, match="no buffer of this fleet"):
        settled(plan("bulyan", 8, attackers="0.26"), 20_000)
    with pytest.raises(ConfigError, match=r"buffer = \d+ with f"):
        settled(plan("median", 8, attackers="0.45"), 20_000)


def test_creating_a_task_writes_f_into_its_plan():
    """As the gateway's answer and every replay will find it; a fleet too hostile is refused before anything is made."""
    g = Gateway().add(*(f"fan-{i}" for i in range(20)))
    g.start(buffer=10, rule={"name": "robust", "attackers": "0.1"})
    assert g.task.plan.rule == {"name": "robust", "attackers": "0.1", "f": "2"}
    answer = g.ask("task-create", tiny_bundle(), task="other", plan={"rule": {"name": "bulyan", "attackers": "0.3"}})
    assert answer.status == "failed"
    assert "rule bulyan with buffer = 8 of 20 devices, 6 of them hostile" in answer.message
    assert "other" not in g.coordinator.tasks
