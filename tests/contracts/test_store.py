"""What every Store does: what is applied in a transaction is there after it, once, or not at all."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from broker_aggregator.coordinator import Coordinator
from broker_aggregator.events import CommitRelease, Durable, Evaluated, Quarantine, SaveDevice
from broker_aggregator.operations import OPERATOR, versions_of
from broker_aggregator.reading import devices, replay, status
from broker_aggregator.service import DURABLE
from broker_aggregator.store import SqliteStore
from broker_aggregator.store_reader import StoreReader
from fl_protocol.errors import ConfigError
from fl_protocol.tensors import ModelLayout, TensorEntry
from tests.support.fleet import FLEET, Gateway, key_of, make_update, tiny_bundle

FANS = [f"fan-{i}" for i in range(4)]


@pytest.fixture
def store(tmp_path):
    store = SqliteStore(tmp_path / "store.sqlite")
    yield store
    store.close()


def keep(store: SqliteStore, effects: list) -> None:
    """Apply the durable ones in one transaction."""
    with store.transaction():
        for effect in effects:
            if isinstance(effect, DURABLE):
                store.apply(effect, 1)


def started(store: SqliteStore, **plan: object) -> Gateway:
    """A gateway with devices and a task, all in the store."""
    g = Gateway().add(*FANS).start(**{"buffer": 2, "server_momentum": "0.5", **plan})
    keep(store, [*(SaveDevice(fan, key_of(fan).public) for fan in FANS), *g.effects])
    g.effects.clear()
    return g


def feed(g: Gateway, store: SqliteStore, rng: np.random.Generator, count: int) -> None:
    """Random updates of random fans, kept batch by batch."""
    for _ in range(count):
        g.counter += 1
        fan = str(rng.choice(FANS))
        age = int(rng.integers(0, 3))
        delta = rng.normal(size=3) * 0.1
        base = max(g.task.plan.origin, g.task.release.version - age)
        keep(store, g.send(make_update(fan, g.counter, base, delta)))


def reloaded(store: SqliteStore, now: float = 0.0) -> Coordinator:
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


def test_every_release_is_made_again_bit_for_bit(store):
    """From its predecessor and its updates, as the store holds them."""
    g = started(store)
    feed(g, store, np.random.default_rng(2), 40)
    made = list(replay(store, "fan"))
    assert len(made) == g.task.release.version > 8
    assert all(release.same for release in made)
    rows = store.query("SELECT disposal, count(*) AS n FROM ledger WHERE disposal NOT NULL GROUP BY 1")
    disposals = {row["disposal"]: row["n"] for row in rows}
    assert disposals["counted"] == sum(r.updates for r in made)
    assert disposals.get("buffered", 0) == len(g.task.buffer)


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
    assert store.query("SELECT count(*) AS n FROM ledger")[0]["n"] == 0
    keep(store, effects)
    assert store.query("SELECT count(*) AS n FROM ledger")[0]["n"] == 1


def test_counters_only_grow(store):
    """Also over a restart; a transaction that fails takes its numbers back unseen."""
    with store.transaction():
        assert [store.next_counter("a"), store.next_counter("a"), store.next_counter("b")] == [1, 2, 1]
    other = SqliteStore(store.path)
    with other.transaction():
        assert other.next_counter("a") == 3
    other.close()


def test_old_vectors_and_updates_are_pruned_and_the_ledger_stays(tmp_path):
    """`keep_releases` bounds the disk; the kept ones can still be made again."""
    store = SqliteStore(tmp_path / "s.sqlite", keep_releases=3)
    g = started(store, buffer=1)
    feed(g, store, np.random.default_rng(4), 12)
    newest = g.task.release.version
    assert store.releases("fan") == list(range(newest - 3, newest + 1))
    assert [r.same for r in replay(store, "fan")] == [True] * 3
    assert store.query("SELECT count(*) AS n FROM ledger WHERE disposal = 'counted'")[0]["n"] == newest
    assert store.query("SELECT count(*) AS n FROM ledger WHERE update_bytes NOT NULL")[0]["n"] <= 3
    with pytest.raises(ConfigError, match="no version 1"):
        store.release("fan", 1)
    store.close()


def test_a_deleted_task_shares_no_row_with_its_successor(store):
    """Same name, other updates."""
    g = started(store, buffer=1)
    feed(g, store, np.random.default_rng(5), 3)
    g.effects.clear()
    g.ask("task-delete", task="fan")
    g.start(buffer=1)
    keep(store, g.effects)
    feed(g, store, np.random.default_rng(6), 2)
    (task,) = status(store)
    assert task["disposals"] == {"counted": 2}
    assert all(r.same for r in replay(store, "fan"))


def test_people_can_read_it(store):
    """`status` and `devices` agree with what happened."""
    g = started(store)
    feed(g, store, np.random.default_rng(7), 20)
    (task,) = status(store)
    assert task["version"] == g.task.release.version
    assert task["updates"] == {k: v for k, v in g.task.verdicts.items() if v}
    assert sum(d["accepted"] for d in devices(store)) == g.task.verdicts["accepted"]


def test_files_that_are_no_store(tmp_path):
    """Missing, rubbish, or of another schema: a sentence, not a traceback."""
    with pytest.raises(ConfigError, match="no store"):
        StoreReader(tmp_path / "missing")
    (tmp_path / "rubbish").write_bytes(b"not sqlite" * 1000)
    with pytest.raises(ConfigError, match="not a usable store"):
        SqliteStore(tmp_path / "rubbish")
    SqliteStore(tmp_path / "s").close()
    with sqlite3.connect(tmp_path / "s") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="schema 99"):
        SqliteStore(tmp_path / "s")


WRITER = """
import sys
from pathlib import Path
import numpy as np
from tests.contracts.test_store import SqliteStore, started, feed
store = SqliteStore(Path(sys.argv[1]))
g = started(store)
rng = np.random.default_rng(0)
while True:
    feed(g, store, rng, 1)
    print(g.counter, flush=True)
"""


def test_kill_9_loses_nothing_that_was_committed(tmp_path):
    """A writer is killed at a random moment: what it had said is there, counted once, and can be made again."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201  # pytest shows it with a failure
    rng = random.Random(seed)
    root = Path(__file__).parents[2]
    for attempt in range(3):
        path = tmp_path / f"s{attempt}"
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        said = 0
        for _ in range(rng.randrange(20, 80)):
            said = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        said = max([said, *(int(line) for line in writer.stdout.read().splitlines())])
        writer.wait()
        store = SqliteStore(path)
        (last,) = store.query("SELECT max(seq) AS seq FROM ledger")
        assert said <= last["seq"] <= said + 1
        loaded = store.load(0.0)
        counted = sum(r.updates for r in replay(store, "fan"))
        accepted = store.query("SELECT count(*) AS n FROM ledger WHERE disposal NOT NULL")[0]["n"]
        assert counted + len(loaded.tasks["fan"].buffer) == accepted
        assert all(r.same for r in replay(store, "fan"))
        store.close()
