"""Who is invited to train, one book a task: slots given, ended, and what was learnt of the devices. Sans-I/O.

All of it is in memory: after a restart slots are forgotten, updates that come are judged by freshness as always, and
the devices' paces are learnt anew.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from broker_aggregator.fleet import Fleet
from broker_aggregator.habits import Habits
from broker_aggregator.participation import Invited, Open, participation_of
from broker_aggregator.selection import Candidate, choose
from broker_aggregator.slots import Lease, LeaseBook
from fl_protocol.messages import Plan, SlotAnswer, Update

LOOK_S = 1.0  # where nobody could be asked, look again after so long
UNKNOWN = 2.0  # a device that never brought an update is given so many times what is usual
FIRST = 4  # before anything is known, a slot lasts this part of `lease_max_s`
KEPT_VERSIONS = 64  # whose release is remembered, to learn paces in open participation
MAX_SHOWN = 8  # invitations on the status page


@dataclass(frozen=True)
class Wanted:
    """How many slots of a tier may be open at once; leases of versions below `since` are over. Tier 0: everybody."""

    slots: int
    tier: int = 0
    since: int = 0


@dataclass(frozen=True)
class Who:
    """The devices that could be asked: of a fleet, without those whose update waits, by tier."""

    fleet: Fleet
    waiting: Collection[str] = ()
    tier_of: Callable[[str], int] = lambda _: 0


@dataclass
class Invitations:
    """A task's slots and its devices' habits."""

    habits: dict[str, Habits] = field(default_factory=dict)  # of members of the fleet
    book: LeaseBook = field(default_factory=LeaseBook)
    number: int = 0  # invitations so far
    terms: Open | Invited = field(default_factory=Open)
    _plan: Plan | None = None
    _present: Sequence[str] = ()
    _opened: dict[int, float] = field(default_factory=dict)  # version -> when it was first seen
    _stirred: bool = True  # something changed since nobody could be asked
    _look_at: float = -math.inf

    def habits_of(self, device: str) -> Habits:
        """What is known of a member of the fleet."""
        return self.habits.setdefault(device, Habits())

    def follow(self, plan: Plan, version: int, now: float) -> Open | Invited:
        """Take the plan's terms; without invitations, or while the task does not run, no slot is open."""
        if plan is not self._plan:
            self._plan, self.terms = plan, participation_of(plan)
            self._stirred = True
        if version not in self._opened:
            self._opened[version] = now
            self._stirred = True
            for old in sorted(self._opened)[:-KEPT_VERSIONS]:
                del self._opened[old]
        if not isinstance(self.terms, Invited) or plan.state != "running":
            self.book.drop(lambda _: True)
        return self.terms

    # --- what devices do ---

    def came(self, update: Update, now: float) -> None:
        """An update was accepted: its slot is free, its device's pace known better."""
        habits = self.habits_of(update.device)
        began_at = self._opened.get(update.base_version)
        lease = self.book.held.get(update.device)
        if lease is not None and (update.slot == lease.slot or update.base_version >= lease.version):
            self.book.end(update.device)
            began_at = lease.given_at
        elif isinstance(self.terms, Invited):
            began_at = None
        habits.came(update, began_at, now)
        self._stirred = True

    def refused(self, device: str, base_version: int) -> None:
        """A final refusal: the device trained from this version, and will not again."""
        habits = self.habits_of(device)
        habits.tried = max(habits.tried, base_version)
        lease = self.book.held.get(device)
        if lease is not None and lease.version <= base_version:
            self.book.end(device)
            habits.pending = ""
        self._stirred = True

    def answered(self, device: str, answer: SlotAnswer, now: float) -> None:
        """A decline frees the slot at once; an answer about another slot than the one it holds says nothing."""
        lease = self.book.held.get(device)
        if lease is None or lease.slot != answer.slot:
            return
        if answer.answer == "accept":
            self.book.accept(device)
            return
        self.book.end(device)
        if isinstance(self.terms, Invited):
            self.habits_of(device).declined(self.terms.lease_min_s, self.terms.lease_max_s, now)
        self._stirred = True

    def overdue(self, tier: int, rest_s: float, now: float) -> None:
        """A deadline has passed without a quorum: others are asked for the same version. Who is late may still come."""
        for lease in self.book.drop(lambda lease: lease.tier == tier):
            habits = self.habits_of(lease.device)
            habits.died(there=lease.was_alive)
            habits.rests_until = now + rest_s
        self._stirred = True

    # --- who is asked ---

    def turn(self, plan: Plan, version: int, wanted: Sequence[Wanted], who: Who, now: float) -> list[Lease]:
        """End what is over; the slots that are given now."""
        terms = self.follow(plan, version, now)
        if not isinstance(terms, Invited) or plan.state != "running":
            return []
        self._end(wanted, who.fleet, now)
        if not self._stirred and now < self._look_at:
            return []
        self._stirred, self._look_at = False, now + LOOK_S
        given: list[Lease] = []
        for of in wanted:
            short = of.slots - self.book.num_in(of.tier)
            if short > 0:
                given += self._invite(terms, plan, version, of.tier, short, who, now)
        return given

    def _end(self, wanted: Sequence[Wanted], fleet: Fleet, now: float) -> None:
        present = fleet.present
        if present is not self._present:
            self._present, self._stirred = present, True
            there = frozenset(present)
            for device in list(self.book.held):
                self.book.is_there(device, there=device in there, now=now)
                if device not in fleet.devices or fleet.devices[device].revoked:
                    self.book.end(device)
        since = {of.tier: of.since for of in wanted}
        if self.book.drop(lambda lease: lease.version < since.get(lease.tier, math.inf)):
            self._stirred = True
        for lease in self.book.expire(now):
            self.habits_of(lease.device).died(there=lease.was_alive)
            self._stirred = True

    def _invite(
        self, terms: Invited, plan: Plan, version: int, tier: int, short: int, who: Who, now: float
    ) -> list[Lease]:
        """Slots for the best who may be asked; those who rest only where nobody else is, or was, to be asked."""
        there = (d for d in who.fleet.present if d not in who.waiting and who.tier_of(d) == tier)
        free = [d for d in there if d not in self.book.held and self.habits_of(d).tried < version]
        able = [d for d in free if self.habits[d].rests_until <= now]
        if not able and not self.book.num_in(tier):
            able = [d for d in free if self.habits[d].asked_at + terms.lease_min_s <= now]
        candidates = [self._candidate(d, plan, version) for d in able]
        rng = _rng(plan.task, version, self.number)
        usual = _usual(self.habits)
        given = []
        for choice in choose(candidates, terms.by, short, self.number, rng):
            habits = self.habits[choice.device]
            slot = f"{version}-{self.number}"
            lasts = _lasts(habits, terms, usual)
            lease = Lease(choice.device, slot, version, now, now + lasts, tier, choice.why, now + terms.lease_min_s)
            habits.invited(slot, self.number, now)
            self.book.give(lease)
            self.number += 1
            given.append(lease)
        return given

    def _candidate(self, device: str, plan: Plan, version: int) -> Candidate:
        habits = self.habits[device]
        debt = version - max(habits.taken, plan.origin - 1)
        return Candidate(
            device, habits.availability, debt, habits.usefulness, habits.seconds, habits.accepted, habits.asked
        )

    def shown(self) -> dict[str, str] | None:
        """The newest invitations that are open, for people: who, since which version, and why."""
        newest = sorted(self.book.held.values(), key=lambda lease: (-lease.given_at, lease.device))[:MAX_SHOWN]
        lines = {
            lease.device: f"version {lease.version}, for {lease.ends_at - lease.given_at:.0f} s; {lease.why}"[:400]
            for lease in newest
        }
        return lines or None


def _usual(habits: dict[str, Habits]) -> float | None:
    known = [h.seconds for h in habits.values() if h.seconds is not None]
    return median(known) if known else None


def _lasts(habits: Habits, terms: Invited, usual: float | None) -> int:
    """Whole seconds of a slot: some times the device's own pace, and longer where the last ones were too short."""
    if habits.seconds is not None:
        seconds = terms.lease * habits.seconds
    elif usual is not None:
        seconds = terms.lease * usual * UNKNOWN
    else:
        seconds = terms.lease_max_s / FIRST
    return math.ceil(min(max(seconds * 2.0**habits.misses, terms.lease_min_s), terms.lease_max_s))


def _rng(task: str, version: int, number: int) -> np.random.Generator:
    """The same draws for the same task, version and number of invitations, in every process."""
    seed = hashlib.sha256(f"{task}/{version}/{number}".encode()).digest()
    return np.random.default_rng(int.from_bytes(seed[:8], "little"))
