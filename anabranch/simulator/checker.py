"""What must hold whatever happens; held after every effect that it could be broken by.

The checker believes nobody's memory: it follows what the disks hold (`on_durable` of the stores' models, called right
after each fsync) and what leaves the machines, and keeps books of its own.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from anabranch.simulator.store_model import MemoryStore
from broker_aggregator import events as g
from broker_aggregator.releasing import digest, next_release
from edge_agent import events as d
from edge_agent.training import TrainingResult
from fl_protocol.bundle import Bundle
from fl_protocol.codec import decode_as
from fl_protocol.compression import make_compressor
from fl_protocol.compression.feedback import AGE, clip
from fl_protocol.messages import Envelope, Result, Update
from fl_protocol.tensors import Vector

Name = tuple[str, str, int]  # device, incarnation, seq
MAX_VIOLATIONS = 20
SLACK_S = 1.0  # a deadline is looked at every quarter of a second
ROUNDING = 2.0**-20  # of the largest value: float32 sums of three terms


@dataclass
class Books:
    """One device's residual account, in float64: sum(accepted) + residual + sum(discarded) = sum(deltas)."""

    deltas: np.ndarray
    accepted: np.ndarray
    discarded: np.ndarray
    residual: Vector
    largest: float = 0.0
    steps: int = 0
    pending: tuple[d.PendingUpdate, Vector, Vector] | None = None  # with its delta, and what the gateway will read


@dataclass
class Checker:
    """Broken invariants go to `violations`; `checks` counts how often each was looked at.

    With `thorough` False only what is cheap is checked as it happens; the rest waits for the end of the run.
    """

    store: MemoryStore
    bundle: Bundle
    now: Callable[[], float]
    thorough: bool = True
    violations: list[str] = field(default_factory=list)
    checks: Counter[str] = field(default_factory=Counter)
    verdicts: dict[Name, str] = field(default_factory=dict)  # durable on the gateway
    disposed: dict[Name, int] = field(default_factory=dict)  # version, or -1 for quarantined
    versions: dict[tuple[str, int], str] = field(default_factory=dict)  # (task, version) -> SHA-256
    released: dict[str, int] = field(default_factory=dict)  # SHA-256 -> the first version that it was
    states: dict[tuple[str, int], g.ReleaseState] = field(default_factory=dict)  # of (task, version)
    tried: set[tuple[str, int]] = field(default_factory=set)  # (task, version) of every canary
    set_aside: dict[tuple[str, int], tuple[Name, ...]] = field(default_factory=dict)  # what a canary's version used
    settled: dict[Name, str] = field(default_factory=dict)  # durable on the devices
    books: dict[str, Books] = field(default_factory=dict)
    _newest: dict[str, tuple[int, int]] = field(default_factory=dict)  # device -> boot, bseq of its last live word
    _waits: dict[str, tuple[object, float]] = field(default_factory=dict)  # task -> what waits, since when
    _learnt: dict[str, TrainingResult] = field(default_factory=dict)
    _bases: dict[str, Vector] = field(default_factory=dict)

    def complain(self, what: str) -> None:
        """An invariant is broken."""
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(f"at {self.now():.3f} s: {what}")

    def _hold(self, rule: str, holds: bool, what: str) -> None:
        self.checks[rule] += 1
        if not holds:
            self.complain(f"{rule}: {what}")

    # --- the gateway's disk ---

    def on_store(self, effects: Sequence[g.Durable]) -> None:
        """A transaction of the gateway's store is on its disk."""
        for effect in effects:
            match effect:
                case g.RecordUpdate(update, verdict):
                    self._verdict_is_new((update.device, update.incarnation, update.seq), verdict)
                case g.RecordVerdict(device, verdict):
                    self._verdict_is_new((device, verdict.incarnation, verdict.seq), verdict)
                case g.CommitRelease(release, state):
                    self._release(release, state)
                case g.Promote(task, version):
                    self._judged(task, version, "released")
                case g.Withhold(task, version):
                    self._judged(task, version, "withheld")
                case g.Quarantine(used):
                    for name in used:
                        self._dispose(name, -1)
                case _:
                    pass

    def _verdict_is_new(self, name: Name, verdict: Result) -> None:
        known = self.verdicts.get(name)
        self._hold("one verdict an update", known is None, f"{name} was {known} and is {verdict.verdict} now")
        self.verdicts[name] = verdict.verdict

    def _dispose(self, name: Name, version: int, *, aside: bool = False) -> None:
        accepted, before = self.verdicts.get(name) == "accepted", self.disposed.get(name)
        others = not aside and any(name in used for used in self.set_aside.values())
        self._hold("set aside for one version", not others, f"{name} goes to {version}, and the canary tries it")
        self._hold("accepted before counted", accepted, f"{name} goes to {version}, but was {self.verdicts.get(name)}")
        self._hold("counted once", before is None, f"{name} went to {before}, and goes to {version} now")
        self.disposed[name] = version

    def _judged(self, task: str, version: int, state: g.ReleaseState) -> None:
        """The canary's version is counted or quarantined, with all that it used."""
        before = self.states.get((task, version))
        self._hold("judged once", before == "canary", f"version {version} was {before}, and is {state} now")
        self.states[task, version] = state
        for name in self.set_aside.pop((task, version), ()):
            self._dispose(name, version if state == "released" else -1, aside=True)

    def _release(self, release: g.Release, state: g.ReleaseState) -> None:
        self.states[release.task, release.version] = state
        if state == "canary":
            self.tried.add((release.task, release.version))
            self.set_aside[release.task, release.version] = release.used
        else:
            for name in release.used:
                self._dispose(name, release.version if state == "released" else -1)
        devices = [device for device, _, _ in release.used]
        one_each = len(set(devices)) == len(devices)
        self._hold("one slot a device", one_each, f"version {release.version} counts a device twice: {devices}")
        before = self.versions.setdefault((release.task, release.version), release.sha256)
        self._hold(
            "one vector a version", before == release.sha256, f"version {release.version} was {before:.8} before"
        )
        self.released.setdefault(release.sha256, release.version)
        if self.thorough and release.used:
            again = self.made_again(release.task, release.version)
            self._hold(
                "rebuilt bit for bit", again == release.sha256, f"version {release.version} is made again as {again}"
            )

    def made_again(self, task: str, version: int) -> str:
        """The SHA-256 of a version made once more from its predecessor and its updates, as the store has them."""
        store = self.store
        release, base = store.release(task, version), store.release(task, version - 1)
        plan, layout = store.plan(task, release.plan_revision), store.layout(task, release.plan_revision)
        used = store.counted_in(task, version)
        with np.errstate(over="ignore", invalid="ignore"):
            again = next_release(plan, layout, base, used, release.elapsed_s, release.staleness, release.share)
        return again.sha256

    # --- what leaves the gateway ---

    def acknowledges(self, name: Name, *, told: bool) -> None:
        """The PUBACK of an update leaves; `told`: so did a verdict on it, in the same turn, which is checked there."""
        durable = told or self.store.durable_verdict(*name) is not None
        self._hold("durable before PUBACK", durable, f"{name} is acknowledged, and is not on the disk")

    def tells(self, device: str, result: Result) -> None:
        """A verdict leaves."""
        if result.verdict == "accepted" or result.repeat:
            known = self.store.durable_verdict(device, result.incarnation, result.seq)
            name = device, result.incarnation, result.seq
            same = known is not None and known.verdict == result.verdict
            found = known and known.verdict
            self._hold("durable before told", same, f"{name} is told {result.verdict}; the disk has {found}")

    def announces(self, task: str, version: int, sha256: str, channel: str) -> None:
        """A manifest leaves: the fleet's with a version that is released, the canary's with one to be tried."""
        state = self.states.get((task, version))
        fits = (task, version) in self.tried if channel == "canary" else state == "released"
        self._hold("only what passed is published", fits, f"version {version}, {state}, is announced as {channel}")
        known = self.versions.get((task, version))
        self._hold(
            "durable before announced",
            known == sha256,
            f"version {version} {sha256:.8} is announced; the disk has {known}",
        )

    def hears(self, device: str, boot: int, bseq: int, state: str) -> None:
        """The gateway takes a device's word about itself."""
        if state != "lost":
            self._newest[device] = max(self._newest.get(device, (0, 0)), (boot, bseq))

    def believes(self, device: str, boot: int, bseq: int, state: str) -> None:
        """What the gateway takes the device to be, after its turn."""
        newest = self._newest.get(device, (0, 0))
        stale = state == "lost" and (boot, bseq) < newest
        self._hold("no stale will", not stale, f"{device} is held lost by {(boot, bseq)}, after word of {newest}")

    def waits(self, task: str, deadline_s: float, oldest: object) -> None:
        """After a turn: `oldest` is the version and the update that a running task's buffer begins with, if any."""
        if oldest is None:
            self._waits.pop(task, None)
            return
        known, since = self._waits.get(task, (None, 0.0))
        if known != oldest:
            self._waits[task] = oldest, self.now()
            return
        waited = self.now() - since
        self._hold(
            "deadline kept", waited <= deadline_s + SLACK_S, f"{oldest} waits for a release since {waited:.0f} s"
        )

    def gateway_starts(self) -> None:
        """Another process: its deadlines begin anew."""
        self._waits.clear()

    # --- the devices ---

    def begins(self, device: str, order: d.Train) -> None:
        """A device begins to train."""
        if self.thorough:
            sha256 = digest(order.base)
            known = sha256 in self.released
            self._hold("only released versions", known, f"{device} trains {sha256:.8}, which no release was")
        self._bases[device] = order.base

    def learnt(self, device: str, order: d.Train, result: TrainingResult) -> None:
        """A training came to its end."""
        if self.thorough:
            self._learnt[device] = result
            self._bases[device] = order.base

    def on_outbox(self, device: str, effects: Sequence[object]) -> None:
        """A transaction of a device's outbox is on its disk."""
        for effect in effects:
            match effect:
                case d.SaveUpdate(update):
                    if self.thorough:
                        self._saved(device, update)
                case d.Settle(_, result):
                    self._settle(device, result)
                case _:
                    pass

    def _saved(self, device: str, pending: d.PendingUpdate) -> None:
        """delta + residual = what is sent + the residual that follows, and what is clipped off."""
        size = self.bundle.layout.num_parameters
        update = decode_as(Update, decode_as(Envelope, pending.sealed).body)
        sent = make_compressor(update.codec, self.bundle.layout).decompress(update.payload)
        result = self._learnt[device]
        delta = result.parameters - self._bases[device][:size]
        books = self.books.get(device)
        if books is None:
            zeros = np.zeros(size)
            books = self.books[device] = Books(zeros.copy(), zeros.copy(), zeros.copy(), np.zeros(size, np.float32))
        self._hold("one update in flight", books.pending is None, f"{device} saves a second update")
        wanted = delta + books.residual
        clip_norm = self.store.plan(update.task, update.plan_revision).clip_norm
        clipped = clip(wanted, float(clip_norm)) if clip_norm else wanted
        largest = float(np.abs(wanted).max(initial=0.0))
        off = float(np.abs(sent + pending.if_accepted - clipped).max(initial=0.0))
        refused = np.float32(AGE) * clip(wanted, 2 * float(np.linalg.norm(delta.astype(np.float64))))
        kept = off <= ROUNDING * largest and np.allclose(refused, pending.if_refused, rtol=1e-4, atol=1e-6 * largest)
        self._hold("residual conserves", bool(kept), f"{device} seq {pending.seq}: {off} of {largest} is lost")
        books.largest = max(books.largest, largest)
        books.pending = pending, delta, sent

    def _settle(self, device: str, result: Result) -> None:
        name = device, result.incarnation, result.seq
        known = self.verdicts.get(name)
        if known is None and result.code in ("E_OLD", "E_QUOTA"):
            known = result.verdict  # told without a row: what it says is that there will be none
        same = known == result.verdict
        self._hold("ledgers agree", same, f"{name} is {result.verdict} on the device, {known} on the gateway")
        before = self.settled.get(name)
        self._hold("settled once", before is None, f"{name} was settled as {before}, and is {result.verdict} now")
        self.settled[name] = result.verdict
        books = self.books.get(device)
        if not self.thorough or books is None or books.pending is None:
            return
        pending, delta, sent = books.pending
        books.pending = None
        wanted = delta.astype(np.float64) + books.residual
        accepted = result.verdict == "accepted"
        books.residual = pending.if_accepted if accepted else pending.if_refused
        books.deltas += delta
        books.accepted += sent if accepted else 0
        books.discarded += wanted - books.residual - (sent if accepted else 0)
        books.steps += 1
        total = books.accepted + books.residual + books.discarded
        off = float(np.abs(total - books.deltas).max(initial=0.0))
        bound = ROUNDING * books.largest * books.steps
        self._hold("residual conserves", off <= bound, f"{device}: the sums differ by {off}")

    def restored(self, device: str, restored: d.Restored, task: str) -> None:
        """What a device finds at its start is what it had made durable."""
        books = self.books.get(device)
        if not self.thorough or books is None:
            return
        residual = restored.residuals.get(task)
        vector = residual.vector if residual is not None else np.zeros_like(books.residual)
        self._hold("residual durable", np.array_equal(vector, books.residual), f"{device} starts with another residual")
        pending = [p for p in restored.pending if p.task == task]
        here = books.pending[0].seq if books.pending else None
        found = pending[0].seq if pending else None
        self._hold("outbox durable", here == found, f"{device} starts with update {found} in its outbox, had {here}")

    # --- bounds ---

    def bounded(self, what: str, size: float, most: float) -> None:
        """A queue or a memory stays within its bound."""
        self._hold("within bounds", size <= most, f"{what} holds {size}, at most {most}")
