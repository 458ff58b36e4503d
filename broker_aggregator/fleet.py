"""Who belongs to the fleet, who is alive, and what each update was told."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import DeviceInfo, DeviceState, Result

KEPT_VERDICTS = 64  # per incarnation; below the oldest of these an update is E_OLD
KEPT_INCARNATIONS = 64  # re-flashes of one device under one key
REFUSALS = 64  # in a row that a device is told for good, and that the ledger keeps; then one in
REFUSAL_S = 10.0  # so many seconds


@dataclass
class Ledger:
    """Verdicts of one incarnation of a device, newest last. seq only grows; below `low` all is known and forgotten."""

    low: int = 0
    verdicts: OrderedDict[int, Result] = field(default_factory=OrderedDict)

    def find(self, seq: int) -> Result | None:
        """The stored verdict, None for an update never seen. Raises `ProtocolError(E_OLD)` below the mark."""
        if seq < self.low:
            raise ProtocolError(Code.OLD, f"seq {seq} is below {self.low}; its verdict was given long ago")
        return self.verdicts.get(seq)

    def record(self, verdict: Result) -> None:
        """Remember a final verdict, and forget the oldest beyond the bound."""
        self.verdicts[verdict.seq] = verdict
        while len(self.verdicts) > KEPT_VERDICTS:
            oldest = min(self.verdicts)
            del self.verdicts[oldest]
            self.low = oldest + 1


@dataclass
class Allowance:
    """A bucket of refusals, so that a device that only sends rubbish costs a bounded number of rows and checks."""

    left: float = REFUSALS
    at: float = 0.0

    def is_spent(self, now: float) -> bool:
        """Whether there is none left at `now`, monotonic seconds."""
        self.left = min(REFUSALS, self.left + max(0.0, now - self.at) / REFUSAL_S)
        self.at = now
        return self.left < 1

    def take(self) -> None:
        """One was told."""
        self.left -= 1


@dataclass
class Device:
    """One device as the gateway knows it. `public_key` is hex; a revoked one may say nothing."""

    id: str
    public_key: str
    revoked: bool = False
    state: DeviceState | None = None
    ledgers: dict[str, Ledger] = field(default_factory=dict)
    refusals: Allowance = field(default_factory=Allowance)
    info: DeviceInfo | None = None

    @property
    def active(self) -> bool:
        """Whether it is connected, as far as anybody knows."""
        return self.state is not None and self.state.state not in ("lost", "disconnected")

    def ledger(self, incarnation: str) -> Ledger:
        """The ledger of an incarnation. Raises `ProtocolError(E_QUOTA)` for one re-flash too many."""
        if incarnation not in self.ledgers and len(self.ledgers) >= KEPT_INCARNATIONS:
            raise ProtocolError(Code.QUOTA, f"{self.id} had {KEPT_INCARNATIONS} incarnations; give it a new id and key")
        return self.ledgers.setdefault(incarnation, Ledger())

    def heard(self, state: DeviceState) -> bool:
        """Take a state message; False for one that is older than the last, as a will that comes late is.

        Two incarnations have no order: a live word of another one is taken, since the device may have been flashed
        anew, but not its will.
        """
        last = self.state
        if last is not None:
            same_life = state.incarnation == last.incarnation
            if state.order < last.order if same_life else state.state == "lost":
                return False
        self.state = state
        return True


@dataclass(frozen=True)
class Claim:
    """A ticket that was given out. `key` is the fingerprint of the first public key that asked by it, once one did."""

    id: str
    device: str  # the name that its device gets
    expires_ms: int
    hardware: str = ""  # the one machine that may use it, by its serial number; empty: any
    key: str = ""
    public_key: str = ""  # what that device signs updates with
    machine: str = ""  # the serial number that it told
    approved: bool = False
    refused: int = 0  # requests, and why the last one was
    why: str = ""
    secret: str = field(default="", repr=False)  # kept only where the key that it was made of was rotated away


@dataclass(frozen=True)
class Certificate:
    """What the authority issued to a device. `serial` in hex; `key` is its public key's fingerprint."""

    serial: str
    device: str
    key: str
    pem: str
    expires_ms: int
    claim: str = ""  # by which it was issued; empty for a renewal
    revoked_ms: int = 0


@dataclass
class Fleet:
    """All devices by id."""

    devices: dict[str, Device] = field(default_factory=dict)
    _present: tuple[str, ...] | None = None

    @property
    def present(self) -> tuple[str, ...]:
        """The devices that are connected and may take part, by id; the same tuple until that changes."""
        if self._present is None:
            self._present = tuple(sorted(d.id for d in self.devices.values() if d.active and not d.revoked))
        return self._present

    def changed(self) -> None:
        """Somebody came, went, was let in or sent away."""
        self._present = None

    def member(self, device: str) -> Device:
        """The device of that id. Raises `ProtocolError(E_AUTH)` for a stranger or a revoked one."""
        known = self.devices.get(device)
        if known is None:
            raise ProtocolError(Code.AUTH, f"device {device} is not in this fleet; the operator may allow it")
        if known.revoked:
            raise ProtocolError(Code.AUTH, f"device {device} was revoked")
        return known

    @property
    def num_allowed(self) -> int:
        """How many may take part: those that were revoked may not."""
        return sum(not d.revoked for d in self.devices.values())

    @property
    def num_active(self) -> int:
        """How many are connected."""
        return sum(d.active for d in self.devices.values())


@dataclass(frozen=True)
class CommandRecord:
    """A command of a device, and what became of it; `asked` until the device says something."""

    id: str
    device: str
    name: str
    arguments: dict[str, str]
    asked_ms: int
    deadline_ms: int
    status: str = "asked"  # then as `CommandProgress` has it
    code: str = ""
    why: str = ""
    lines: list[str] | None = None  # of the device's log
    health: dict[str, Any] | None = None
    ended_ms: int = 0

    @property
    def open(self) -> bool:
        """Whether an answer is waited for."""
        return self.status in ("asked", "executing")


@dataclass(frozen=True)
class Configuration:
    """What is wanted of a device, key by key, as text."""

    device: str
    revision: int
    settings: dict[str, str]
