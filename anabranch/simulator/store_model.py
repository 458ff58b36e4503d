"""The gateway's store in memory: what `broker_aggregator.store.SqliteStore` means, on a disk that can fail.

Rows hold the effects' own objects, never changed and never encoded: a run of 100,000 updates spends its time elsewhere.
tests/contracts/test_store.py and test_stores_agree.py hold the two stores to each other.
"""

import sqlite3
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from anabranch.simulator.journal import Journal, Table
from anabranch.simulator.power import CrashPoint, never
from broker_aggregator import events as e
from broker_aggregator.fleet import Certificate, Claim, CommandRecord, Configuration, Device
from broker_aggregator.releasing import Buffered
from broker_aggregator.restoring import KeptCanary, KeptTask, Loaded, not_kept, restored_fleet, restored_task
from broker_aggregator.rollout import Attempt, Rollout
from broker_aggregator.store import DISPOSALS
from broker_aggregator.task import KEPT_NORMS
from fl_protocol.messages import DeviceInfo, DeviceState, Plan, Reported, Result, Update
from fl_protocol.tensors import ModelLayout, vector_bytes

Name = tuple[str, str, int]  # device, incarnation, seq


class Row(NamedTuple):
    """One update in the ledger: what it was told, and what became of it. A tuple, for there are 100,000 of them."""

    device: str
    incarnation: str
    seq: int
    task: str  # with `#` and the time behind it, once that was deleted
    base_version: int
    num_bytes: int
    verdict: Result  # as first told
    disposal: str | None = None  # "buffered" | "counted" | "quarantined", None: was refused
    version: int | None = None  # that counted it; of a canary, or withheld: that would have
    place: int | None = None  # in the order of summation
    staleness: int | None = None  # when it was counted
    why: str = ""
    norm: float | None = None
    scale: float | None = None
    update: Update | None = None  # None once pruned


class _Version(NamedTuple):
    """One release and what it measured; `release` is None once pruned."""

    release: e.Release | None
    share: float
    sha256: str
    value: float | None = None
    loss: float | None = None
    state: e.ReleaseState = "released"


class _Member(NamedTuple):
    """A device."""

    public_key: str
    revoked: bool
    state: DeviceState | None = None
    info: DeviceInfo | None = None


def _heard(member: _Member, state: DeviceState | DeviceInfo | Reported) -> _Member:
    if isinstance(state, DeviceInfo):
        return member._replace(info=state)
    return member._replace(state=state) if isinstance(state, DeviceState) else member


class MemoryStore(Journal[e.Durable]):
    """`broker_aggregator.storage.Store`, and what the checker asks of its disk. See `Journal` for how it fails."""

    __slots__ = (
        "_attempts",
        "_certificates",
        "_claims",
        "_commands",
        "_configurations",
        "_counters",
        "_devices",
        "_ledger",
        "_plans",
        "_releases",
        "_reported",
        "_rollouts",
        "_suspects",
        "_tasks",
        "keep_releases",
    )

    def __init__(self, crash_point: CrashPoint = never, keep_releases: int = 200, *, synchronous: bool = True) -> None:
        super().__init__(crash_point, synchronous=synchronous)
        self.keep_releases = keep_releases
        self._counters: Table[int] = {}
        self._devices: Table[_Member] = {}
        self._claims: Table[Claim] = {}
        self._certificates: Table[Certificate] = {}
        self._commands: Table[CommandRecord] = {}
        self._configurations: Table[Configuration] = {}
        self._rollouts: Table[Rollout] = {}
        self._attempts: Table[Attempt] = {}  # by roll-out and device
        self._reported: Table[Reported] = {}
        self._tasks: Table[e.SaveTask] = {}
        self._plans: dict[str, Table[tuple[Plan, ModelLayout]]] = {}  # task -> revision
        self._releases: dict[str, Table[_Version]] = {}  # task -> version
        self._ledger: Table[Row] = {}  # by name; no row is ever deleted, so that its order is the record order
        self._suspects: Table[int] = {}

    # --- writing ---

    def next_counter(self, name: str) -> int:
        """One more than the last."""
        value = self._counters.get(name, 0) + 1
        self._set(self._counters, name, value)
        self._done()
        return value

    def suspect(self, digest: str) -> None:
        """A delivery was in hand when something raised."""
        with self.transaction():
            self._set(self._suspects, digest, self._suspects.get(digest, 0) + 1)

    def apply(self, effect: e.Durable, ts: int) -> None:
        """Write one effect. Raises `sqlite3.IntegrityError` as SQLite does."""
        match effect:
            case e.RecordUpdate(update, verdict, num_bytes, norm, scale):
                name = update.device, update.incarnation, update.seq
                about = *name, update.task, update.base_version, num_bytes, verdict
                self._record(Row(*about, "buffered", norm=norm, scale=scale, update=update))
            case e.RecordVerdict(device, verdict, base_version, num_bytes):
                name = device, verdict.incarnation, verdict.seq
                self._record(Row(*name, verdict.task, base_version, num_bytes, verdict))
            case e.CommitRelease():
                self._commit(effect)
            case e.Promote(task, version):
                self._judge(task, version, "released", "counted", "")
            case e.Withhold(task, version, why):
                self._judge(task, version, "withheld", "quarantined", why)
            case e.Quarantine(used, why):
                for name in used:
                    self._set(self._ledger, name, self._waiting(name)._replace(disposal="quarantined", why=why))
            case e.SaveTask(plan, layout):
                self._set(self._tasks, plan.task, effect)
                plans = self._plans.setdefault(plan.task, {})
                _, first = plans.get(plan.revision, (plan, layout))  # a revision's layout is that of its first word
                self._set(plans, plan.revision, (plan, first))
            case e.SaveEvaluation(task, version, loss, value):
                if (row := self._of(task).get(version)) is not None:
                    self._set(self._releases[task], version, row._replace(value=_real(value), loss=_real(loss)))
            case e.RemoveTask(task):
                self._remove(task, ts)
            case e.SaveDevice(device, public_key, revoked):
                known = self._devices.get(device)
                self._set(self._devices, device, _Member(public_key, revoked, *(known[2:] if known else ())))
            case e.SaveClaim(claim):
                self._set(self._claims, claim.id, claim)
            case e.RemoveClaim(name):
                if name in self._claims:
                    self._delete(self._claims, name)
            case e.SaveCertificate(certificate):
                self._set(self._certificates, certificate.serial, certificate)
            case e.SaveCommand(command):
                self._set(self._commands, command.id, command)
            case e.RemoveCommand(name):
                if name in self._commands:
                    self._delete(self._commands, name)
            case e.SaveRollout(rollout):
                self._set(self._rollouts, rollout.id, rollout)
            case e.SaveAttempt(attempt):
                self._set(self._attempts, (attempt.rollout, attempt.device), attempt)
            case e.RemoveRollout(name):
                for key in [key for key in self._attempts if key[0] == name]:
                    self._delete(self._attempts, key)
                if name in self._rollouts:
                    self._delete(self._rollouts, name)
            case e.SaveConfiguration(configuration):
                self._set(self._configurations, configuration.device, configuration)
            case e.SaveState(device, Reported() as reported):
                self._set(self._reported, device, reported)
            case e.SaveState(device, state):
                if device in self._devices:
                    self._set(self._devices, device, _heard(self._devices[device], state))
            case e.SaveCounter(name, value):
                self._set(self._counters, name, max(value, self._counters.get(name, value)))
        self._done(effect)

    def _record(self, row: Row) -> None:
        name = row[:3]
        if name in self._ledger:
            raise sqlite3.IntegrityError(f"UNIQUE constraint failed: {name} is in the ledger")
        self._set(self._ledger, name, row)

    def _commit(self, effect: e.CommitRelease) -> None:
        release, disposal = effect.release, DISPOSALS[effect.state]
        versions = self._releases.setdefault(release.task, {})
        if release.version in versions:
            raise sqlite3.IntegrityError(f"UNIQUE constraint failed: {release.task} has version {release.version}")
        made = _Version(release, release.share, release.sha256, state=effect.state)
        self._set(versions, release.version, made)
        for place, (name, staleness) in enumerate(zip(release.used, release.staleness, strict=True)):
            row = self._waiting(name)
            counted = (*row[:7], disposal, release.version, place, staleness, effect.why, *row[12:])
            self._set(self._ledger, name, Row._make(counted))  # half the time of _replace
        self._prune(release.task, versions, release.version - self.keep_releases)

    def _judge(self, task: str, version: int, state: e.ReleaseState, disposal: str, why: str) -> None:
        row = self._of(task).get(version)
        if row is None or row.state != "canary" or row.release is None:
            raise sqlite3.IntegrityError(
                f"version {version} of {task} is not with the canary: it would be judged twice"
            )
        self._set(self._releases[task], version, row._replace(state=state))
        for name in row.release.used:
            self._set(self._ledger, name, self._ledger[name]._replace(disposal=disposal, why=why))

    def _waiting(self, name: Name) -> Row:
        row = self._ledger.get(name)
        if row is None or row.disposal != "buffered" or row.version is not None:
            raise sqlite3.IntegrityError(f"update {name} is not waiting in a buffer: it would be counted twice")
        return row

    def _prune(self, task: str, versions: Table[_Version], old: int) -> None:
        """Vectors and payloads of old releases go; their ledger rows stay."""
        for version, row in [(v, r) for v, r in versions.items() if v <= old and r.release is not None]:
            assert row.release is not None
            self._drop_updates(row.release)
            if version < old:
                self._set(versions, version, row._replace(release=None))
        if old < 0:
            return
        for name, entry in list(self._ledger.items()):
            of_none = entry.disposal == "quarantined" and entry.version is None and entry.base_version <= old
            if of_none and entry.task == task and entry.update is not None:
                self._set(self._ledger, name, entry._replace(update=None))

    def _drop_updates(self, release: e.Release) -> None:
        for name in release.used:
            if self._ledger[name].update is not None:
                self._set(self._ledger, name, self._ledger[name]._replace(update=None))

    def _remove(self, task: str, ts: int) -> None:
        tables: list[Table[Any]] = [self._of(task), self._plans.get(task, {})]
        for table in tables:
            for key in list(table):
                self._delete(table, key)
        if task in self._tasks:
            self._delete(self._tasks, task)
        for name, row in list(self._ledger.items()):
            if row.task == task:
                self._set(self._ledger, name, row._replace(task=f"{task}#{ts}", update=None))

    # --- reading ---

    def suspects(self) -> dict[str, int]:
        """How often each delivery was in hand at a crash."""
        return dict(sorted(self._suspects.items()))

    def load(self, now: float) -> Loaded:
        """Fleet, tasks with their buffers, counters."""
        devices = (
            Device(id_, m.public_key, m.revoked, m.state, info=m.info) for id_, m in sorted(self._devices.items())
        )
        attempts = sorted(self._attempts.items())
        verdicts = ((name[0], self._ledger[name].verdict) for name in sorted(self._ledger))
        return Loaded(
            restored_fleet(devices, verdicts),
            {task: restored_task(self._kept_task(self._tasks[task]), now) for task in sorted(self._tasks)},
            dict(sorted(self._counters.items())),
            dict(sorted(self._claims.items())),
            dict(sorted(self._certificates.items())),
            dict(sorted(self._commands.items())),
            dict(sorted(self._configurations.items())),
            dict(sorted(self._rollouts.items())),
            {id_: {device: a for (of, device), a in attempts if of == id_} for id_ in sorted(self._rollouts)},
        )

    def reported(self) -> dict[str, Reported]:
        """What configuration each device says that it has."""
        return dict(sorted(self._reported.items()))

    def _kept_task(self, saved: e.SaveTask) -> KeptTask:
        name = saved.plan.task
        plan, release = self.plan(name), self.release(name)
        since = {v: row for v, row in sorted(self._of(name).items()) if v >= plan.origin}
        made = [v for v, row in self._of(name).items() if row.share > 0 and row.state == "released"]
        canary = next((v for v, row in since.items() if row.state == "canary"), None)
        buffered, in_vain = [], 0
        numbers: Counter[str] = Counter()
        num_bytes: Counter[str] = Counter()
        norms: deque[float] = deque(maxlen=KEPT_NORMS)
        taken: dict[str, int] = {}
        for row in self._ledger.values():
            if row.task != name:
                continue
            numbers[row.verdict.verdict] += 1
            num_bytes[row.verdict.verdict] += row.num_bytes
            of_no_version = row.disposal is None or (row.disposal == "quarantined" and row.version is None)
            in_vain += of_no_version and row.base_version == release.version
            if row.disposal is not None:
                taken[row.device] = max(row.base_version, taken.get(row.device, -1))
            if row.disposal == "buffered" and row.version is None:
                buffered.append(_buffered(row))
            if row.norm is not None and row.scale is not None and row.base_version >= plan.origin:
                norms.append(row.norm * row.scale)
        return KeptTask(
            plan=plan,
            layout=saved.layout,
            metric=saved.metric,
            evaluation=saved.evaluation,
            elapsed_s=saved.elapsed_s,
            why=saved.why,
            release=release,
            made=len(made),
            buffered=buffered,
            in_vain=in_vain,
            measured=[(r.value, r.loss) for r in since.values() if r.value is not None and r.state == "released"],
            verdicts=[(verdict, numbers[verdict], num_bytes[verdict]) for verdict in numbers],
            norms=list(norms),
            better=saved.better,
            withheld=[v for v, row in since.items() if row.state == "withheld"],
            last_made=max(made, default=-1),
            canary=self._kept_canary(name, canary) if canary is not None else None,
            taken=sorted(taken.items()),
        )

    def _kept_canary(self, task: str, version: int) -> KeptCanary:
        row = self._of(task)[version]
        return KeptCanary(self.release(task, version), row.value, row.loss, self.counted_in(task, version))

    def plan(self, task: str, revision: int | None = None) -> Plan:
        """A task's plan, the newest revision unless told."""
        plans = self._plans[task]
        return plans[sorted(plans)[-1] if revision is None else revision][0]

    def layout(self, task: str, revision: int) -> ModelLayout:
        """The layout that a plan's revision trained."""
        return self._plans[task][revision][1]

    def releases(self, task: str) -> list[int]:
        """The released versions whose vector is still kept, oldest first."""
        return list(self.values(task))

    def values(self, task: str) -> dict[int, float | None]:
        """What those versions measured on the held-out set, None where they were not; oldest first."""
        kept = sorted(self._of(task).items())
        return {v: row.value for v, row in kept if row.release is not None and row.state == "released"}

    def release(self, task: str, version: int | None = None) -> e.Release:
        """A version with its vector, the newest released one unless told. Raises `ConfigError` for one not kept."""
        versions = self._of(task)
        newest = max((v for v, row in versions.items() if row.state == "released"), default=-1)
        row = versions.get(newest if version is None else version)
        if row is None or row.release is None:
            raise not_kept(task, version, self._tasks)
        return row.release

    def counted_in(self, task: str, version: int) -> list[Buffered]:
        """The updates that a kept version counted, or would have, in the order of their summation."""
        row = self._of(task).get(version)
        return [_buffered(self._ledger[name]) for name in row.release.used] if row and row.release else []

    def vector_bytes(self, sha256: str) -> bytes | None:
        """The kept version of that SHA-256 as devices fetch it, None where there is none."""
        for versions in self._releases.values():
            for row in reversed(versions.values()):
                if row.sha256 == sha256 and row.release is not None:
                    return vector_bytes(row.release.vector)
        return None

    # --- for the checker ---

    def rows(self) -> Iterator[Row]:
        """The ledger, in record order."""
        return iter(self._ledger.values())

    def durable_verdict(self, device: str, incarnation: str, seq: int) -> Result | None:
        """What an update was told, None unless that is on the disk."""
        row = self._synced(self._ledger).get((device, incarnation, seq))
        return row.verdict if row else None

    def durable_version(self, task: str) -> tuple[int, str] | None:
        """Number and SHA-256 of the newest released version that is on the disk, None where none is."""
        versions = {v: row for v, row in self._synced(self._of(task)).items() if row.state == "released"}
        newest = max(versions, default=None)
        return None if newest is None else (newest, versions[newest].sha256)

    def _of(self, task: str) -> Table[_Version]:
        return self._releases.get(task, {})


def _buffered(row: Row) -> Buffered:
    assert row.update is not None
    assert row.norm is not None
    assert row.scale is not None
    return Buffered(row.update, row.norm, row.scale, row.num_bytes)


def _real(value: float) -> float | None:
    """SQLite keeps what is not a number as NULL."""
    return value if value == value else None
