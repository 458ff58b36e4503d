"""The two ledgers held against each other: every lie of either side is found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.demo.ledgers import compare_ledgers

LIFE = "0123456789abcdef"


def stored(seq, verdict="accepted", disposal="counted", version=1, why="", device="fan-1"):
    """A row of the store."""
    row = {"device": device, "incarnation": LIFE, "seq": seq, "verdict": verdict}
    return {**row, "disposal": disposal, "version": version, "why": why}


def told(seq, verdict="accepted"):
    """A row of a device's own ledger."""
    return {"incarnation": LIFE, "seq": seq, "verdict": verdict}


def test_the_same_story_agrees():
    """Counted, quarantined with a reason, refused: all of it known to both."""
    store = [stored(1), stored(2, "stale", "", None), stored(3, disposal="quarantined", version=None, why="task ended")]
    agreement = compare_ledgers(store, {"fan-1": [told(1), told(2, "stale"), told(3)]})
    assert agreement.agree
    assert str(agreement) == "ledgers agree: 3 updates (1 counted, 1 quarantined)"
    assert agreement.disposals == {"counted": 1, "quarantined": 1}
    assert agreement.verdicts == {"accepted": 2, "stale": 1}


@pytest.mark.parametrize(
    ("store", "device", "word"),
    [
        ([], [told(1)], "does not know it"),
        ([stored(1), stored(1)], [told(1)], "2 times"),
        ([stored(1, "rejected", "", None)], [told(1)], "accepted here, rejected there"),
        ([stored(1, disposal="", version=None)], [told(1)], "its disposal is"),
        ([stored(1, "stale", "counted", 4)], [told(1, "stale")], "its disposal is"),
        ([stored(1, version=None)], [told(1)], "in version None"),
        ([stored(1, disposal="buffered", version=3)], [told(1)], "in version 3"),
        ([stored(1, disposal="quarantined", version=None)], [told(1)], "without a reason"),
        ([stored(1), stored(2)], [told(2)], "lost its verdict"),
        ([stored(1), stored(2), stored(3)], [told(1)], "lost its verdict"),
    ],
)
def test_a_contradiction_is_found_and_named(store, device, word):
    """Each way in which an update may be lost, doubled or misreported."""
    agreement = compare_ledgers(store, {"fan-1": device})
    assert not agreement.agree
    assert word in "; ".join(agreement.contradictions)
    assert "DISAGREE" in str(agreement)


def test_the_newest_update_may_be_unheard_of_on_its_device():
    """The gateway has recorded it, and the device stopped before the answer came: nothing is lost."""
    agreement = compare_ledgers([stored(1), stored(2)], {"fan-1": [told(1)]})
    assert agreement.agree
    assert (agreement.updates, agreement.unheard) == (1, 1)


def test_a_device_that_never_heard_anything_has_one_update_in_flight_at_most():
    """Also for a device whose ledger is empty."""
    assert compare_ledgers([stored(1)], {"fan-1": []}).agree
    assert not compare_ledgers([stored(1), stored(2)], {}).agree


rows = st.lists(st.sampled_from(["counted", "buffered", "stale", "rejected"]), max_size=30)


@given(rows, st.data())
def test_one_row_taken_from_the_store_is_always_missed(fates, data):
    """Property: whatever the history, a row that a device has and the store lost is a contradiction."""
    store = [
        stored(seq, "accepted", fate, 1 if fate == "counted" else None)
        if fate in ("counted", "buffered")
        else stored(seq, fate, "", None)
        for seq, fate in enumerate(fates)
    ]
    ledger = {"fan-1": [told(row["seq"], row["verdict"]) for row in store]}
    assert compare_ledgers(store, ledger).agree
    if store:
        del store[data.draw(st.integers(0, len(store) - 1))]
        assert not compare_ledgers(store, ledger).agree
