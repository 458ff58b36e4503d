"""What a run came to, gathered from the store, the ledgers and the processes: facts, as plain values."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from anabranch.demo.broker import Broker
from anabranch.demo.comparison import Accuracy, Comparison, Judge
from anabranch.demo.fleet import Fleet, Happening
from anabranch.demo.folder import TASK, Folder
from anabranch.demo.ledgers import Agreement, compare_ledgers
from anabranch.demo.processes import Usage
from anabranch.demo.story import Cast
from anabranch.fleet_view import DeviceView
from broker_aggregator.export import export_version, float_model
from broker_aggregator.reading import Replayed, replay
from broker_aggregator.store_reader import StoreReader
from edge_agent.outbox import Outbox
from fl_protocol.bundle import Bundle
from fl_protocol.messages import Plan

LAST = 5  # releases that the final accuracy is the mean of
FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class ReleaseFacts:
    """One version: when (ms since 1970), on the validation split, and as int8 model on each fan's test split."""

    version: int
    ts: int
    validation: float | None
    by_fan: Accuracy

    @property
    def accuracy(self) -> float:
        """The mean over fans, on the test split."""
        return fmean(self.by_fan.values())


@dataclass(frozen=True)
class UpdateFacts:
    """One update in the store's ledger; `version` counted it, at `staleness`."""

    device: str
    ts: int
    verdict: str
    disposal: str
    version: int | None
    staleness: int | None
    num_bytes: int


@dataclass(frozen=True)
class Outcome:
    """All facts of a run; what they mean is said in `summary.py` and drawn in `report.py`."""

    folder: Folder
    seed: int
    speeds: Sequence[int]
    cast: Cast
    broker: Broker
    plan: Plan
    why: str
    started_ts: int
    seconds: Mapping[str, float]  # of each phase
    happenings: Sequence[Happening]
    problems: Sequence[str]
    releases: Sequence[ReleaseFacts]
    updates: Sequence[UpdateFacts]
    steps: int
    float_accuracy: float  # of the last releases, as float32 models
    comparison: Comparison
    num_values: int  # of one version
    usage: Mapping[str, Usage]
    devices: Mapping[str, DeviceView]
    agreement: Agreement
    replayed: Sequence[Replayed]
    model: Mapping[str, Path]

    @property
    def last(self) -> Sequence[ReleaseFacts]:
        """The releases that are judged."""
        return self.releases[-LAST:]

    @property
    def federated_mean(self) -> float:
        """Accuracy of the federated int8 model: all fans, the mean of the last releases."""
        return fmean(release.accuracy for release in self.last)

    def federated(self, speed: int) -> float:
        """The same on one fan."""
        return fmean(release.by_fan[speed] for release in self.last)

    @property
    def staleness(self) -> Counter[int]:
        """How stale the counted updates were."""
        return Counter(u.staleness for u in self.updates if u.staleness is not None)

    @property
    def update_bytes(self) -> int:
        """Bytes of all updates that the gateway was sent, topics and headers included."""
        return sum(u.num_bytes for u in self.updates)

    @property
    def update_bytes_float32(self) -> int:
        """The same updates as plain float32 vectors, with nothing around them."""
        return len(self.updates) * self.num_values * FLOAT32


@dataclass(frozen=True)
class Training:
    """What the store says of a training that has ended."""

    plan: Plan
    why: str
    releases: Sequence[ReleaseFacts]
    updates: Sequence[UpdateFacts]
    steps: int
    float_accuracy: float
    agreement: Agreement
    replayed: Sequence[Replayed]
    model: Mapping[str, Path]


def read_training(fleet: Fleet, bundle: Bundle) -> Training:
    """Read the store and the devices' ledgers, measure every release, replay them, export the model.

    Raises `ConfigError` where the training has not released anything that could be read.
    """
    store = StoreReader(fleet.folder.gateway.store_path)
    try:
        judge = Judge(bundle, fleet.speeds)
        rows = {
            row["version"]: row for row in store.query("SELECT version, ts, value FROM release WHERE task = ?", TASK)
        }
        versions = store.releases(TASK)
        releases = [
            ReleaseFacts(v, rows[v]["ts"], rows[v]["value"], judge.accuracy(store.release(TASK, v).vector))
            for v in versions
        ]
        floats = [judge.accuracy(store.release(TASK, v).vector, float_model) for v in versions[-LAST:]]
        ledger = store.query(
            "SELECT device, incarnation, seq, ts, json_extract(verdict, '$.verdict') AS verdict,"
            " coalesce(disposal, '') AS disposal, version, staleness, num_bytes, why FROM ledger WHERE task = ?",
            TASK,
        )
        newest = store.release(TASK)
        return Training(
            plan=store.plan(TASK),
            why=store.query("SELECT why FROM task WHERE name = ?", TASK)[0]["why"],
            releases=releases,
            updates=[UpdateFacts(**{k: row[k] for k in UpdateFacts.__dataclass_fields__}) for row in ledger],
            steps=sum(b.update.local_steps for v in versions for b in store.counted_in(TASK, v)),
            float_accuracy=fmean(fmean(by_fan.values()) for by_fan in floats),
            agreement=compare_ledgers([dict(row) for row in ledger], _device_ledgers(fleet)),
            replayed=list(replay(store, TASK)),
            model=export_version(bundle, newest, rows[newest.version]["value"], fleet.folder.model),
        )
    finally:
        store.close()


def _device_ledgers(fleet: Fleet) -> dict[str, list[dict[str, object]]]:
    """Each device's own ledger, as `edge-agent ledger --json` prints it."""
    ledgers = {}
    for device in fleet.devices:
        file = fleet.folder.outbox(device)
        if file.exists():  # the late one may not have come before the end
            outbox = Outbox(file)
            ledgers[device] = outbox.ledger()
            outbox.close()
    return ledgers
