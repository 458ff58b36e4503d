"""Who gets in: claims, certificates, renewals, revocations. A part of the gateway's heart: no I/O, no clock.

A claim is open until it has expired. The first public key that asks by it, with a proof, binds it: from then on the
same key gets the same certificate as often as it asks, and every other one is E_CLAIM. Once the device has been heard
over its own certificate the claim is gone. The name in a certificate is the claim's, whatever the request says.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from broker_aggregator.admission import Rejected
from broker_aggregator.events import (
    CloseSession,
    Effect,
    Note,
    RemoveClaim,
    SaveCertificate,
    SaveClaim,
    SaveDevice,
    Send,
    WriteRevocations,
)
from broker_aggregator.fleet import Allowance, Certificate, Claim, Device
from fl_protocol.enrolling import is_proven, verify_renewal
from fl_protocol.errors import Code, ConfigError, ProtocolError
from fl_protocol.messages import Certified, Enroll, Renew
from fl_protocol.topics import Kind, build

if TYPE_CHECKING:
    from broker_aggregator.coordinator import Coordinator

WAIT_S = 30  # until a device that waits for approval asks again
REFUSED_S = 3600
HOUR_MS = 3_600_000
FORGOTTEN_MS = 30 * 24 * HOUR_MS
MAX_VALID = 8  # certificates of one device, at a time: two are in use where one is renewed
NO_KEY = "0" * 64
RESERVED = frozenset({"aggregator", "operator", "monitor", "enrollment", "root", "localhost"})  # user names
RESERVED_BEGINNINGS = ("gateway-", "op-")  # of client ids


@dataclass(frozen=True)
class Admission:
    """Whom the operator lets in: claims wait for `approve`; `hardware` lists serial numbers, empty lets all in."""

    approve: bool = False
    hardware: frozenset[str] = frozenset()
    days: int = 365  # a device's certificate


class Issuer(Protocol):
    """The certificate authority, as the heart knows it."""

    def key_of(self, csr: str) -> str:
        """The fingerprint of the key that a request is for. Raises `ProtocolError(E_SCHEMA)` for a bad request."""

    def issue(self, device: str, csr: str, now_ms: int, days: int) -> Certificate:
        """A certificate for that key under this name; of the request nothing else counts."""


@dataclass
class Enrollment:
    """What the gateway knows of claims and certificates; `secret_of` makes a claim's secret again."""

    authority: Issuer
    secret_of: Callable[[str], str]
    admission: Admission = field(default_factory=Admission)
    claims: dict[str, Claim] = field(default_factory=dict)
    certificates: dict[str, Certificate] = field(default_factory=dict)  # by serial number, hex
    refusals: Allowance = field(default_factory=Allowance)  # of strangers, all together

    # --- what devices ask ---

    def asked(self, at: "Coordinator", claim: str, request: Enroll, now_ms: int) -> Iterator[Effect]:
        """A device that nobody knows yet asks for its first certificate."""
        key = NO_KEY
        try:
            key = self._key(request.csr)
            answer = yield from self._claimed(at, claim, request, key, now_ms)
        except Rejected as refused:
            if self.refusals.is_spent(now_ms / 1000):
                return  # a flood costs nothing but its reading
            self.refusals.take()
            yield Note("warning", f"{refused.code}: claim {claim}: {refused.why}")
            answer = _refusal(key, refused)
            if (known := self.claims.get(claim)) is not None:
                self.claims[claim] = replace(known, refused=known.refused + 1, why=refused.why)
                yield SaveClaim(self.claims[claim])
        yield Send(at.say.topic(Kind.ENROLLED, claim=claim), answer)

    def _claimed(
        self, at: "Coordinator", name: str, request: Enroll, key: str, now_ms: int
    ) -> Generator[Effect, None, Certified]:
        claim = self.claims.get(name)
        if claim is None:
            raise Rejected("rejected", Code.CLAIM, "there is no such claim: its ticket was used, or withdrawn")
        if not is_proven(request, claim.secret or self.secret_of(name), at.fleet_name, name):
            raise Rejected("rejected", Code.CLAIM, "the proof is not by this claim's secret")
        if claim.key and claim.key != key:
            raise Rejected("rejected", Code.CLAIM, "another device has used this ticket: is there a copy of its card?")
        if not claim.key:
            if now_ms > claim.expires_ms:
                raise Rejected("rejected", Code.CLAIM, "the ticket has expired")
            allowed = {claim.hardware} if claim.hardware else self.admission.hardware
            if allowed and request.hardware not in allowed:
                raise Rejected(
                    "rejected", Code.AUTH, f"the machine {request.hardware or 'without a serial number'} is not listed"
                )
            claim = replace(claim, key=key, public_key=request.public_key, machine=request.hardware)
            self.claims[name] = claim
            yield SaveClaim(claim)
            yield Note("info", f"claim {name}: device {claim.device} asks with the key {key[:16]}")
        if self.admission.approve and not claim.approved:
            return Certified(status="waiting", key=key, why="the operator has to approve it", retry_in_s=WAIT_S)
        of_it = (c for c in self.certificates.values() if c.claim == name)
        issued = next((c for c in of_it if not c.revoked_ms and c.expires_ms > now_ms), None)
        if issued is None:
            yield from self._void(claim.device, now_ms)  # a card was flashed anew: what it had before is void
            issued = yield from self._issue(claim.device, request.csr, now_ms, name)
            device = at.fleet.devices.setdefault(claim.device, Device(claim.device, claim.public_key))
            device.public_key, device.revoked = claim.public_key, False
            at.fleet.changed()
            yield SaveDevice(device.id, device.public_key)
            yield at.say.desired(device.id, at.tasks)
        return _issued(issued)

    def renew(self, at: "Coordinator", device: Device, request: Renew, now_ms: int) -> Iterator[Effect]:
        """A device of the fleet asks for its next certificate; the one that it has stays good until its own end."""
        key = NO_KEY
        try:
            try:
                verify_renewal(request, device.public_key, at.fleet_name, device.id)
            except ProtocolError as error:
                raise Rejected("rejected", error.code, error.message) from None
            key = self._key(request.csr)
            same = [c for c in self.certificates.values() if c.device == device.id and c.key == key]
            if any(c.revoked_ms for c in same):
                raise Rejected("rejected", Code.AUTH, "this key was revoked")
            issued = next((c for c in same if c.expires_ms > now_ms), None)
            if issued is None:
                self._check_room(device.id, now_ms)
                issued = yield from self._issue(device.id, request.csr, now_ms, "")
            answer = _issued(issued)
        except Rejected as refused:
            yield Note("warning", f"{refused.code}: {device.id} asks for a certificate: {refused.why}")
            answer = _refusal(key, refused)
        yield at.say.to(device.id, Kind.CERTIFICATE, answer)

    def seen(self, device: str, public_key: str) -> Iterator[Effect]:
        """The device spoke on its own topics: it has its certificate, and the claim has served."""
        for claim in [c for c in self.claims.values() if c.device == device and c.public_key == public_key]:
            if any(c.claim == claim.id for c in self.certificates.values()):
                del self.claims[claim.id]
                yield RemoveClaim(claim.id)
                yield Note("info", f"{device} has enrolled; claim {claim.id} is used up")

    def _check_room(self, device: str, now_ms: int) -> None:
        of_it = (c for c in self.certificates.values() if c.device == device)
        if sum(not c.revoked_ms and c.expires_ms > now_ms for c in of_it) >= MAX_VALID:
            raise Rejected("rejected", Code.QUOTA, f"{device} has {MAX_VALID} certificates that are good")

    def _key(self, csr: str) -> str:
        try:
            return self.authority.key_of(csr)
        except ProtocolError as error:
            raise Rejected("rejected", error.code, error.message) from None

    def _issue(self, device: str, csr: str, now_ms: int, claim: str) -> Generator[Effect, None, Certificate]:
        issued = replace(self.authority.issue(device, csr, now_ms, self.admission.days), claim=claim)
        self.certificates[issued.serial] = issued
        yield SaveCertificate(issued)
        yield Note("info", f"{device}: certificate {issued.serial[:16]} for the key {issued.key[:16]}")
        return issued

    # --- what the operator asks ---

    def claim(
        self, at: "Coordinator", name: str, device: str, now_ms: int, hours: int, hardware: str, *, again: bool
    ) -> Iterator[Effect]:
        """A new claim for a device. Raises `ConfigError` for a device that is there already, unless `again`.

        Tickets that nobody used are forgotten a month after they expired.
        """
        try:
            str(at.say.topic(Kind.ENROLL, claim=name))
        except ProtocolError as error:
            raise ConfigError(error.message, "ids are 1..64 of a-z, 0-9 and -") from None
        check_device_name(device)
        if device in at.fleet.devices and not again:
            raise ConfigError(
                f"there is a device {device} already", "--again lets a card that was flashed anew take its place"
            )
        for other in list(self.claims.values()):
            if other.device == device or (not other.key and now_ms > other.expires_ms + FORGOTTEN_MS):
                del self.claims[other.id]  # one ticket a device: the one before is void
                yield RemoveClaim(other.id)
        self.claims[name] = Claim(id=name, device=device, expires_ms=now_ms + hours * HOUR_MS, hardware=hardware)
        yield SaveClaim(self.claims[name])

    def approve(self, name: str) -> Iterator[Effect]:
        """Let the device in that waits by this claim. Raises `ConfigError` where none does."""
        claim = self.claims.get(name)
        if claim is None or not claim.key:
            waiting = ", ".join(sorted(c.id for c in self.claims.values() if c.key)) or "none"
            raise ConfigError(f"no device waits by the claim {name}", f"waiting: {waiting}")
        self.claims[name] = replace(claim, approved=True)
        yield SaveClaim(self.claims[name])

    def withdraw(self, name: str) -> Iterator[Effect]:
        """The ticket is worth nothing any more. Raises `ConfigError` for one that is not there."""
        if name not in self.claims:
            raise ConfigError(f"there is no claim {name}", f"claims: {', '.join(sorted(self.claims)) or 'none'}")
        del self.claims[name]
        yield RemoveClaim(name)

    def keep_secrets(self) -> Iterator[Effect]:
        """Tickets that are out stay good when the key goes of which their secrets are made."""
        for name, claim in self.claims.items():
            if not claim.secret:
                self.claims[name] = replace(claim, secret=self.secret_of(name))
                yield SaveClaim(self.claims[name])

    def revoke(self, device: str, now_ms: int) -> Iterator[Effect]:
        """All certificates and tickets of a device are void, one that is bound to its key too; nothing without any."""
        for claim in [c for c in self.claims.values() if c.device == device]:
            del self.claims[claim.id]
            yield RemoveClaim(claim.id)
        yield from self._void(device, now_ms)

    def _void(self, device: str, now_ms: int) -> Iterator[Effect]:
        valid = [c for c in self.certificates.values() if c.device == device and not c.revoked_ms]
        for one in valid:
            self.certificates[one.serial] = replace(one, revoked_ms=now_ms)
            yield SaveCertificate(self.certificates[one.serial])
        if valid:
            yield self.revocations()
            yield CloseSession(device)

    def revocations(self) -> WriteRevocations:
        """What the broker has to know."""
        return WriteRevocations(tuple(c for c in self.certificates.values() if c.revoked_ms))


def check_device_name(name: str) -> None:
    """Raises `ConfigError` for what is no id, and for one by which a device could speak for the gateway.

    The broker takes the name in a certificate for user name and client id: a device called `aggregator` would have its
    rights, and one called `gateway-farm` its session.
    """
    try:
        build(Kind.STATE, "fleet", device=name)
    except ProtocolError as error:
        raise ConfigError(error.message, "a device's id is 1..64 of a-z, 0-9 and -") from None
    if name in RESERVED or name.startswith(RESERVED_BEGINNINGS):
        raise ConfigError(f"no device may be called {name}: the gateway's own programs are", "give it another id")


def _issued(one: Certificate) -> Certified:
    return Certified(status="issued", key=one.key, device=one.device, certificate=one.pem)


def _refusal(key: str, refused: Rejected) -> Certified:
    return Certified(status="refused", key=key, code=refused.code or "", why=refused.why[:400], retry_in_s=REFUSED_S)
