"""Invited participation: who is asked, when a slot is over, and that training never stands while one device lives."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_aggregator.events import Effect, Received, Send, Tick
from broker_aggregator.fleet import REFUSALS
from broker_aggregator.slots import GONE_S
from fl_protocol.messages import Grant, Offer, Result, Slot, SlotAnswer, TaskStatus
from fl_protocol.signing import sign_offer
from fl_protocol.topics import Kind, build
from tests.support.fleet import FLEET, LAYOUT, Gateway, key_of, make_update, results, tiny_bundle

D = [0.1, 0.2, 0.3]
FANS = [f"fan-{i}" for i in range(6)]


def invited(**changes: object) -> Gateway:
    """A gateway that invites two at a time, all devices there."""
    terms = {"name": "invited", "cohort": "2", "lease_max_s": "400", "lease_min_s": "10"}
    participation = {**terms, **changes.pop("participation", {})}  # type: ignore[dict-item]
    g = Gateway().add(*FANS).come(*FANS)
    return g.start(**{"buffer": 2, "deadline_s": 60, "participation": participation, **changes})


def slots(effects: list[Effect]) -> dict[str, Slot]:
    """Invitations by device."""
    sent = [e for e in effects if isinstance(e, Send) and isinstance(e.message, Slot)]
    assert all(e.topic.kind is Kind.SLOT and not e.retain for e in sent)
    return {e.topic.device: e.message for e in sent}  # type: ignore[misc]


def answer(g: Gateway, device: str, slot: Slot, said: str) -> list[Effect]:
    return g.handle(Received(device, SlotAnswer(task="fan", slot=slot.slot, answer=said, why="hot")))  # type: ignore[arg-type]


# --- reading the plan ---


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"participation": {"name": "all"}}, "participation.name = 'all'"),
        ({"participation": {"name": "invited", "lease": "0"}}, "lease is a number from 1 to 100, not '0'"),
        ({"participation": {"name": "invited", "by": "luck"}}, "by is one of balanced, useful, fair, random"),
        ({"participation": {"name": "invited", "slots": "3"}}, "has no parameter 'slots'"),
        ({"participation": {"name": "open", "cohort": "3"}}, "has no parameter 'cohort'"),
        ({"participation": {"name": "open", "share": "0"}}, "share is a number from 0.001 to 1"),
        (
            {"participation": {"name": "invited", "lease_min_s": "90", "lease_max_s": "60"}},
            "lease_min_s = 90 is above lease_max_s = 60",
        ),
        ({"tiers": 3}, "tiers = 3 in asynchronous mode"),
        ({"tiers": 5, "mode": "synchronous", "buffer": 4}, "tiers = 5 share buffer = 4"),
    ],
)
def test_what_can_never_work_is_refused_by_name(plan, says):
    """When the configuration is read: field, value and mend."""
    told = Gateway().add(*FANS).ask("task-create", tiny_bundle(), task="fan", plan=plan)
    assert told.status == "failed"
    assert says in told.message
    assert told.hint


# --- slots are given and ended ---


def test_a_cohort_is_invited_and_told_why():
    """As many as the plan says, each for a quarter of the longest lease at first; people see it on the status page."""
    g = invited()
    given = slots(g.effects)
    assert len(given) == 2
    for slot in given.values():
        assert (slot.task, slot.version, slot.expires_in_s) == ("fan", 0, 100)
        assert slot.why
    pages = [e.message for e in g.effects if isinstance(e, Send) and isinstance(e.message, TaskStatus)]
    assert set(pages[-1].invited or {}) == set(given)


@pytest.mark.parametrize("how", ["is not answered", "expires", "declines", "leaves", "is revoked", "brings an update"])
def test_a_slot_that_is_over_goes_to_another_device(how):
    """At once; after a short grace where its device is only gone."""
    g = invited()
    (device, slot), _ = sorted(slots(g.effects).items())
    before = list(g.effects)
    g.effects.clear()
    if how == "is not answered":
        g.now = 9.9
        assert not slots(g.handle(Tick()))
        g.now = 10
        g.handle(Tick())
    elif how == "expires":
        for each, its in slots(before).items():
            answer(g, each, its, "accept")
        g.now = 99.9
        assert not slots(g.handle(Tick()))
        g.now = 100
        g.handle(Tick())
    elif how == "declines":
        answer(g, device, slot, "decline")
    elif how == "leaves":
        for each, its in slots(before).items():
            answer(g, each, its, "accept")
        g.come(device, state="lost")
        g.now = GONE_S - 0.1
        g.handle(Tick())
        assert not slots(g.effects)
        g.now = GONE_S
        g.handle(Tick())
    elif how == "is revoked":
        g.ask("device-revoke", device=device)
    else:
        g.send(make_update(device, 1, 0, D, slot=slot.slot))
    given = slots(g.effects)
    assert given
    assert how in ("expires", "is not answered") or device not in given
    assert len(g.task.invitations.book) == 2


def test_the_only_device_is_asked_again_though_it_declines():
    """Not before `lease_min_s` have passed, and not later, however often it said no."""
    g = invited()
    for fan in FANS[1:]:
        g.come(fan, state="lost")
    g.now = 50
    g.handle(Tick())
    held = g.task.invitations.book.held
    for _ in range(20):
        while "fan-0" not in held:
            assert g.now < 1000
            g.now += 1
            g.handle(Tick())
        asked = g.now
        lease = held["fan-0"]
        answer(g, "fan-0", Slot(task="fan", slot=lease.slot, version=0, expires_in_s=1), "decline")
        assert "fan-0" not in held
        g.now = asked + 9
        g.handle(Tick())
        assert "fan-0" not in held
        g.now = asked + 11
        g.handle(Tick())
        assert "fan-0" in held


def test_an_answer_about_another_slot_says_nothing():
    """Nor does an accept, nor one of a device that holds none, nor of a task that is not there."""
    g = invited()
    (device, slot), _ = sorted(slots(g.effects).items())
    other = next(fan for fan in FANS if fan not in slots(g.effects))
    g.effects.clear()
    answer(g, device, Slot(task="fan", slot="9-9", version=0, expires_in_s=1), "decline")
    answer(g, device, slot, "accept")
    answer(g, other, slot, "decline")
    g.handle(Received(device, SlotAnswer(task="none", slot=slot.slot, answer="decline")))
    assert not slots(g.effects)
    assert device in g.task.invitations.book.held


def test_a_lease_follows_the_devices_own_pace():
    """Three times what it took the last time; of who is not known yet, twice what is usual."""
    g = invited(participation={"cohort": "1"}, buffer=1)
    (device, slot), *_ = slots(g.effects).items()
    g.effects.clear()
    g.now = 20
    g.send(make_update(device, 1, 0, D, slot=slot.slot))
    ((second, next_slot),) = slots(g.effects).items()
    assert next_slot.expires_in_s == (60 if second == device else 120)
    assert g.task.invitations.habits_of(device).seconds == 20


def test_a_lease_that_was_too_short_doubles():
    """Its device was there all the while, and only slow; when its update comes it counts, and the pace is known."""
    g = invited(participation={"cohort": "1"}, buffer=1)
    for fan in FANS[1:]:
        g.come(fan, state="disconnected")
    lasted = []
    while len(lasted) < 4:
        g.effects.clear()
        g.now += 1
        g.handle(Tick())
        if "fan-0" in (given := slots(g.effects)):
            lasted.append(given["fan-0"].expires_in_s)
            answer(g, "fan-0", given["fan-0"], "accept")
    assert lasted == [100, 200, 400, 400]
    slot, began = given["fan-0"], g.now
    g.now += 450
    assert g.verdict(make_update("fan-0", 1, 0, D, slot=slot.slot)).verdict == "accepted"
    assert g.task.invitations.habits_of("fan-0").seconds == g.now - began


def test_an_update_without_a_slot_counts_if_it_is_fresh():
    """Asynchronous: up to max_staleness; synchronous: of this version."""
    g = invited()
    stranger = next(fan for fan in FANS if fan not in slots(g.effects))
    assert g.verdict(make_update(stranger, 1, 0, D)).verdict == "accepted"
    g = invited(mode="synchronous", buffer=1)
    first, second = slots(g.effects)
    assert g.verdict(make_update(first, 1, 0, D)).verdict == "accepted"
    assert g.verdict(make_update(second, 1, 0, D)).verdict == "stale"


def test_a_synchronous_version_invites_some_more_than_it_needs():
    """1.3 times the buffer, rounded up; with the release their slots are over, and the next version's are given."""
    g = invited(mode="synchronous", buffer=3)
    given = slots(g.effects)
    assert len(given) == 4
    g.effects.clear()
    for device in sorted(given)[:3]:
        g.send(make_update(device, 1, 0, D, slot=given[device].slot))
    again = slots(g.effects)
    assert g.task.release.version == 1
    assert len(again) == 4
    assert {slot.version for slot in again.values()} == {1}


def test_less_than_a_quorum_invites_others_for_the_same_version():
    """What came is kept; whoever is late may still come."""
    g = invited(mode="synchronous", buffer=3, quorum=3, participation={"over": "1"})
    given = slots(g.effects)
    first, late, _ = sorted(given)
    g.send(make_update(first, 1, 0, D, slot=given[first].slot))
    g.effects.clear()
    g.now = 60
    g.handle(Tick())
    others = slots(g.effects)
    assert len(others) == 2
    assert not set(others) & set(given)
    assert {slot.version for slot in others.values()} == {0}
    g.send(make_update(late, 1, 0, D))
    g.send(make_update(min(others), 1, 0, D))
    assert g.task.release.version == 1
    assert {name[0] for name in g.task.release.used} == {first, late, min(others)}


def test_after_a_restart_slots_are_forgotten_and_updates_count():
    """In memory only: another book invites anew."""
    g = invited()
    (device, slot), _ = sorted(slots(g.effects).items())
    g.task.invitations = type(g.task.invitations)()
    g.effects.clear()
    assert len(slots(g.handle(Tick()))) == 2
    assert g.verdict(make_update(device, 1, 0, D, slot=slot.slot)).verdict == "accepted"


def test_a_paused_task_has_no_slots_open():
    """Nor has one whose plan is open."""
    g = invited()
    g.ask("task-pause", task="fan")
    assert not g.task.invitations.book.held
    g.ask("task-start", task="fan")
    assert len(g.task.invitations.book) == 2
    g.ask("task-change", tiny_bundle(), task="fan", plan={"buffer": 2})
    assert not g.task.invitations.book.held


# --- those who lie and flood ---


def offered(g: Gateway, device: str, seq: int, base_version: int) -> list[Effect]:
    offer = Offer(
        sha256="a" * 64,
        size=5000,
        chunk_size=1024,
        task="fan",
        incarnation="0" * 16,
        seq=seq,
        base_version=base_version,
        fingerprint=LAYOUT.fingerprint,
    )
    topic = build(Kind.OFFER, FLEET, device=device)
    return g.handle(Received(device, sign_offer(offer, key_of(device), FLEET, topic)))


def test_a_device_counts_once_from_a_version_whoever_it_says_it_is():
    """Neither again under another seq, nor flashed anew, nor from an older version; its offer is told the same."""
    g = Gateway().add(*FANS).start(buffer=1)
    for seq, fan in enumerate(FANS[1:4]):
        g.send(make_update(fan, 1, seq, D))
    assert g.verdict(make_update("fan-0", 1, 2, D)).verdict == "accepted"
    for update in (
        make_update("fan-0", 2, 2, D),
        make_update("fan-0", 1, 2, D, incarnation="1" * 16),
        make_update("fan-0", 3, 1, D),
    ):
        told = g.verdict(update)
        assert (told.verdict, told.code) == ("stale", "E_STALE")
    (told,) = results(offered(g, "fan-0", 9, 2))
    assert (told.verdict, told.code) == ("stale", "E_STALE")
    assert g.verdict(make_update("fan-0", 10, 3, D)).verdict == "accepted"


def test_an_offer_tells_a_device_that_comes_back_whether_its_update_counts():
    """Before it sends a byte: late for its version, or welcome; with a slot that is over long ago, too."""
    g = invited(mode="synchronous", buffer=1)
    first, second = slots(g.effects)
    (grant,) = [e.message for e in offered(g, second, 1, 0) if isinstance(e, Send) and isinstance(e.message, Grant)]
    assert grant.answer == "go"
    g.send(make_update(first, 1, 0, D))
    (told,) = results(offered(g, second, 2, 0))
    assert told.verdict == "stale"


def test_a_refusal_frees_the_slot_that_was_trained_for():
    """The device will not train this version again."""
    g = invited(participation={"cohort": "1"})
    ((device, slot),) = slots(g.effects).items()
    g.effects.clear()
    assert g.verdict(make_update(device, 1, 0, D, payload=b"", slot=slot.slot)).verdict == "rejected"
    assert device not in slots(g.effects)
    assert len(slots(g.effects)) == 1


def test_a_device_that_sends_rubbish_costs_a_bounded_number_of_rows():
    """After so many refusals it is asked to wait, which nobody need remember; others are served all the while."""
    g = Gateway().add(*FANS).start(buffer=100)
    told = [g.verdict(make_update("fan-0", seq, 0, D, payload=b"")) for seq in range(REFUSALS + 50)]
    assert [r.verdict for r in told] == ["rejected"] * REFUSALS + ["deferred"] * 50
    assert {(r.code, r.retry_in_s > 0) for r in told[REFUSALS:]} == {("E_QUOTA", True)}
    assert g.verdict(make_update("fan-1", 1, 0, D)).verdict == "accepted"
    g.now = 1000
    assert g.verdict(make_update("fan-0", 1000, 0, D)).verdict == "accepted"


# --- whatever happens ---


@dataclass
class World:
    """Devices that keep to the protocol, until they die; what each of them does with an invitation is drawn."""

    g: Gateway
    draw: Callable[[int], int]  # a number below
    last_trained: dict[str, int] = field(default_factory=dict)
    busy: dict[str, tuple[float, int, str]] = field(default_factory=dict)  # until when, from which version, slot
    back_at: dict[str, float] = field(default_factory=dict)  # the dead ones
    seq: int = 0
    cohort: int = 2

    def hear(self, effects: list[Effect]) -> None:
        for device, slot in slots(effects).items():
            assert slot.expires_in_s <= 400
            self.invite(device, slot)

    def invite(self, device: str, slot: Slot) -> None:
        """The last device lives, says yes, and sends nothing but sound updates."""
        if device in self.back_at or device in self.busy:
            return
        version = self.g.task.release.version
        if self.last_trained.get(device, -1) >= version:
            return
        fate = 9 if device == FANS[-1] else self.draw(10)
        if fate > 1:
            self.hear(answer(self.g, device, slot, "accept"))
        if fate < 4:
            self.back_at[device] = self.g.now + 30 + 10 * self.draw(100)
            if fate % 2:
                self.g.come(device, state="lost")
        elif fate == 4:
            self.hear(answer(self.g, device, slot, "decline"))
        else:
            self.busy[device] = self.g.now + 1 + self.draw(300), version, slot.slot

    def step(self) -> None:
        self.g.now += 5
        for device in FANS:
            if self.back_at.get(device, self.g.now + 1) <= self.g.now:
                del self.back_at[device]
                before = len(self.g.effects)
                self.g.come(device)
                self.hear(self.g.effects[before:])
            until, version, slot = self.busy.get(device, (self.g.now + 1, 0, ""))
            if until <= self.g.now:
                del self.busy[device]
                self.last_trained[device] = version
                self.seq += 1
                rubbish = {"payload": b""} if device != FANS[-1] and self.draw(8) == 0 else {}
                self.hear(self.g.send(make_update(device, self.seq, version, D, slot=slot, **rubbish)))
        self.hear(self.g.handle(Tick()))
        book = self.g.task.invitations.book
        assert all(lease.over_at > self.g.now for lease in book.held.values())
        assert len(book) <= self.cohort
        assert not any(self.g.coordinator.fleet.devices[d].revoked for d in book.held)


def run(plan: dict[str, object], cohort: int, draw: Callable[[int], int], steps: int) -> World:
    world = World(invited(**plan), draw, cohort=cohort)
    world.hear(list(world.g.effects))
    for _ in range(steps):
        world.step()
    return world


PLANS = [
    ({}, 2),
    ({"participation": {"by": "useful", "cohort": "4"}}, 4),
    ({"participation": {"by": "random"}, "buffer": 3}, 2),
    ({"mode": "synchronous"}, 3),
    ({"mode": "synchronous", "tiers": 2, "buffer": 4}, 6),
]


@pytest.mark.parametrize(("plan", "cohort"), PLANS)
@given(st.randoms(use_true_random=False))
@settings(max_examples=8, deadline=None)
def test_training_never_stands_while_one_device_lives(plan, cohort, chance):
    """Whatever dies, declines, lies or comes late: no slot past its time, at most a cohort of them, and versions go on.

    One device always answers.
    """
    world = run(plan, cohort, chance.randrange, 400)
    assert world.g.task.release.version >= 3
    assert max(gaps(world)) <= 1500  # three leases of the longest, and deadlines; 1025 is the longest that was found


def gaps(world: World) -> list[float]:
    """Seconds between two versions, and from the last to now."""
    times = sorted(world.g.task.invitations._opened.values())
    return [b - a for a, b in zip(times, [*times[1:], world.g.now], strict=True)]


@pytest.mark.parametrize(("plan", "cohort"), PLANS)
def test_the_same_happens_again(plan, cohort):
    """The same events at the same times: the same invitations with the same reasons, and the same versions."""
    import random

    worlds = [run(plan, cohort, random.Random(5).randrange, 200) for _ in range(2)]
    first, second = ([e for e in w.g.effects if isinstance(e, Send)] for w in worlds)
    assert first == second
    assert [m for m in first if isinstance(m.message, Result)]
