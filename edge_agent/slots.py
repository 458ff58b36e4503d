"""Who takes part: how a plan asks for it, the slot that a device holds, and the pace of one that needs none.

open     whoever is there trains; `spread_s` and `share` say how many of a fleet at once
invited  a device trains while it holds a slot: a lease of the gateway's, which ends by the device's own clock
"""

from collections.abc import Mapping
from dataclasses import dataclass

from numpy.random import Generator

from fl_protocol.messages import Slot
from fl_protocol.parameters import Parameters

NEVER = float("inf")
UNINVITED = "waits for an invitation"
MAX_SPREAD_S = 86400.0
LEAST_SHARE = 0.001


@dataclass(frozen=True)
class Participation:
    """`plan.participation` as a device reads it.

    In open participation a device waits a random part of `spread_s` seconds after a new version came, and takes part
    in a version with the probability `share`.
    """

    invited: bool = False
    spread_s: float = 0.0
    share: float = 1.0


OPEN = Participation()


def read_participation(settings: Mapping[str, str] | None) -> Participation:
    """What the plan says; by a name that this device does not know it takes part as if nothing were said.

    Raises `ProtocolError(E_SCHEMA)` for a number out of its bounds. What only the gateway reads is left alone.
    """
    given = Parameters(settings or {"name": "open"}, "participation")
    if given.name == "invited":
        return Participation(invited=True)
    if given.name != "open":
        return OPEN
    return Participation(
        spread_s=given.number("spread_s", 0.0, 0.0, MAX_SPREAD_S), share=given.number("share", 1.0, LEAST_SHARE, 1.0)
    )


@dataclass(frozen=True)
class Lease:
    """A slot that the device holds, until `ends_at` of its own clock: train from `version` or a newer one."""

    slot: str
    version: int
    ends_at: float


class Place:
    """Whether a device may begin to train for a task now: by its slot, or at the pace that it drew."""

    def __init__(self) -> None:
        self.rule = OPEN
        self.lease: Lease | None = None
        self._slot = ""  # the last that came: QoS 1 may bring it twice
        self._decided = -1  # the newest version that was drawn for
        self._begins_at = NEVER  # for one that takes part
        self._again_at = NEVER  # for one that does not

    def follow(self, rule: Participation) -> None:
        """A plan came. Under another rule what was drawn is void; a slot is kept."""
        if rule != self.rule:
            self.rule = rule
            self._forget()

    def take(self, slot: Slot, now: float) -> Lease | None:
        """Hold a slot instead of any before it; nothing for one that came already."""
        if slot.slot == self._slot:
            return None
        self._slot = slot.slot
        self.lease = Lease(slot.slot, slot.version, now + slot.expires_in_s)
        return self.lease

    def expire(self, now: float) -> bool:
        """Let go of a slot whose time is over; whether it was."""
        if self.lease is None or now < self.lease.ends_at:
            return False
        self.lease = None
        return True

    def draw(self, version: int, again_s: float, now: float, rng: Generator) -> None:
        """Decide, once a version that may be trained: whether, and when. Open participation only.

        Who waits for its moment trains the newest version then. Who sits a version out draws again if it is still the
        newest after `again_s`: else a version that nobody drew would be the last.
        """
        rule = self.rule
        if rule.invited or rule == OPEN or self._begins_at < NEVER:
            return
        if version > self._decided or now >= self._again_at:
            self._decided, self._again_at = version, now + again_s
            if rng.random() < rule.share:
                self._begins_at, self._again_at = now + rule.spread_s * rng.random(), NEVER

    def may_begin(self, version: int, now: float) -> bool:
        """Whether to train `version` now."""
        if self.rule.invited:
            return self.lease is not None and now < self.lease.ends_at and version >= self.lease.version
        return self.rule == OPEN or now >= self._begins_at

    def begin(self) -> str:
        """A training begins: the slot that it is for is used, what was drawn too. The slot's id, or nothing."""
        lease, self.lease = self.lease, None
        self._forget()
        return lease.slot if lease else ""

    def waits_for(self, version: int) -> str:
        """What keeps `version` from being trained, for people."""
        if self.rule.invited:
            if self.lease is None:
                return UNINVITED
            return f"invited; waiting for version {self.lease.version}" if version < self.lease.version else ""
        if self.rule == OPEN or self._begins_at < NEVER:
            return ""
        return f"sits version {version} out"

    def wake_at(self, now: float) -> float:
        """When that changes by itself."""
        times = (self.lease.ends_at if self.lease else NEVER, self._begins_at, self._again_at)
        return min((time for time in times if time > now), default=NEVER)

    def _forget(self) -> None:
        self._decided, self._begins_at, self._again_at = -1, NEVER, NEVER
