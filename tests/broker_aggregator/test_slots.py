"""The lease book: one slot a device, over in time whatever becomes of its holder."""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from broker_aggregator.slots import GONE_S, Lease, LeaseBook


def lease(device: str, ends_at: float, tier: int = 0) -> Lease:
    return Lease(device, f"0-{device}", 0, 0.0, ends_at, tier)


def test_a_lease_is_over_at_its_end():
    """Not before; and then it is free."""
    book = LeaseBook()
    book.give(lease("a", 10.0))
    assert book.expire(9.9) == []
    assert [over.device for over in book.expire(10.0)] == ["a"]
    assert len(book) == 0


def test_who_is_gone_has_a_short_grace():
    """A device that comes back within it has its slot as before; else the slot is free."""
    book = LeaseBook()
    book.give(lease("a", 100.0))
    book.is_there("a", there=False, now=5.0)
    book.is_there("a", there=True, now=5.0 + GONE_S / 2)
    assert book.expire(50.0) == []
    book.is_there("a", there=False, now=60.0)
    book.is_there("a", there=False, now=69.0)  # said again: the grace is not longer for it
    assert [over.device for over in book.expire(60.0 + GONE_S)] == ["a"]


def test_an_invitation_that_nobody_answers_is_over_soon():
    """An accepted one lasts as long as it was told; only then a lease that ended was too short."""
    book = LeaseBook()
    for device in "ab":
        book.give(replace(lease(device, 100.0), answer_by=10.0))
    book.accept("a")
    book.accept("nobody")
    (silent,) = book.expire(10.0)
    (slow,) = book.expire(100.0)
    assert (silent.device, silent.was_alive, slow.device, slow.was_alive) == ("b", False, "a", True)


def test_slots_are_counted_by_tier():
    """Each tier has a cohort of its own."""
    book = LeaseBook()
    for device, tier in (("a", 0), ("b", 1), ("c", 1)):
        book.give(lease(device, 10.0, tier))
    assert [book.num_in(tier) for tier in (0, 1, 2)] == [1, 2, 0]
    assert [over.device for over in book.drop(lambda held: held.tier == 1)] == ["b", "c"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["give", "end", "gone", "back", "wait"]), st.sampled_from("abc"), st.floats(0.1, 50)),
        max_size=60,
    )
)
def test_no_slot_is_held_past_its_time(deeds):
    """Whatever is done in whatever order: after `expire` none is over, and those that are not over are all there."""
    book, now = LeaseBook(), 0.0
    known: dict[str, Lease] = {}
    for deed, device, seconds in deeds:
        if deed == "give":
            known[device] = Lease(device, "s", 0, now, now + seconds)
            book.give(known[device])
        elif deed == "end":
            book.end(device)
            known.pop(device, None)
        elif deed in ("gone", "back"):
            book.is_there(device, there=deed == "back", now=now)
            if device in known:
                before = known[device].gone_at
                at = math.inf if deed == "back" else min(before, now)
                known[device] = replace(known[device], gone_at=at)
        else:
            now += seconds
        book.expire(now)
        known = {d: held for d, held in known.items() if held.over_at > now}
        assert book.held == known
