"""Slots are leases: who may train from which version, and until when. A book in memory; a restart forgets it.

A slot decides nothing about an update, which is judged by its freshness alone. What a slot does is to be counted: so
many are open at once, and one that is over makes room for another device, whatever became of its holder.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

GONE_S = 10.0  # a device that is lost or disconnected keeps its slot so long


@dataclass(frozen=True)
class Lease:
    """One device's slot. Times are of a monotonic clock, in seconds."""

    device: str
    slot: str
    version: int
    given_at: float
    ends_at: float
    tier: int = 0
    why: str = ""
    answer_by: float = math.inf  # an invitation that nobody accepted by then is over; once accepted, never
    gone_at: float = math.inf  # since when the device is not there

    @property
    def over_at(self) -> float:
        """When it is free for another device."""
        return min(self.ends_at, self.answer_by, self.gone_at + GONE_S)

    @property
    def was_alive(self) -> bool:
        """Whether its device accepted, and was there until the end: then the lease was too short."""
        return self.answer_by == self.gone_at == math.inf


@dataclass
class LeaseBook:
    """The leases by device: each has one at most."""

    held: dict[str, Lease] = field(default_factory=dict)
    _soonest: float = math.inf  # no lease is over before

    def __len__(self) -> int:
        return len(self.held)

    def num_in(self, tier: int) -> int:
        """How many slots are open in a tier."""
        return sum(lease.tier == tier for lease in self.held.values())

    def give(self, lease: Lease) -> None:
        """Open a slot."""
        self.held[lease.device] = lease
        self._soonest = min(self._soonest, lease.over_at)

    def end(self, device: str) -> Lease | None:
        """Free a device's slot, if it holds one."""
        return self.held.pop(device, None)

    def accept(self, device: str) -> None:
        """The device has said yes: its slot lasts as long as it was told."""
        if device in self.held:
            self.give(replace(self.held[device], answer_by=math.inf))

    def is_there(self, device: str, *, there: bool, now: float) -> None:
        """A device that is not there has a short grace; one that comes back in time has its slot as before."""
        lease = self.held.get(device)
        if lease is not None and there == (lease.gone_at < math.inf):
            self.give(replace(lease, gone_at=math.inf if there else now))

    def expire(self, now: float) -> list[Lease]:
        """Free the slots that are over; them."""
        if now < self._soonest:
            return []
        ended = self.drop(lambda lease: lease.over_at <= now)
        self._soonest = min((lease.over_at for lease in self.held.values()), default=math.inf)
        return ended

    def drop(self, over: Callable[[Lease], bool]) -> list[Lease]:
        """Free those slots."""
        ended = [lease for lease in self.held.values() if over(lease)]
        for lease in ended:
            del self.held[lease.device]
        return ended
