"""Which of the waiting updates make the next version, and when: a full buffer, or the deadline. Sans-I/O.

A tier (FedAT, Chai et al., SC 2021) is a quantile of the fleet by pace. Each waits for its own devices only, as
synchronous mode does for all, and releases by itself; across tiers updates are stale and discounted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from broker_aggregator.aggregation.recipes import least_updates
from broker_aggregator.inviting import Wanted
from broker_aggregator.participation import Invited
from broker_aggregator.releasing import Buffered
from fl_protocol.messages import Plan


def first_of_each(
    buffer: Sequence[Buffered], at_most: int, tiers: "Tiers | None" = None, tier: int = 0
) -> list[Buffered]:
    """The first update of each device, in record order; of a tier's devices only, where there are tiers."""
    first: dict[str, Buffered] = {}
    for buffered in buffer:
        device = buffered.update.device
        if tiers is None or tiers.of(device) == tier:
            first.setdefault(device, buffered)
    return list(first.values())[:at_most]


@dataclass(frozen=True)
class Need:
    """How many devices make a version: all that are waited for, and those that are enough at the deadline."""

    buffer: int
    enough: int


@dataclass(frozen=True)
class Tier:
    """A quantile of the fleet. Its cohort is open since `version`: what its devices trained from an older is stale."""

    version: int
    opened_at: float
    members: int = 0


@dataclass
class Tiers:
    """Tiers from the fastest to the slowest; a device that has no pace yet is in the middle."""

    tiers: list[Tier]
    _tier_of: dict[str, int] = field(default_factory=dict)

    @classmethod
    def begin(cls, count: int, now: float) -> "Tiers":
        """All cohorts open to what waits or is under way: nothing is lost when tiers are switched on."""
        return cls([Tier(0, now) for _ in range(count)])

    def __len__(self) -> int:
        return len(self.tiers)

    def of(self, device: str) -> int:
        """The tier that a device is in; every device is in one."""
        return self._tier_of.get(device, len(self.tiers) // 2)

    def regroup(self, paces: Mapping[str, float | None]) -> None:
        """Divide the devices that are there evenly, by pace in seconds."""
        known = sorted(s for s in paces.values() if s is not None)
        usual = known[len(known) // 2] if known else 0.0
        order = sorted((usual if s is None else s, device) for device, s in paces.items())
        count = len(self.tiers)
        self._tier_of = {d: place * count // len(order) for place, (_, d) in enumerate(order)}
        for index, tier in enumerate(self.tiers):
            self.tiers[index] = replace(tier, members=sum(t == index for t in self._tier_of.values()))

    def need_of(self, plan: Plan, index: int, least: int) -> Need:
        """A tier's part of the plan's buffer and quorum; no more than it has devices, where that is enough."""
        share = self.tiers[index].members / max(1, len(self._tier_of))
        enough = max(1, least, math.ceil(plan.quorum * share))
        buffer = min(math.ceil(plan.buffer * share), self.tiers[index].members)
        return Need(max(buffer, enough), enough)


@dataclass(frozen=True)
class Due:
    """What is to be released now (nothing: `used` is empty), and the tiers whose deadline passed without enough."""

    used: Sequence[Buffered] = ()
    tier: int = 0
    late: Sequence[int] = ()


@dataclass
class Gathering:
    """How a task's buffer becomes versions under its present plan. Without tiers, tier 0 is everybody."""

    tiers: Tiers | None = None
    _plan: Plan | None = None
    _least: int = 1  # updates that the rule needs, to stand its attackers
    _present: Sequence[str] = ()
    _stale: bool = True  # the tiers are those of other devices, or older paces

    def follow(self, plan: Plan, now: float) -> None:
        """Take the plan as it is now."""
        if plan is self._plan:
            return
        self._plan, self._least = plan, least_updates(plan)
        count = plan.tiers if plan.mode == "synchronous" else None
        if count is None:
            self.tiers = None
        elif self.tiers is None or len(self.tiers) != count:
            self.tiers, self._stale = Tiers.begin(count, now), True

    def meet(self, present: Sequence[str], paces: Callable[[str], float | None]) -> None:
        """Divide who is there into tiers: after a release, and when somebody came or went."""
        if self.tiers is not None and (self._stale or present is not self._present):
            self.tiers.regroup({device: paces(device) for device in present})
            self._present, self._stale = present, False

    def tier_of(self, device: str) -> int:
        """The device's tier."""
        return self.tiers.of(device) if self.tiers else 0

    def since(self, device: str) -> int:
        """The oldest base version that its tier's cohort takes; what is generally too old is not said here."""
        return self.tiers.tiers[self.tiers.of(device)].version if self.tiers else 0

    def needs(self, plan: Plan) -> list[Need]:
        """By tier: how many devices are waited for, and how many are enough at the deadline."""
        if self.tiers:
            return [self.tiers.need_of(plan, tier, self._least) for tier in range(len(self.tiers))]
        return [Need(plan.buffer, max(plan.quorum if plan.mode == "synchronous" else 1, self._least))]

    def due(self, plan: Plan, buffer: Sequence[Buffered], opened_at: float, now: float) -> Due:
        """The first tier that is to be released; else those that are late. `opened_at` is the whole fleet's."""
        self.follow(plan, now)
        late: list[int] = []
        for tier, need in enumerate(self.needs(plan)):
            used = first_of_each(buffer, need.buffer, self.tiers, tier)
            overdue = now - (self.tiers.tiers[tier].opened_at if self.tiers else opened_at) >= plan.deadline_s
            if len(used) >= need.buffer or (overdue and len(used) >= need.enough):
                return Due(used, tier)
            if overdue and (used or plan.mode == "synchronous"):
                late.append(tier)
        return Due(late=late)

    def released(self, tier: int, version: int, now: float) -> None:
        """A tier's next cohort opens."""
        if self.tiers:
            self.tiers.tiers[tier] = replace(self.tiers.tiers[tier], version=version, opened_at=now)
            self._stale = True

    def wait_on(self, tier: int, now: float) -> None:
        """A tier's deadline passed without enough: what came is kept, for another deadline."""
        if self.tiers:
            self.tiers.tiers[tier] = replace(self.tiers.tiers[tier], opened_at=now)

    def wanted(self, plan: Plan, terms: Invited, buffer: Sequence[Buffered], version: int) -> list[Wanted]:
        """The slots that may be open now, by tier."""
        if plan.mode == "asynchronous":
            return [Wanted(terms.cohort or 2 * plan.buffer)]
        found = []
        for tier, need in enumerate(self.needs(plan)):
            came = len(first_of_each(buffer, len(buffer), self.tiers, tier))
            since = self.tiers.tiers[tier].version if self.tiers else version
            found.append(Wanted(max(0, math.ceil(terms.over * need.buffer) - came), tier, since))
        return found
