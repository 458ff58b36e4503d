"""What a run came to, as it happens: releases from the gateway's disk, bytes from the devices' sockets."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from anabranch.simulator.results import NO_FINALS, DeviceRow, Finals, LedgerRow, ReleaseRow, RunSummary
from broker_aggregator import events as g
from broker_aggregator.aggregation.near import left_out
from broker_aggregator.reading import replay
from broker_aggregator.task import FLOAT32
from fl_protocol.better import improves

if TYPE_CHECKING:
    from anabranch.simulator.twin import Twin

ENDED = ("finished", "stopped")
LAST = 5  # releases of which a mean is told


class Recorder:
    """Follows what the gateway's disk holds; `on_release` is given each release once it is measured."""

    def __init__(self, on_release: Callable[[ReleaseRow], None] = lambda _: None) -> None:
        self._on_release = on_release
        self.rows: list[ReleaseRow] = []
        self.version = 0
        self.counted = self.quarantined = 0
        self.value: float | None = None
        self.loss: float | None = None
        self.best: g.Release | None = None  # of those that were measured
        self.best_value: float | None = None
        self.finished = ""
        self.started_at: float | None = None
        self.calm_s: float | None = None
        self._ended_at: float | None = None
        self._staleness = 0
        self._unmeasured: dict[int, ReleaseRow] = {}
        self._sha256 = ""
        self._reports: dict[str, tuple[float, float]] = {}  # each device's last (value, examples)

    def watch(self, twin: "Twin") -> None:
        """Record this run."""
        self._twin = twin
        twin.store.on_durable = self.take

    def take(self, effects: Sequence[g.Durable]) -> None:
        """A transaction of the gateway's store is on its disk."""
        self._twin.checker.on_store(effects)
        trace = self._twin.trace
        for effect in effects:
            match effect:
                case g.CommitRelease(release, state):
                    how = "" if state == "released" else f", {state}"
                    trace.line(
                        "gateway", f"commits version {release.version} of {len(release.used)} {release.sha256}{how}"
                    )
                    if state == "released":
                        self._release(release)
                    self.quarantined += len(release.used) if state == "withheld" else 0
                case g.Promote(task, version):
                    trace.line("gateway", f"promotes version {version}")
                    self._release(self._twin.store.release(task, version))
                case g.Withhold(task, version, why):
                    trace.line("gateway", f"withholds version {version}: {why}")
                    self.quarantined += len(self._twin.store.release(task, version).used)
                case g.SaveEvaluation(task, version, loss, value) if version in self._twin.store.values(task):
                    self.value, self.loss = value, loss
                    if improves(value, self.best_value, self._twin.bundle.better):
                        self.best, self.best_value = self._twin.store.release(self._twin.task, version), value
                    self._measured(version, value, loss)
                case g.Quarantine(used):
                    self.quarantined += len(used)
                case g.SaveTask(plan) as saved:
                    if plan.state == "running" and self.started_at is None:
                        self.started_at = self._twin.world.now
                    self.finished = f"{plan.state}: {saved.why}" if plan.state in ENDED else ""
                    self._ended_at = self._twin.world.now if self.finished else None
                case g.RecordUpdate(update, verdict):
                    trace.line("gateway", f"records {update.device} {update.seq} {verdict.verdict}")
                    if "value" in (said := update.metrics) and update.device not in self._twin.attackers.terms:
                        self._reports[update.device] = said["value"], said.get("validation_examples", 1.0)
                case _:
                    pass

    def _release(self, release: g.Release) -> None:
        twin = self._twin
        self.version, self._sha256 = release.version, release.sha256
        self.counted += len(release.used)
        self._staleness += sum(release.staleness)
        if not release.used:
            return
        self._unmeasured[release.version] = ReleaseRow(
            version=release.version,
            t_s=twin.world.now - (self.started_at or 0.0),
            updates=self.counted,
            bytes_up=sum(device.bytes_sent for device in twin.devices),
            bytes_down=sum(device.bytes_received for device in twin.devices),
            used=len(release.used),
            staleness_mean=sum(release.staleness) / len(release.staleness),
            staleness_max=max(release.staleness),
            active=twin.awake,
        )

    def _measured(self, version: int, value: float, loss: float) -> None:
        for earlier in [v for v in self._unmeasured if v < version]:
            self._say(self._unmeasured.pop(earlier))
        if row := self._unmeasured.pop(version, None):
            self._say(replace(row, value=value, loss=loss))

    def _say(self, row: ReleaseRow) -> None:
        self.rows.append(row)
        self._on_release(row)

    @property
    def measured(self) -> str:
        """Whether every release has its value, or nothing."""
        return "" if self._unmeasured else "all versions are measured"

    @property
    def reported(self) -> float | None:
        """The metric by the devices' own word; see `RunSummary`."""
        examples = sum(n for _, n in self._reports.values())
        return sum(value * n for value, n in self._reports.values()) / examples if examples > 0 else None

    # --- at the end ---

    def close(self) -> None:
        """What was not measured is told as it is."""
        for version in sorted(self._unmeasured):
            self._say(self._unmeasured.pop(version))

    def summary(self, command: str, wall_s: float, finals: Finals = NO_FINALS) -> RunSummary:
        """The run in figures, with what was measured of it since."""
        twin = self._twin
        ledger = list(twin.store.rows())
        measured = [row.value for row in self.rows if row.value is not None]
        values = twin.bundle.layout.size
        replayed = self._replayed()
        return RunSummary(
            experiment=twin.experiment.name,
            seed=twin.seed,
            command=command,
            metric=twin.bundle.metric,
            target=twin.experiment.target,
            stopped=twin.why,
            virtual_s=round(twin.world.now, 6),
            wall_s=round(wall_s, 3),
            events=twin.world.events,
            versions=self.version,
            verdicts=dict(sorted(Counter(row.verdict.verdict for row in ledger).items())),
            counted=self.counted,
            quarantined=self.quarantined,
            bytes_up=sum(device.bytes_sent for device in twin.devices),
            bytes_down=sum(device.bytes_received for device in twin.devices),
            update_bytes=sum(row.num_bytes for row in ledger),
            update_bytes_float32=len(ledger) * values * FLOAT32,
            value=measured[-1] if measured else None,
            value_mean5=sum(measured[-LAST:]) / len(measured[-LAST:]) if measured else None,
            best=self.best_value,
            loss=self.loss,
            staleness_mean=self._staleness / max(1, self.counted),
            parameters_sha256=self._sha256,
            trace_sha256=twin.trace.sha256,
            faults=tuple(map(str, twin.faults.schedule)),
            violations=tuple(twin.checker.violations),
            checks=dict(sorted(twin.checker.checks.items())),
            replayed=replayed,
            calm_s=self.calm_s,
            better=twin.bundle.better,
            best_version=self.best.version if self.best else None,
            test_best=finals.best,
            test_last=finals.last,
            reported=self.reported,
            begun=sum(device.begun for device in twin.devices),
            died=sum(device.died for device in twin.devices),
            longest_s=self._longest_s,
            tiers=dict(finals.tiers),
            backdoor_success=finals.backdoor_success,
        )

    @property
    def _longest_s(self) -> float | None:
        """The longest time without a version; None without any."""
        if not self.rows:
            return None
        end_s = (self._ended_at or self._twin.world.now) - (self.started_at or 0.0)
        times = [0.0, *(row.t_s for row in self.rows), end_s]
        return max(later - earlier for earlier, later in pairwise(times))

    def _replayed(self) -> tuple[int, int]:
        """Releases made again from the store, bit for bit, and of how many; each that differs is a broken invariant."""
        store, task = self._twin.store, self._twin.task
        try:
            results = list(replay(store, task)) if store.releases(task) else []
        except Exception as error:  # whatever a broken ledger makes of it
            self._twin.checker.complain(f"the store cannot be replayed: {type(error).__name__} {error}")
            results = []
        for result in results:
            if not result.same:
                self._twin.checker.complain(f"version {result.version} is not made again from the store")
        return sum(r.same for r in results), len(results)

    def devices(self) -> list[DeviceRow]:
        """One row a device."""
        by_device: dict[str, Counter[str]] = {device.name: Counter() for device in self._twin.devices}
        staleness: Counter[str] = Counter()
        for row in self._twin.store.rows():
            by_device[row.device][row.verdict.verdict] += 1
            if row.disposal == "counted":
                by_device[row.device]["counted"] += 1
                staleness[row.device] += row.staleness or 0
        rule = self._twin.store.release(self._twin.task).rule
        return [
            DeviceRow(
                device=device.name,
                tier=device.spec.tier,
                slowness=device.spec.slowness,
                examples=len(device.source.dataset.train),
                boots=device.boots,
                awake_s=device.awake_s,
                train_s=device.train_s,
                trained=device.outbox.seq,
                accepted=by_device[device.name]["accepted"],
                stale=by_device[device.name]["stale"],
                rejected=by_device[device.name]["rejected"],
                pending=len(device.outbox.pending),
                counted=by_device[device.name]["counted"],
                staleness_mean=staleness[device.name] / max(1, by_device[device.name]["counted"]),
                bytes_up=device.bytes_sent,
                bytes_down=device.bytes_received,
                begun=device.begun,
                died=device.died,
                attack=device.spec.attack,
                left_out=left_out(rule, device.name),
            )
            for device in self._twin.devices
        ]

    def ledger(self) -> list[LedgerRow]:
        """One row an update."""
        return [
            LedgerRow(
                device=row.device,
                incarnation=row.incarnation,
                seq=row.seq,
                base_version=row.base_version,
                verdict=row.verdict.verdict,
                code=row.verdict.code,
                disposal=row.disposal or "",
                num_bytes=row.num_bytes,
                version=row.version,
                staleness=row.staleness,
            )
            for row in self._twin.store.rows()
        ]
