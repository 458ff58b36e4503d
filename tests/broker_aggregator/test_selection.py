"""Who is chosen: in proportion to what they are worth, in any order the same, and everybody in turn."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_aggregator.habits import MAX_EXAMPLES, Habits, useful
from broker_aggregator.participation import CHOICES
from broker_aggregator.selection import FLOOR_EVERY, Candidate, choose, scores
from tests.support.fleet import make_update

ANY = [Candidate(f"d{i}") for i in range(4)]


def drawn(candidates: list[Candidate], by: str, times: int = 4000) -> Counter[str]:
    """How often each is the first choice, by chance alone."""
    rng = np.random.default_rng(0)
    return Counter(choose(candidates, by, 1, 0, rng)[0].device for _ in range(times))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("by", "change"),
    [
        ("balanced", {"availability": 0.25}),
        ("useful", {"usefulness": 1.0}),
        ("useful", {"seconds": 400.0}),
        ("fair", {"accepted": 3}),
    ],
)
def test_who_is_worth_less_is_asked_less(by, change):
    """A quarter as available, as useful, or 16 times slower (alpha = 1/2), or counted three times more: a quarter."""
    plain = {"usefulness": 4.0, "seconds": 25.0}
    others = [replace(c, **plain) for c in ANY[1:]]
    counts = drawn([replace(ANY[0], **{**plain, **change}), *others], by)
    share = counts["d0"] / counts["d1"]
    assert 0.18 < share < 0.33


def test_those_who_waited_longest_for_a_version_are_asked_more():
    """Staleness debt."""
    counts = drawn([replace(ANY[0], debt=10), *(replace(c, debt=1) for c in ANY[1:])], "balanced")
    assert counts["d0"] > 1.3 * max(counts[c.device] for c in ANY[1:])


def test_chance_knows_no_difference():
    """By random all are alike, whatever they did."""
    counts = drawn([replace(ANY[0], availability=0.01, accepted=100), *ANY[1:]], "random")
    assert all(900 < counts[c.device] < 1100 for c in ANY)


def test_an_absurd_usefulness_counts_as_the_best_of_the_others():
    """It is the device's own word: a liar gains nothing over the 90 % quantile."""
    honest = [replace(Candidate(f"d{i}"), usefulness=10.0) for i in range(20)]
    parts = scores([*honest, Candidate("liar", usefulness=1e30)])
    assert parts[-1].usefulness == parts[0].usefulness == 1.0


def test_a_loss_is_believed_within_bounds():
    """No number, a negative one: nothing is known; as many examples as the wire carries are not believed."""
    assert useful(make_update("d0", 1, 0, [0, 0, 0])) is None
    for loss in (float("nan"), float("inf"), -1.0):
        assert useful(make_update("d0", 1, 0, [0, 0, 0], metrics={"loss": loss})) is None
    assert useful(make_update("d0", 1, 0, [0, 0, 0], metrics={"train_loss": 0.5, "loss": 9.0})) == 50.0
    assert useful(make_update("d0", 1, 0, [0, 0, 0], metrics={"loss": 1.0}, num_examples=2**40)) == MAX_EXAMPLES


candidates = st.lists(
    st.builds(
        Candidate,
        st.text("abcdefgh", min_size=1, max_size=3),
        st.floats(0, 1),
        st.integers(0, 100),
        st.none() | st.floats(0, 1e8),
        st.none() | st.floats(0, 1e6),
        st.integers(0, 1000),
        st.integers(-1, 50),
    ),
    max_size=12,
    unique_by=lambda c: c.device,
)


@given(candidates, st.sampled_from(CHOICES), st.integers(0, 20), st.integers(51, 100), st.randoms())
def test_a_choice_depends_on_who_there_is_and_not_on_their_order(them, by, how_many, number, shuffled):
    """No device twice, as many as there are, each with its reason, the same for the same draws."""
    chosen = choose(them, by, how_many, number, np.random.default_rng(7))
    assert len({c.device for c in chosen}) == len(chosen) == min(how_many, len(them))
    assert all(c.why for c in chosen)
    other = list(them)
    shuffled.shuffle(other)
    assert choose(other, by, how_many, number, np.random.default_rng(7)) == chosen


@pytest.mark.parametrize("by", CHOICES)
def test_everybody_is_asked_again_some_time(by):
    """However little a device is worth: within 8 invitations for each device that there is."""
    habits = {f"d{i}": Habits(availability=0.0 if i else 1.0, accepted=1000 if i else 0) for i in range(10)}
    rng = np.random.default_rng(1)
    for number in range(FLOOR_EVERY * len(habits)):
        them = [Candidate(d, h.availability, 0, None, None, h.accepted, h.asked) for d, h in habits.items()]
        (choice,) = choose(them, by, 1, number, rng)
        habits[choice.device].asked = number
    assert all(h.asked >= 0 for h in habits.values())
