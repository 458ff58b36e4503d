"""One learning job: its plan, its current version, its buffer, and when to release or to stop. Sans-I/O."""

import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np

from broker_aggregator import trials
from broker_aggregator.admission import MAX_WAITING, Header, Measure, Rejected, Standing, admit, admit_offer
from broker_aggregator.aggregation.recipes import tolerated
from broker_aggregator.buffering import Gathering, first_of_each
from broker_aggregator.events import (
    CommitRelease,
    Effect,
    Evaluate,
    Note,
    Promote,
    Quarantine,
    Release,
    SaveEvaluation,
    SaveTask,
)
from broker_aggregator.fleet import Fleet
from broker_aggregator.guarding import read_guard
from broker_aggregator.inviting import Invitations, Who
from broker_aggregator.measured import Measured
from broker_aggregator.participation import Invited
from broker_aggregator.releasing import Buffered, first_release, next_release, same_again
from broker_aggregator.slots import Lease
from fl_protocol.better import reaches
from fl_protocol.bundle import Bundle
from fl_protocol.errors import Code
from fl_protocol.messages import Offer, Plan, ReleaseMetrics, Result, TaskState, TaskStatus, Update
from fl_protocol.tensors import ModelLayout

KEPT_NORMS = 50
KEPT_REPORTS = 32  # versions whose device reports are still being collected
MAX_LISTED = 64  # devices in a metrics line, which stays under 12 KiB
MAX_RENEWALS = 6  # doublings of the time between two
MAX_REPORT_EXAMPLES = 1e6
FLOAT32 = 4  # bytes


@dataclass
class Task:
    """A task's state in memory; the store holds all that must outlive it."""

    plan: Plan
    layout: ModelLayout
    metric: str
    release: Release
    evaluation: str = ""
    elapsed_s: float = 0.0  # running time before `since`
    since: float = 0.0
    why: str = ""
    buffer: list[Buffered] = field(default_factory=list)
    in_vain: int = 0  # updates of this version that were refused: their devices will not train it again
    made: int = 0  # versions made of updates; what `stop.versions` counts
    renewals: int = 0  # since the last of those
    opened_at: float = 0.0  # when the first of the buffer came; in synchronous mode, when the version was released
    quiet_since: float = 0.0  # when this version was released; the deadlines of synchronous mode do not move it
    measured: Measured = field(default_factory=Measured)
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_NORMS))
    verdicts: Counter[str] = field(default_factory=Counter)
    bytes_up: int = 0
    unmeasured: dict[int, ReleaseMetrics] = field(default_factory=dict)
    values: dict[int, tuple[float, float]] = field(default_factory=dict)  # version -> (loss, value), just measured
    reports: dict[int, list[tuple[float, float]]] = field(default_factory=dict)  # version -> [(examples, value)]
    trial: trials.Trial | None = None  # a version that is not the fleet's yet; no other is made meanwhile
    withheld: list[int] = field(default_factory=list)  # versions since `plan.origin`
    last_made: int = -1  # the newest version made of updates
    words: dict[str, float] = field(default_factory=dict)  # device -> its last word on a published version
    refused_lines: list[ReleaseMetrics] = field(default_factory=list)  # of withheld versions, still to be said
    gathering: Gathering = field(default_factory=Gathering)
    invitations: Invitations = field(default_factory=Invitations)

    @classmethod
    def create(cls, plan: Plan, bundle: Bundle, evaluation: str, now: float) -> "Task":
        """A new task; its first version, `plan.origin`, is the bundle's initial parameters."""
        release = first_release(plan, bundle.layout, plan.origin, bundle.initial)
        task = cls(plan, bundle.layout, bundle.metric, release, evaluation, since=now, opened_at=now, quiet_since=now)
        task.measured.better = bundle.better
        return task

    # --- what it is ---

    def running_s(self, now: float) -> float:
        """Seconds that this task has been running, restarts left out."""
        return self.elapsed_s + (now - self.since if self.plan.state == "running" else 0.0)

    def saved(self, now: float) -> SaveTask:
        """The effect that makes plan and state durable."""
        better = self.measured.better
        return SaveTask(self.plan, self.layout, self.metric, self.evaluation, self.running_s(now), self.why, better)

    @property
    def withheld_in_a_row(self) -> int:
        """Versions withheld since the last good one."""
        return sum(version > self.last_made for version in self.withheld)

    @property
    def next_version(self) -> int:
        """The number that no version has had."""
        trying = [self.trial.release.version] if self.trial else []
        return max([self.release.version, *self.withheld, *trying]) + 1

    @property
    def on_trial(self) -> bool:
        """Whether a version waits for its judgement."""
        return self.trial is not None

    @property
    def canary(self) -> Release | None:
        """The version that a few devices try, if there is one."""
        return self.trial.release if self.trial and self.trial.with_canary else None

    @property
    def tried_by(self) -> tuple[str, ...]:
        """The devices of the canary, if there is one."""
        return self.trial.devices if self.trial and self.trial.with_canary else ()

    def offers(self, sha256: str) -> bool:
        """Whether a device may want the version of that SHA-256 now."""
        return sha256 == self.release.sha256 or (self.canary is not None and sha256 == self.canary.sha256)

    def reported(self) -> float | None:
        """The newest version's metric as the devices measured it on their own held-out examples."""
        return self.reported_of(max(self.reports)) if self.reports else None

    def reported_of(self, version: int) -> float | None:
        """The same of an earlier version; None where nobody said anything of it."""
        words = self.reports.get(version, ())
        return sum(n * value for n, value in words) / sum(n for n, _ in words) if words else None

    def middle_of(self, version: int) -> float:
        """The median word on a version of which there is one, whatever examples devices say that they have."""
        return median(value for _, value in self.reports[version])

    def status(self, devices: int, active: int) -> TaskStatus:
        """The page that people watch."""
        plain = self.verdicts["accepted"] * self.layout.size * FLOAT32
        return TaskStatus(
            task=self.plan.task,
            state=self.plan.state,
            version=self.release.version,
            revision=self.plan.revision,
            mode=self.plan.mode,
            metric=self.metric,
            value=self.measured.value,
            best=self.measured.best,
            loss=self.measured.loss,
            reported=self.reported(),
            buffered=len(self.buffer),
            buffer=self.plan.buffer,
            devices=devices,
            active=active,
            updates=dict(self.verdicts),
            bytes_up=self.bytes_up,
            bytes_up_float32=plain,
            ratio_up=round(plain / self.bytes_up, 2) if self.bytes_up else None,
            invited=self.invitations.shown(),
            withheld=len(self.withheld) or None,
            canary=self.canary.version if self.canary else None,
            why=self.why,
        )

    # --- updates come ---

    def admit(self, update: Update) -> Measure:
        """The measure of an update that passes every check. Raises `Rejected`."""
        return admit(update, self._standing(update, update.device))

    def _standing(self, header: Header, device: str) -> Standing:
        """Whoever tries the canary's version stands where the fleet will. Raises `Rejected` for a withheld one."""
        if header.base_version in self.withheld:
            raise Rejected("stale", Code.STALE, f"version {header.base_version} was withheld; a good one is published")
        canary = self.canary
        release = canary if canary and canary.version == header.base_version else self.release
        waiting = sum(b.update.device == device for b in self.buffer)
        taken, since = self.invitations.habits_of(device).taken, self.gathering.since(device)
        guard = read_guard(self.plan)
        # While a version is tried no buffer is used, and more comes than is counted: whoever tries one finds room.
        kept_free = guard is not None and release is not canary and guard.share(self.evaluation) > 0
        return Standing(
            self.plan,
            self.layout,
            release,
            self.norms,
            taken,
            waiting,
            since,
            MAX_WAITING - 1 if kept_free else MAX_WAITING,
        )

    def admit_offer(self, offer: Offer, device: str) -> None:
        """Tell a useless update so before its radio time is spent. Raises `Rejected`."""
        admit_offer(offer, self._standing(offer, device))

    def count(self, verdict: str, num_bytes: int) -> None:
        """Book what an update was told, and what it cost."""
        self.verdicts[verdict] += 1
        self.bytes_up += num_bytes

    def priced(self, result: Result, num_bytes: int) -> Result:
        """A verdict with the bytes that the update came in, and those that float32 would have taken."""
        if not num_bytes:
            return result  # its offer was answered, and nothing came
        plain = self.layout.size * FLOAT32
        return replace(result, bytes_up=num_bytes, bytes_up_float32=plain, ratio_up=f"{plain / num_bytes:.1f}")

    def accept(self, buffered: Buffered, now: float) -> None:
        """Put an admitted update into the buffer."""
        if not self.buffer and self.plan.mode == "asynchronous":
            self.opened_at = now
        self.buffer.append(buffered)
        self.invitations.came(buffered.update, now)
        self.norms.append(buffered.norm * buffered.scale)
        trials.hear(self, buffered.update)
        self.hear(buffered.update)

    def hear(self, update: Update) -> None:
        """What a device measured of the version that it trained from."""
        value = update.metrics.get("value", math.nan)
        weight = update.metrics.get("validation_examples", 1.0)
        if math.isfinite(value) and 1 <= weight <= MAX_REPORT_EXAMPLES:
            self.reports.setdefault(update.base_version, []).append((weight, value))
            for version in sorted(self.reports)[:-KEPT_REPORTS]:
                del self.reports[version]

    def next_buffer(self) -> list[Buffered]:
        """Who is counted next: the first update of each device, in record order, K at the most."""
        return first_of_each(self.buffer, self.plan.buffer)

    # --- releases ---

    def advance(self, now: float) -> Iterator[Effect]:
        """Release as often as there is reason to: a full buffer, or the deadline."""
        while self.plan.state == "running":
            if self.trial is not None:
                yield from trials.look(self, self.trial, now)
                if self.on_trial:
                    break
                continue
            due = self.gathering.due(self.plan, self.buffer, self.opened_at, now)
            if due.used:
                yield from self.flush(due.used, now)
                yield from self._flushed(due.tier, now)
                continue
            if self.in_vain and (due.late or not self.buffer) and self._quiet_s(now) >= self.plan.deadline_s:
                yield from self.renew(now)
                continue
            for tier in due.late:
                yield from self._wait_on(tier, now)
            break
        minutes = self.plan.stop.minutes
        if self.plan.state == "running" and minutes and self.running_s(now) >= 60 * minutes:
            yield from self.end("finished", f"ran for {minutes} minutes", now)

    def _flushed(self, tier: int, now: float) -> Iterator[Effect]:
        if self.trial is not None:
            self.trial.tier = tier  # its next cohort opens when the version does
        else:
            self.gathering.released(tier, self.release.version, now)
            yield from self.stop_at_versions(now)

    def _wait_on(self, tier: int, now: float) -> Iterator[Effect]:
        """What came is kept; the same version is open to everybody, and to others, for another deadline."""
        need = self.gathering.needs(self.plan)[tier].enough
        came = len(first_of_each(self.buffer, len(self.buffer), self.gathering.tiers, tier))
        if self.plan.mode == "synchronous":
            self.gathering.wait_on(tier, now)
            if not self.gathering.tiers:
                self.opened_at = now
            self.invitations.overdue(tier, self.plan.deadline_s, now)
        of_tier = f" of tier {tier}" if self.gathering.tiers else ""
        why = f"{came} of {need} updates at the deadline{of_tier}; waiting on"
        if why != self.why or self.plan.mode == "synchronous":
            yield Note("warning", f"{self.plan.task}: {why}")
        self.why = why

    def invite(self, fleet: Fleet, now: float) -> list[Lease]:
        """The slots that are given now, where the plan invites; and the tiers of who is there."""
        self.gathering.follow(self.plan, now)
        self.gathering.meet(fleet.present, lambda device: self.invitations.habits_of(device).seconds)
        terms = self.invitations.follow(self.plan, self.release.version, now)
        if not isinstance(terms, Invited):
            return []
        wanted = self.gathering.wanted(self.plan, terms, self.buffer, self.release.version)
        who = Who(fleet, {b.update.device for b in self.buffer}, self.gathering.tier_of)
        return self.invitations.turn(self.plan, self.release.version, wanted, who, now)

    def _quiet_s(self, now: float) -> float:
        """How long nothing came of this version; one renewal after the other counts half, so that they grow rare."""
        return (now - self.quiet_since) / float(2 ** min(self.renewals, MAX_RENEWALS))

    def flush(self, used: Sequence[Buffered], now: float) -> Iterator[Effect]:
        """Make the next version of `used`, and try it where the plan says so; of what is no model, none is made."""
        with np.errstate(over="ignore", invalid="ignore"):
            release = next_release(self.plan, self.layout, self.release, used, self.running_s(now))
        counted = {b.name for b in used}
        self.buffer = [b for b in self.buffer if b.name not in counted]
        if not np.isfinite(release.vector).all():
            why = f"with these, version {release.version} would not be finite"
            self.opened_at = self.quiet_since = now
            self.in_vain += len(used)
            yield Quarantine(tuple(b.name for b in used), why)
            yield Note("error", f"{self.plan.task}: {why}; quarantined {', '.join(b.update.device for b in used)}")
            return
        if self.plan.guard is not None:
            yield from trials.propose(self, release, now)
            return
        yield from self.made_one(release, None, now)
        yield from self.measure(now)

    def made_one(self, release: Release, promoted: Promote | None, now: float) -> Iterator[Effect]:
        """A version made of updates is the fleet's."""
        self.made, self.renewals, self.last_made = self.made + 1, 0, release.version
        yield from self.commit(release, now, promoted)

    def stop_at_versions(self, now: float) -> Iterator[Effect]:
        """End where that is what the plan waits for."""
        most = self.plan.stop.versions
        if self.plan.state == "running" and most and self.made >= most:
            yield from self.end("finished", f"released {self.made} versions", now)

    def renew(self, now: float) -> Iterator[Effect]:
        """The same parameters as a new version, for devices that have trained this one already and to no avail."""
        self.renewals += 1
        yield from self.commit(same_again(self.release, self.plan, self.running_s(now)), now)

    def commit(self, release: Release, now: float, promoted: Promote | None = None) -> Iterator[Effect]:
        """The newest version from now on; one that the canary had is promoted."""
        self.release, self.in_vain = release, 0
        self.opened_at = self.quiet_since = now
        self.why = ""
        yield promoted or CommitRelease(release)

    def restart_from(self, bundle: Bundle, now: float) -> Iterator[Effect]:
        """Another model: its initial parameters become version `plan.origin`, one above the last."""
        self.measured.better = bundle.better
        yield from self._begin(first_release(self.plan, bundle.layout, self.plan.origin, bundle.initial), now)

    def roll_back(self, to: Release, now: float) -> Iterator[Effect]:
        """The parameters of an earlier version, with the memory of its rule and optimizer, are `plan.origin`."""
        again = same_again(to, self.plan, self.running_s(now))
        yield from self._begin(replace(again, version=self.plan.origin), now)

    def _begin(self, release: Release, now: float) -> Iterator[Effect]:
        """Another life of the model: nothing that was said of the one before is said of this."""
        self.measured, self.reports = Measured(better=self.measured.better), {}
        self.norms.clear()
        self.withheld, self.words = [], {}
        yield from self.commit(release, now)
        yield from self.measure(now)

    def measure(self, now: float) -> Iterator[Effect]:
        """Ask for the held-out set's word on the new version; without one, the devices' own reports have to do."""
        release = self.release
        self.unmeasured[release.version] = self.line(release)
        if self.evaluation:
            yield Evaluate(release.task, release.version, self.plan.bundle_sha256, release.vector, self.evaluation)
        elif (reported := self.reported()) is not None:
            decides = self.middle_of(max(self.reports)) if tolerated(self.plan) else reported
            self.measured.take(decides, None)
            yield from self._stop_at(decides, now)

    def evaluated(self, version: int, loss: float, value: float, now: float) -> Iterator[Effect]:
        """A version was measured on the held-out set: stop if that is what the plan waits for."""
        if version < self.plan.origin:
            return  # of the model before this one
        if self.trial is not None and version == self.trial.release.version:
            yield from trials.measured(self, self.trial, loss, value, now)
            return
        if version in self.withheld:
            return  # it came too late
        yield SaveEvaluation(self.plan.task, version, loss, value)
        yield from self._take(version, loss, value, now)

    def take_value(self, version: int, loss: float, value: float, now: float) -> Iterator[Effect]:
        """What was known of a version before it became the fleet's."""
        self.unmeasured[version] = self.line(self.release)
        yield SaveEvaluation(self.plan.task, version, loss, value)
        yield from self._take(version, loss, value, now)

    def _take(self, version: int, loss: float, value: float, now: float) -> Iterator[Effect]:
        self.measured.take(value, loss)
        if version in self.unmeasured:
            self.values[version] = (loss, value)
        yield from self._stop_at(value, now)

    def _stop_at(self, value: float, now: float) -> Iterator[Effect]:
        stop = self.plan.stop
        if self.plan.state != "running":
            return
        if stop.metric and reaches(value, float(stop.metric), self.measured.better):
            yield from self.end("finished", f"{self.metric} {value:.4f} reached {stop.metric}", now)
        elif stop.plateau and self.measured.since_best >= stop.plateau:
            yield from self.end("finished", f"no better {self.metric} in {stop.plateau} releases", now)

    def line(self, release: Release) -> ReleaseMetrics:
        """What there is to say of a version when it is made."""
        return ReleaseMetrics(
            task=release.task,
            version=release.version,
            updates=len(release.used),
            devices=tuple(device for device, _, _ in release.used[:MAX_LISTED]),
            staleness_mean=sum(release.staleness) / max(1, len(release.staleness)),
            staleness_max=max(release.staleness, default=0),
            num_examples=release.num_examples,
            step_norm=release.step_norm,
            reported=self.reported(),
            bytes_up=release.num_bytes,
            seconds=release.elapsed_s,
        )

    def lines(self) -> Iterator[ReleaseMetrics]:
        """The metrics lines that are ready to be said: of releases measured, or never to be measured here."""
        yield from self.refused_lines
        self.refused_lines.clear()
        ready = sorted(self.unmeasured) if not self.evaluation else [v for v in self.values if v in self.unmeasured]
        for version in ready:
            loss, value = self.values.pop(version, (None, None))
            yield replace(self.unmeasured.pop(version), loss=loss, value=value)
        for version in sorted(self.unmeasured)[:-KEPT_REPORTS]:
            del self.unmeasured[version]

    # --- its life ---

    def enter(self, state: TaskState, why: str, now: float) -> Iterator[Effect]:
        """Change the state; the clock of `stop.minutes` runs only while running."""
        self.elapsed_s = self.running_s(now)
        self.since = self.opened_at = self.quiet_since = now
        if self.trial is not None:
            self.trial.since = now
        self.plan = replace(self.plan, state=state)
        self.why = why
        yield self.saved(now)

    def end(self, state: TaskState, why: str, now: float) -> Iterator[Effect]:
        """Stop for good: what was accepted and not counted is quarantined with its reason."""
        yield from trials.withhold(self, why, now)
        yield from self.enter(state, why, now)
        yield from self.quarantine(why)
        yield Note("info", f"{self.plan.task}: {state}, {why}")

    def quarantine(self, why: str) -> Iterator[Effect]:
        """The other disposal that `accepted` promises."""
        if self.buffer:
            yield Quarantine(tuple(b.name for b in self.buffer), why)
            self.buffer = []
