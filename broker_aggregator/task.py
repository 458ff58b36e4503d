"""One learning job: its plan, its current version, its buffer, and when to release or to stop. Sans-I/O."""

import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from broker_aggregator.admission import Measure, Standing, admit, admit_offer
from broker_aggregator.events import (
    CommitRelease,
    Effect,
    Evaluate,
    Note,
    Quarantine,
    Release,
    SaveEvaluation,
    SaveTask,
)
from broker_aggregator.measured import Measured
from broker_aggregator.releasing import Buffered, first_release, next_release, same_again
from fl_protocol.better import reaches
from fl_protocol.bundle import Bundle
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

    def reported(self) -> float | None:
        """The newest version's metric as the devices measured it on their own held-out examples."""
        for version in sorted(self.reports, reverse=True):
            total = sum(n for n, _ in self.reports[version])
            if total:
                return sum(n * value for n, value in self.reports[version]) / total
        return None

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
            why=self.why,
        )

    # --- updates come ---

    def admit(self, update: Update) -> Measure:
        """The measure of an update that passes every check. Raises `Rejected`."""
        return admit(update, self._standing())

    def _standing(self) -> Standing:
        return Standing(self.plan, self.layout, self.release, self.norms)

    def admit_offer(self, offer: Offer) -> None:
        """Tell a useless update so before its radio time is spent. Raises `Rejected`."""
        admit_offer(offer, self._standing())

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
        self.norms.append(buffered.norm * buffered.scale)
        value = buffered.update.metrics.get("value", math.nan)
        weight = buffered.update.metrics.get("validation_examples", 1.0)
        if math.isfinite(value) and 1 <= weight <= MAX_REPORT_EXAMPLES:
            self.reports.setdefault(buffered.update.base_version, []).append((weight, value))
            for version in sorted(self.reports)[:-KEPT_REPORTS]:
                del self.reports[version]

    def next_buffer(self) -> list[Buffered]:
        """Who is counted next: the first update of each device, in record order, K at the most."""
        first: dict[str, Buffered] = {}
        for buffered in self.buffer:
            first.setdefault(buffered.update.device, buffered)
        return list(first.values())[: self.plan.buffer]

    # --- releases ---

    def advance(self, now: float) -> Iterator[Effect]:
        """Release as often as there is reason to: a full buffer, or the deadline."""
        while self.plan.state == "running":
            used = self.next_buffer()
            late = now - self.opened_at >= self.plan.deadline_s
            enough = self.plan.quorum if self.plan.mode == "synchronous" else 1
            if len(used) >= self.plan.buffer or (late and len(used) >= enough):
                yield from self.flush(used, now)
                if self.plan.stop.versions and self.made >= self.plan.stop.versions:
                    yield from self.end("finished", f"released {self.made} versions", now)
                continue
            if not self.buffer and self.in_vain and self._quiet_s(now) >= self.plan.deadline_s:
                yield from self.renew(now)
                continue
            if late and self.plan.mode == "synchronous":
                self.opened_at = now  # what came is kept; the same version is open to everybody for another deadline
                self.why = f"{len(used)} of quorum {enough} updates at the deadline; waiting on"
                yield Note("warning", f"{self.plan.task}: {self.why}")
            break
        minutes = self.plan.stop.minutes
        if self.plan.state == "running" and minutes and self.running_s(now) >= 60 * minutes:
            yield from self.end("finished", f"ran for {minutes} minutes", now)

    def _quiet_s(self, now: float) -> float:
        """How long nothing came of this version; one renewal after the other counts half, so that they grow rare."""
        return (now - self.quiet_since) / float(2 ** min(self.renewals, MAX_RENEWALS))

    def flush(self, used: Sequence[Buffered], now: float) -> Iterator[Effect]:
        """Make the next version of `used`; if it is no model, none is made, and they are quarantined."""
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
        self.made, self.renewals = self.made + 1, 0
        yield from self._commit(release, now)
        yield from self._measure(now)

    def renew(self, now: float) -> Iterator[Effect]:
        """The same parameters as a new version, for devices that have trained this one already and to no avail."""
        self.renewals += 1
        yield from self._commit(same_again(self.release, self.plan, self.running_s(now)), now)

    def _commit(self, release: Release, now: float) -> Iterator[Effect]:
        self.release, self.in_vain = release, 0
        self.opened_at = self.quiet_since = now
        self.why = ""
        yield CommitRelease(release)

    def restart_from(self, bundle: Bundle, now: float) -> Iterator[Effect]:
        """Another model: its initial parameters become version `plan.origin`, one above the last."""
        self.measured, self.reports = Measured(better=bundle.better), {}
        self.norms.clear()
        yield from self._commit(first_release(self.plan, bundle.layout, self.plan.origin, bundle.initial), now)
        yield from self._measure(now)

    def _measure(self, now: float) -> Iterator[Effect]:
        """Ask for the held-out set's word on the new version; without one, the devices' own reports have to do."""
        release = self.release
        self.unmeasured[release.version] = self._line()
        if self.evaluation:
            yield Evaluate(release.task, release.version, self.plan.bundle_sha256, release.vector, self.evaluation)
        elif (reported := self.reported()) is not None:
            self.measured.take(reported, None)
            yield from self._stop_at(reported, now)

    def evaluated(self, version: int, loss: float, value: float, now: float) -> Iterator[Effect]:
        """A version was measured on the held-out set: stop if that is what the plan waits for."""
        if version < self.plan.origin:
            return  # of the model before this one
        self.measured.take(value, loss)
        self.values[version] = (loss, value)
        yield SaveEvaluation(self.plan.task, version, loss, value)
        yield from self._stop_at(value, now)

    def _stop_at(self, value: float, now: float) -> Iterator[Effect]:
        stop = self.plan.stop
        if self.plan.state != "running":
            return
        if stop.metric and reaches(value, float(stop.metric), self.measured.better):
            yield from self.end("finished", f"{self.metric} {value:.4f} reached {stop.metric}", now)
        elif stop.plateau and self.measured.since_best >= stop.plateau:
            yield from self.end("finished", f"no better {self.metric} in {stop.plateau} releases", now)

    def _line(self) -> ReleaseMetrics:
        release = self.release
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
        self.plan = replace(self.plan, state=state)
        self.why = why
        yield self.saved(now)

    def end(self, state: TaskState, why: str, now: float) -> Iterator[Effect]:
        """Stop for good: what was accepted and not counted is quarantined with its reason."""
        yield from self.enter(state, why, now)
        yield from self.quarantine(why)
        yield Note("info", f"{self.plan.task}: {state}, {why}")

    def quarantine(self, why: str) -> Iterator[Effect]:
        """The other disposal that `accepted` promises."""
        if self.buffer:
            yield Quarantine(tuple(b.name for b in self.buffer), why)
            self.buffer = []
