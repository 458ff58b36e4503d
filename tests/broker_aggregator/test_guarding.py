"""What lets a version pass: the margin, in the direction that is better; the median of a canary; settings in bounds."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_aggregator.guarding import Guard, chosen, judge_value, judge_words, read_guard
from fl_protocol.errors import ConfigError
from tests.support.fleet import Gateway

values = st.floats(-1e3, 1e3)
GUARD = Guard(margin=0.05)


def settings_of(guard: dict[str, str]) -> Guard | None:
    """A plan's guard, read."""
    return read_guard(replace(Gateway().start().task.plan, guard=guard))


def test_no_guard_is_none():
    """A plan without one is guarded by nothing; what is left out has a default."""
    assert read_guard(Gateway().start().task.plan) is None
    assert settings_of({"margin": "0.05"}) == GUARD


@pytest.mark.parametrize(
    ("guard", "said"),
    [
        ({}, "guard.margin is missing"),
        ({"canary": "0.1"}, "guard.margin is missing"),
        ({"margin": "much"}, "guard.margin is a number from 0.0 to 999999, not 'much'"),
        ({"margin": "0.1", "canary": "0.6"}, "guard.canary is a number from 0.0 to 0.5, not '0.6'"),
        ({"margin": "0.1", "reports": "0"}, "guard.reports is a whole number"),
        ({"margin": "0.1", "in_doubt": "shrug"}, "guard.in_doubt is one of promote, withhold"),
        ({"margin": "0.1", "marginn": "1"}, "guard has no setting 'marginn'"),
    ],
)
def test_impossible_settings_name_setting_and_value(guard, said):
    """And say what to write instead."""
    with pytest.raises(ConfigError, match=said) as caught:
        settings_of(guard)
    assert caught.value.hint


def test_a_fall_of_more_than_the_margin_is_too_much():
    """By hand: 0.83 was the best; 0.78 passes with 0.05, 0.77 does not. Of an error it is the other way round."""
    assert judge_value(0.79, [0.8, 0.83, 0.81], GUARD, "higher", "accuracy").good
    bad = judge_value(0.77, [0.8, 0.83, 0.81], GUARD, "higher", "accuracy")
    assert (bad.good, bad.why) == (False, "accuracy 0.7700 after 0.8300, margin 0.05")
    assert not judge_value(0.26, [0.2, 0.3], GUARD, "lower", "error").good
    assert judge_value(0.24, [0.2, 0.3], GUARD, "lower", "error").good


def test_only_the_last_versions_count():
    """A best that is longer ago than `against` versions is no longer asked for."""
    guard = Guard(margin=0.0, against=2)
    assert judge_value(0.5, [0.9, 0.4, 0.5], guard, "higher", "accuracy").good
    assert not judge_value(0.5, [0.4, 0.9, 0.5], guard, "higher", "accuracy").good


@given(st.lists(values, max_size=5), st.sampled_from(["higher", "lower"]))
def test_what_is_not_a_number_never_passes(recent, better):
    """Whatever came before, and where nothing did."""
    for value in (math.nan, math.inf, -math.inf):
        assert not judge_value(value, recent, GUARD, better, "m").good


@given(st.lists(st.tuples(values, values), min_size=1, max_size=9), st.data())
def test_a_minority_decides_nothing(pairs, data):
    """Less than half of the devices may say what they like: the median lies among the honest words."""
    words = {f"d{i}": now for i, (now, _) in enumerate(pairs)}
    before = {f"d{i}": then for i, (_, then) in enumerate(pairs)}
    falls = [then - now for now, then in pairs]
    for liar in list(words)[: (len(words) - 1) // 2]:
        words[liar] = data.draw(st.floats(-1e30, 1e30))
    good = judge_words(words, before, None, GUARD, "higher", "m").good
    assert good or max(falls) > GUARD.margin
    assert not good or min(falls) <= GUARD.margin


def test_words_are_compared_with_the_same_devices_last():
    """Devices of 0.9 and of 0.5 both got better: their mean says nothing of that. Without pairs, what was reported."""
    now, before = {"a": 0.55, "b": 0.6}, {"a": 0.5, "z": 0.9}
    assert judge_words(now, before, 0.9, GUARD, "higher", "m").good
    assert not judge_words(now, {}, 0.9, GUARD, "higher", "m").good
    assert judge_words(now, {}, None, GUARD, "higher", "m").good


@given(st.integers(1, 50), st.integers(0, 9), st.floats(0.01, 0.5))
def test_the_canary_is_its_share_of_the_fleet(count, version, share):
    """At least one device, never more than half and one; whatever the order in which they are named."""
    devices = [f"d{i}" for i in range(count)]
    found = chosen(devices, "fan", version, share)
    assert len(found) == math.ceil(share * count)
    assert found == chosen(reversed(devices), "fan", version, share)


def test_the_canary_moves_about():
    """In twenty versions a fifth of ten devices has been most of them."""
    devices = [f"d{i}" for i in range(10)]
    assert len({d for v in range(20) for d in chosen(devices, "fan", v, 0.2)}) >= 8
