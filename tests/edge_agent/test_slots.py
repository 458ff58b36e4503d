"""Who takes part, as a device lives it: slots and their end, pace and share; and offers of what may come too late."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import events as e
from edge_agent.gate import Reading
from edge_agent.slots import OPEN, UNINVITED, Participation, Place, read_participation
from fl_protocol.errors import ProtocolError
from fl_protocol.messages import Slot, SlotAnswer
from fl_protocol.signing import seal
from fl_protocol.topics import Kind
from fl_protocol.transport import Delivery
from tests.edge_agent.rig import (
    BUNDLE,
    BUNDLE_BYTES,
    FLEET,
    STRANGERS_KEY,
    TASK,
    Rig,
    all_of,
    complaints,
    sent,
    states,
    the,
    topic,
    updates,
)

INVITED = {"name": "invited"}
FLAT = Reading(battery_pct=3.0, charging=False)


def waiting(version: int = 0, **plan: object) -> Rig:
    """A device with a version that nobody invited it to train."""
    rig = Rig()
    rig.connect()
    rig.desire(TASK)
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.plan(participation=INVITED, **plan)
    rig.announce(version)
    rig.broadcast(version)
    assert not all_of(e.Train, rig.asked)
    return rig


def invite(rig: Rig, slot: str = "s1", version: int = 0, within_s: int = 100, task: str = TASK) -> list[e.Effect]:
    """The gateway's invitation."""
    counter = rig.count(Kind.SLOT)
    return rig.hear(
        Kind.SLOT, Slot(task=task, slot=slot, version=version, expires_in_s=within_s, counter=counter, why="its turn")
    )


def answers(effects: list[e.Effect]) -> list[tuple[str, str, str]]:
    """What the device answered: (slot, answer, why)."""
    said = [send.message for send in sent(Kind.SLOT_ANSWER, effects)]
    return [(a.slot, a.answer, a.why) for a in said if isinstance(a, SlotAnswer)]


# --- invited -----------------------------------------------------------------------------------------------------


def test_an_invited_device_trains_only_for_a_slot_and_its_update_names_it() -> None:
    """Uninvited it says what it waits for; invited it accepts, trains at once, and the slot is used by that."""
    rig = waiting()
    rig.wait(1000)
    assert not all_of(e.Train, rig.asked)
    assert states(rig.asked)[-1].why == UNINVITED
    effects = invite(rig)
    assert answers(effects) == [("s1", "accept", "")]
    (update,) = updates(rig.train(the(e.Train, effects)))
    assert update.slot == "s1"
    rig.verdict(update, "accepted")
    assert not all_of(e.Train, rig.announce(1) + rig.broadcast(1))
    assert states(rig.asked)[-1].why == UNINVITED


def test_a_slot_for_a_version_that_is_not_here_waits_for_it_and_asks_for_its_manifest() -> None:
    """Fetch first, then train, if the lease still holds; a manifest that was lost comes once more."""
    rig = waiting()
    effects = invite(rig, version=2)
    assert answers(effects) == [("s1", "accept", "")]
    assert any((topic(Kind.MANIFEST), 0) in subscribe.filters for subscribe in all_of(e.Subscribe, effects))
    assert states(rig.asked)[-1].why == "invited; waiting for version 2"
    assert not all_of(e.Train, rig.announce(1) + rig.broadcast(1))
    rig.announce(2)
    assert the(e.Train, rig.broadcast(2))


def test_a_slot_holds_for_a_newer_version_too() -> None:
    """Invited for version 0, with version 1 here: version 1 is trained."""
    rig = waiting(1)
    (update,) = updates(rig.train(the(e.Train, invite(rig, version=0))))
    assert (update.base_version, update.slot) == (1, "s1")


def test_a_slot_ends_by_the_devices_own_clock() -> None:
    """What comes after its end is not trained for it; another slot is as good as the first."""
    rig = waiting()
    invite(rig, version=1, within_s=50)
    rig.wait(51)
    assert not all_of(e.Train, rig.announce(1) + rig.broadcast(1))
    assert states(rig.asked)[-1].why == UNINVITED
    assert the(e.Train, invite(rig, "s2", 1))


def test_a_slot_that_comes_twice_is_one() -> None:
    """QoS 1 may bring it again, after the training that it was for, too: no second answer."""
    rig = waiting()
    counter = rig.count(Kind.SLOT)
    slot = Slot(task=TASK, slot="s1", version=0, expires_in_s=100, counter=counter)
    order = the(e.Train, rig.hear(Kind.SLOT, slot))
    assert not answers(rig.hear(Kind.SLOT, slot))
    rig.train(order)
    assert not answers(rig.hear(Kind.SLOT, slot))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_device_that_may_not_train_declines_with_the_gates_reason(when: str) -> None:
    """At once; and a slot that it held while it waited for the version is given back."""
    rig = waiting()
    effects = rig.do(e.Measured(FLAT)) if when == "before" else invite(rig, version=1)
    effects = invite(rig, version=1) if when == "before" else rig.do(e.Measured(FLAT))
    assert answers(effects) == [("s1", "decline", "battery below 30 %")]
    rig.do(e.Measured(Reading()))
    assert not all_of(e.Train, rig.announce(1) + rig.broadcast(1))


def test_a_device_without_examples_declines() -> None:
    """With the reason of its source."""
    rig = Rig()
    rig.examples = "the folder is empty"
    rig.connect()
    rig.desire(TASK)
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.plan(participation=INVITED)
    assert answers(invite(rig)) == [("s1", "decline", "no examples: the folder is empty")]


def test_a_slot_for_what_was_trained_from_already_or_for_no_task_of_this_device_is_declined() -> None:
    """A version is trained at most once, whoever asks."""
    rig = waiting()
    (update,) = updates(rig.train(the(e.Train, invite(rig))))
    rig.verdict(update, "stale")
    assert answers(invite(rig, "s2")) == [("s2", "decline", "version 0 has been trained from already")]
    assert answers(invite(rig, "s3", task="other")) == [("s3", "decline", "the device takes no part in this task")]


def test_a_training_that_fails_gives_its_slot_back() -> None:
    """So does an agent that ends; a pause of the task, too."""
    rig = waiting()
    order = the(e.Train, invite(rig))
    effects = rig.do(e.TrainingFailed(order.task, None, "out of memory"))
    assert answers(effects) == [("s1", "decline", "training failed: out of memory")]
    invite(rig, "s2", 1)
    assert answers(rig.plan(participation=INVITED, state="paused", revision=2)) == [
        ("s2", "decline", "the task is paused")
    ]
    rig.plan(participation=INVITED, revision=3)
    invite(rig, "s3", 1)
    assert answers(rig.do(e.Stop())) == [("s3", "decline", "the agent was asked to end")]


def test_a_slot_is_signed_and_counted() -> None:
    """One of another key, and one of before, are refused and change nothing."""
    rig = waiting()
    forged = seal(
        Slot(task=TASK, slot="s1", version=0, expires_in_s=9, counter=9), STRANGERS_KEY, FLEET, topic(Kind.SLOT)
    )
    effects = rig.do(Delivery(topic(Kind.SLOT), forged, False, None))
    assert not answers(effects)
    assert complaints(effects)[0].code == "E_SIG"
    invite(rig, "s1", 5)
    invite(rig, "s2", 5)
    effects = rig.hear(Kind.SLOT, Slot(task=TASK, slot="s0", version=0, expires_in_s=9, counter=1))
    assert not all_of(e.Train, effects)
    assert complaints(effects)[0].code == "E_DOWNGRADE"


def test_an_invited_task_that_opens_is_trained_by_whoever_is_there() -> None:
    """Participation changes with the plan, while the task runs; an unknown kind of it is as if nothing were said."""
    for opened in (None, {"name": "open"}, {"name": "by-lottery", "tickets": "7"}):
        assert the(e.Train, waiting().plan(participation=opened, revision=2))


# --- open, at a pace ---------------------------------------------------------------------------------------------


def test_a_fleet_is_spread_over_the_time_that_the_plan_names() -> None:
    """Each device waits a random part of `spread_s`, and trains the newest version then."""
    rig = Rig()
    rig.connect()
    rig.desire(TASK)
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.plan(participation={"name": "open", "spread_s": "1000"})
    rig.announce(0)
    assert not all_of(e.Train, rig.broadcast(0))
    rig.announce(1)
    rig.broadcast(1)
    (update,) = updates(rig.train(the(e.Train, rig.wait(1000))))
    assert update.base_version == 1


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1.0), st.floats(0.0, 100.0))
def test_pace_is_drawn_once_a_version_and_never_keeps_a_device_out_for_ever(
    seed: int, share: float, spread_s: float
) -> None:
    """The same generator, the same draws; and one version, however long it stays the newest, is trained some time."""
    rng, again = np.random.default_rng(seed), np.random.default_rng(seed)
    place, twin = Place(), Place()
    rule = Participation(spread_s=spread_s, share=share)
    place.follow(rule)
    twin.follow(rule)
    now, draws = 0.0, 0
    while not place.may_begin(3, now):
        before = rng.bit_generator.state
        place.draw(3, 60.0, now, rng)
        twin.draw(3, 60.0, now, again)
        draws += rng.bit_generator.state != before
        assert place.waits_for(3) == twin.waits_for(3)
        now = min(place.wake_at(now), now + 60.0)
    assert draws <= now / 60.0 + 1
    assert now <= 60.0 * draws + spread_s


def test_a_share_of_the_devices_takes_part_in_a_version() -> None:
    """Of a thousand devices some 300 with a share of 0.3; all of them where nothing is said."""
    place_of = []
    for seed in range(1000):
        place = Place()
        place.follow(Participation(share=0.3))
        place.draw(0, 60.0, 0.0, np.random.default_rng(seed))
        place_of.append(place.may_begin(0, 0.0))
    assert 250 < sum(place_of) < 350
    assert Place().may_begin(0, 0.0)


def test_what_the_plan_says_is_read_within_bounds() -> None:
    """Numbers out of their bounds are refused by name; what only the gateway reads is left alone."""
    assert read_participation(None) == read_participation({"name": "open"}) == OPEN
    assert read_participation({"name": "invited", "cohort": "20", "by": "useful"}) == Participation(invited=True)
    assert read_participation({"name": "open", "spread_s": "5", "share": "0.5"}) == Participation(False, 5.0, 0.5)
    for key, value in (("spread_s", "-1"), ("spread_s", "1e9"), ("share", "0"), ("share", "2"), ("share", "many")):
        with pytest.raises(ProtocolError, match=key):
            read_participation({"name": "open", key: value})


# --- what may come too late is offered ---------------------------------------------------------------------------


def test_an_update_that_was_sent_before_the_connection_ended_is_offered_first() -> None:
    """Told `stale`, it is not sent at all; and what was never sent goes as it always did, without an offer."""
    rig = Rig()
    (update,) = updates(rig.train(rig.ready_to_train()))
    rig.disconnect()
    effects = rig.connect() + rig.wait(2.01)
    assert not updates(effects)
    assert len(sent(Kind.OFFER, effects)) == 1
    rig.verdict(update, "stale")
    assert not rig.restored.pending
    order = the(e.Train, rig.announce(1) + rig.broadcast(1))
    rig.disconnect()
    assert not updates(rig.train(order))
    effects = rig.connect() + rig.wait(2.01)
    assert len(updates(effects)) == 1
    assert not sent(Kind.OFFER, effects)


@pytest.mark.parametrize(
    ("mode", "newest", "offered"), [("asynchronous", 2, 0), ("asynchronous", 4, 1), ("synchronous", 1, 1)]
)
def test_an_update_of_a_version_that_is_over_is_offered_first(mode: str, newest: int, offered: int) -> None:
    """Over by the plan's `max_staleness`; synchronously by every newer version."""
    rig = Rig(predict_s=1000)
    order = rig.ready_to_train(mode=mode, max_staleness=3)
    for version in range(1, newest + 1):
        rig.announce(version)
    effects = rig.train(order)
    assert len(sent(Kind.OFFER, effects)) == offered
    assert len(updates(effects)) == 1 - offered
