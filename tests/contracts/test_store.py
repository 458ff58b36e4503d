"""What every Store does: what is applied in a transaction is there after it, once, or not at all."""

import sqlite3
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from anabranch.simulator.power import PowerCut
from broker_aggregator.coordinator import Coordinator
from broker_aggregator.events import (
    CommitRelease,
    Durable,
    Evaluated,
    Promote,
    Quarantine,
    Received,
    SaveCounter,
    SaveDevice,
    SaveState,
    Tick,
    Withhold,
)
from broker_aggregator.fleet import Device
from broker_aggregator.guarding import chosen
from broker_aggregator.operations import OPERATOR, versions_of
from broker_aggregator.reading import replay
from broker_aggregator.service import DURABLE
from broker_aggregator.storage import Store
from fl_protocol.errors import ConfigError
from fl_protocol.messages import DeviceState
from fl_protocol.tensors import ModelLayout, TensorEntry
from tests.support.disks import KINDS, StoreDisk, rows
from tests.support.fleet import FLEET, Gateway, key_of, make_update, tiny_bundle

FANS = [f"fan-{i}" for i in range(4)]


@pytest.fixture(params=KINDS)
def disk(request, tmp_path):
    """Where the store is kept: in SQLite's file, or in the simulator's model of it."""
    disk = StoreDisk(request.param, tmp_path)
    yield disk
    disk.close()


@pytest.fixture
def store(disk):
    return disk.open()


def keep(store: Store, effects: list) -> None:
    """Apply the durable ones in one transaction."""
    with store.transaction():
        for effect in effects:
            if isinstance(effect, DURABLE):
                store.apply(effect, 1)


def started(store: Store, **plan: object) -> Gateway:
    """A gateway with devices and a task, all in the store."""
    g = Gateway().add(*FANS).start(**{"buffer": 2, "server_momentum": "0.5", **plan})
    keep(store, [*(SaveDevice(fan, key_of(fan).public) for fan in FANS), *g.effects])
    g.effects.clear()
    return g


def feed(g: Gateway, store: Store, rng: np.random.Generator, count: int) -> None:
    """Random updates of random fans, each from a version that its fan did not train yet, kept batch by batch."""
    for _ in range(count):
        g.counter += 1
        version, habits = g.task.release.version, g.task.invitations.habits_of
        fan = str(rng.choice([fan for fan in FANS if habits(fan).taken < version]))
        age = int(rng.integers(0, 3))
        delta = rng.normal(size=3) * 0.1
        base = max(g.task.plan.origin, version - age, habits(fan).taken + 1)
        keep(store, g.send(make_update(fan, g.counter, base, delta)))


def reloaded(store: Store, now: float = 0.0) -> Coordinator:
    """A coordinator as a restart would make it."""
    loaded = store.load(now)
    return Coordinator(
        FLEET,
        loaded.fleet,
        loaded.tasks,
        operator_counter=loaded.counters.get(OPERATOR, 0),
        last_versions=versions_of(loaded.counters),
    )


def test_a_restart_goes_on_where_the_last_transaction_ended(store):
    """Model, optimizer, buffer, verdicts, counts: all bit for bit, and the next release is the same as without it."""
    g = started(store)
    feed(g, store, np.random.default_rng(1), 25)
    again = Gateway(reloaded(store), g.now, counter=g.counter)
    for attribute in ("plan", "layout", "metric", "buffer", "verdicts", "bytes_up", "made"):
        assert getattr(again.task, attribute) == getattr(g.task, attribute), attribute
    assert again.task.release.sha256 == g.task.release.sha256
    assert list(again.task.norms) == pytest.approx(list(g.task.norms))
    for fan in FANS:
        mine, theirs = (x.coordinator.fleet.devices[fan].ledgers for x in (g, again))
        assert {k: (v.low, v.verdicts) for k, v in mine.items()} == {k: (v.low, v.verdicts) for k, v in theirs.items()}
    for gateway in (g, again):
        gateway.effects.clear()
        for fan in FANS:
            gateway.send(make_update(fan, 1000, gateway.task.release.version, [1, 2, 3]))
    assert again.task.release.version > 5
    assert again.task.release.sha256 == g.task.release.sha256


def test_a_restart_remembers_nothing_of_the_model_before(store):
    """Another model's metric would end the new one by `plateau`, and its norms clip the new one's deltas."""
    g = started(store, buffer=1)
    feed(g, store, np.random.default_rng(8), 3)
    keep(store, list(g.coordinator.handle(Evaluated("fan", 2, 0.1, 0.92), g.now)))
    other = tiny_bundle(ModelLayout((TensorEntry("v", (5,), "parameter"),)), "other")
    g.effects.clear()
    g.ask("task-change", other, task="fan", plan={"buffer": 1})
    keep(store, g.effects)
    again = reloaded(store).tasks["fan"]
    assert (again.measured, list(again.norms)) == (g.task.measured, list(g.task.norms))
    assert (again.measured.best, again.made) == (None, 3)


def test_a_restart_knows_which_end_of_the_metric_is_better(store):
    """An error of 0.2 is better than one of 0.5, also for the gateway that comes after."""
    g = Gateway().add(*FANS)
    g.ask("task-create", replace(tiny_bundle(), better="lower"), task="fan", plan={"buffer": 1})
    g.ask("task-start", task="fan")
    keep(store, [*(SaveDevice(fan, key_of(fan).public) for fan in FANS), *g.effects])
    feed(g, store, np.random.default_rng(8), 3)
    for version, value in ((1, 0.5), (2, 0.2), (3, 0.4)):
        keep(store, list(g.coordinator.handle(Evaluated("fan", version, 0.1, value), g.now)))
    again = reloaded(store).tasks["fan"]
    assert again.measured == g.task.measured
    assert (again.measured.best, again.measured.since_best, again.measured.better) == (0.2, 1, "lower")


def test_every_release_is_made_again_bit_for_bit(store):
    """From its predecessor and its updates, as the store holds them."""
    g = started(store)
    feed(g, store, np.random.default_rng(2), 40)
    made = list(replay(store, "fan"))
    assert len(made) == g.task.release.version > 8
    assert all(release.same for release in made)
    disposals = Counter(row.disposal for row in rows(store))
    assert disposals["counted"] == sum(r.updates for r in made)
    assert disposals.get("buffered", 0) == len(g.task.buffer)


def judged(g: Gateway, store: Store, version: int, value: float) -> None:
    """The held-out set's word on a version, kept."""
    keep(store, list(g.coordinator.handle(Evaluated("fan", version, 0.1, value), g.now)))


def test_every_release_is_made_again_across_a_withheld_one(store):
    """The one after it begins from what was published again; the withheld one's updates are quarantined with it."""
    g = started(store, guard={"margin": "0.05"})
    g.task.evaluation = "held-out.npz"
    keep(store, [g.task.saved(g.now)])
    rng = np.random.default_rng(2)
    for version, value in ((1, 0.8), (2, 0.1), (4, 0.9)):
        g.effects.clear()
        while g.task.trial is None:
            feed(g, store, rng, 1)
        judged(g, store, version, value)
    assert store.releases("fan") == [0, 1, 3, 4]
    assert store.values("fan") == {0: None, 1: 0.8, 3: None, 4: 0.9}
    assert [(r.version, r.updates, r.same) for r in replay(store, "fan")] == [(1, 2, True), (4, 2, True)]
    assert store.release("fan").version == 4
    assert Counter((row.disposal, row.version) for row in rows(store) if row.version) == {
        ("counted", 1): 2,
        ("quarantined", 2): 2,
        ("counted", 4): 2,
    }
    again = reloaded(store).tasks["fan"]
    for attribute in ("withheld", "last_made", "made", "measured", "buffer"):
        assert getattr(again, attribute) == getattr(g.task, attribute), attribute


@pytest.mark.parametrize(("value", "state"), [(0.8, "counted"), (0.1, "quarantined")])
def test_a_restart_goes_on_with_the_canary(store, value, state):
    """Its version, what it used, what was said of it; and it is judged once."""
    g = started(store, guard={"margin": "0.05", "canary": "0.5", "reports": "2"})
    for fan in FANS:
        keep(store, g.handle(Received(fan, DeviceState(state="ready", boot=1, bseq=1))))
    for fan in FANS[:2]:
        keep(store, g.send(make_update(fan, 1, 0, [1, 1, 1], metrics={"value": 0.8})))
    keep(store, g.send(make_update(g.task.tried_by[0], 9, 1, [1, 1, 1], metrics={"value": value})))
    again = Gateway(reloaded(store), g.now, counter=g.counter)
    assert again.task.release.sha256 == g.task.release.sha256
    assert again.task.canary.sha256 == g.task.canary.sha256
    assert again.task.canary.used == g.task.canary.used
    assert again.task.buffer == g.task.buffer
    assert again.task.trial.words == g.task.trial.words
    keep(store, again.handle(Tick()))
    assert again.task.tried_by == g.task.tried_by
    keep(store, again.send(make_update(g.task.tried_by[1], 9, 1, [1, 1, 1], metrics={"value": value})))
    # What the canary trained from a version that is out now makes the next candidate; from one withheld it is stale.
    assert (again.task.trial is None) == (state == "quarantined")
    assert [row.disposal for row in rows(store)][:2] == [state] * 2
    with pytest.raises(sqlite3.IntegrityError, match="twice"):
        keep(store, [Promote("fan", 1)])


def test_a_restart_does_not_forget_what_a_canary_is_held_against(store):
    """Who tries the version may have said nothing of the one before: those who made it did, and say it still."""
    g = started(store, guard={"margin": "0.05", "canary": "0.25", "reports": "1"})
    for fan in FANS:
        keep(store, g.handle(Received(fan, DeviceState(state="ready", boot=1, bseq=1))))
    fans = [fan for fan in FANS if fan not in chosen(FANS, "fan", 1, 0.25)]
    for fan in fans[:2]:
        keep(store, g.send(make_update(fan, 1, 0, [1, 1, 1], metrics={"value": 0.8})))
    again = Gateway(reloaded(store), g.now, counter=g.counter)
    assert (again.task.words, again.task.reports) == (g.task.words, g.task.reports)
    keep(store, again.handle(Tick()))
    (fan,) = again.task.tried_by
    assert fan not in again.task.words
    effects = again.send(make_update(fan, 1, 1, [1, 1, 1], metrics={"value": 0.1}))
    assert [e.version for e in effects if isinstance(e, Withhold)] == [1]


def test_an_update_is_never_counted_twice(store):
    """A release that uses what another has used is refused whole."""
    g = started(store)
    feed(g, store, np.random.default_rng(3), 6)
    release = g.task.release
    with pytest.raises(sqlite3.IntegrityError, match="twice"), store.transaction():
        store.apply(CommitRelease(replace(release, version=release.version + 1)), 1)
    assert store.release("fan").version == release.version


def test_a_transaction_that_fails_leaves_nothing(store):
    """All of a batch, or none of it."""
    g = started(store, buffer=100)
    effects: list[Durable] = [e for e in g.send(make_update("fan-0", 1, 0, [1, 1, 1])) if isinstance(e, DURABLE)]
    with pytest.raises(sqlite3.IntegrityError):
        keep(store, [*effects, Quarantine((("nobody", "0" * 16, 1),), "why")])
    assert rows(store) == []
    keep(store, effects)
    assert len(rows(store)) == 1


def cut_short(store: Store, effects: list) -> None:
    """Die in a transaction, after all of its writes."""
    with store.transaction():
        store.next_counter("a")
        for effect in effects:
            if isinstance(effect, DURABLE):
                store.apply(effect, 1)
        raise PowerCut


@pytest.mark.parametrize("death", ["kill", "power"])
def test_who_dies_in_a_transaction_leaves_nothing_of_it(disk, death):
    """And all of the one before: what was left by the front door is there for good."""
    store = disk.open()
    g = started(store, buffer=100)
    keep(store, g.send(make_update("fan-0", 1, 0, [1, 1, 1])))
    with pytest.raises(PowerCut):
        cut_short(store, g.send(make_update("fan-1", 1, 0, [1, 1, 1])))
    again = disk.open(death=death)
    assert [row.device for row in rows(again)] == ["fan-0"]
    assert len(again.load(0.0).tasks["fan"].buffer) == 1


def test_an_update_has_one_verdict(store):
    """A second one is refused, whatever it says; with it goes the rest of its transaction."""
    g = started(store, buffer=100)
    effects = g.send(make_update("fan-0", 1, 0, [1, 1, 1]))
    keep(store, effects)
    with pytest.raises(sqlite3.IntegrityError):
        keep(store, [SaveCounter("x", 1), *effects])
    assert len(rows(store)) == 1
    assert "x" not in store.load(0.0).counters


def test_a_version_is_made_once(store):
    """Another of the same number is refused."""
    g = started(store, buffer=1)
    feed(g, store, np.random.default_rng(3), 2)
    release = replace(g.task.release, used=(), staleness=(), sha256="0" * 64)
    with pytest.raises(sqlite3.IntegrityError):
        keep(store, [CommitRelease(release)])
    assert store.release("fan").sha256 == g.task.release.sha256


def test_counters_only_grow(disk):
    """Also over a restart; a transaction that fails takes its numbers back unseen."""
    store = disk.open()
    with store.transaction():
        assert [store.next_counter("a"), store.next_counter("a"), store.next_counter("b")] == [1, 2, 1]
    with pytest.raises(PowerCut):
        cut_short(store, [])
    again = disk.open()
    with again.transaction():
        assert again.next_counter("a") == 3
        for value in (9, 4):
            again.apply(SaveCounter("b", value), 1)
    assert again.load(0.0).counters == {"a": 3, "b": 9}


def test_a_device_keeps_what_it_said_over_a_new_key(disk):
    """The operator may let it in again, or shut it out; what it last said of itself stays. A stranger's is not kept."""
    store = disk.open()
    state = DeviceState(state="ready", boot=3, bseq=2)
    keep(store, [SaveDevice("fan-0", "a" * 64), SaveState("fan-0", state), SaveDevice("fan-0", "b" * 64, revoked=True)])
    keep(store, [SaveState("nobody", state)])
    assert disk.open().load(0.0).fleet.devices == {"fan-0": Device("fan-0", "b" * 64, True, state)}


def test_suspects_are_counted_over_restarts(disk):
    """What was in hand at a crash is known to the next process."""
    disk.open().suspect("a" * 64)
    for digest in ("a" * 64, "b" * 64):
        disk.open().suspect(digest)
    assert disk.open(death="power").suspects() == {"a" * 64: 2, "b" * 64: 1}


def test_versions_are_fetched_by_their_hash(store):
    """As the bytes that were hashed; of what is not here there is nothing."""
    g = started(store, buffer=1)
    feed(g, store, np.random.default_rng(3), 2)
    release = g.task.release
    assert store.vector_bytes(release.sha256) == release.vector.astype("<f4").tobytes()
    assert store.vector_bytes("0" * 64) is None


def test_old_vectors_and_updates_are_pruned_and_the_ledger_stays(disk):
    """`keep_releases` bounds the disk; the kept ones can still be made again."""
    store = disk.open(keep_releases=3)
    g = started(store, buffer=1)
    feed(g, store, np.random.default_rng(4), 12)
    newest = g.task.release.version
    assert store.releases("fan") == list(range(newest - 3, newest + 1))
    assert [r.same for r in replay(store, "fan")] == [True] * 3
    assert sum(row.disposal == "counted" for row in rows(store)) == newest
    assert sum(row.update is not None for row in rows(store)) == 3
    assert store.load(0.0).tasks["fan"].made == newest
    with pytest.raises(ConfigError, match="no version 1"):
        store.release("fan", 1)


def test_quarantined_updates_of_no_version_are_pruned_by_what_they_were_trained_from(disk):
    """`keep_releases` bounds what the quarantine holds too, whether or not a version would have used it."""
    store = disk.open(keep_releases=3)
    g = started(store, buffer=1, norm_limit="0", server_learning_rate="2")
    for seq in range(1, 9):
        base = g.task.release.version
        keep(store, g.send(make_update("fan-0", 2 * seq, base, [3e38] * 3)))  # not finite: quarantined, of no version
        keep(store, g.send(make_update("fan-1", 2 * seq, base, [0.1] * 3)))
    of_none = [row for row in rows(store) if row.disposal == "quarantined"]
    assert len(of_none) > 4
    assert {row.base_version for row in of_none if row.update is not None} <= set(
        range(g.task.release.version - 2, g.task.release.version + 1)
    )


def test_a_restart_knows_that_a_version_was_trained_in_vain(store):
    """All updates of it were quarantined, as it would not be finite: it is published again, or nobody trains again."""
    g = started(store, buffer=4, deadline_s=60, norm_limit="0")
    for fan in FANS:
        keep(store, g.send(make_update(fan, 1, 0, [3e38] * 3)))
    assert (g.task.buffer, g.task.release.version) == ([], 0)
    again = Gateway(reloaded(store), g.now, counter=g.counter)
    again.now += 60
    keep(store, again.handle(Tick()))
    assert again.task.release.version == 1
    assert again.verdict(make_update("fan-0", 2, 1, [0.1] * 3)).verdict == "accepted"


def test_a_deleted_task_shares_no_row_with_its_successor(store):
    """Same name, other updates."""
    g = started(store, buffer=1)
    feed(g, store, np.random.default_rng(5), 3)
    g.effects.clear()
    g.ask("task-delete", task="fan")
    g.start(buffer=1)
    keep(store, g.effects)
    feed(g, store, np.random.default_rng(6), 2)
    assert Counter(row.disposal for row in rows(store) if row.task == "fan") == {"counted": 2}
    assert all(r.same for r in replay(store, "fan"))
    assert reloaded(store).tasks["fan"].verdicts == g.task.verdicts
