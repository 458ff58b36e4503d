"""What only grows goes on above all that a lost gateway can have said; what it accepted is disposed of once."""

from pathlib import Path

import pytest

from broker_aggregator.advancing import MIN_VERSIONS, STEP_BITS, advance
from broker_aggregator.coordinator import Coordinator
from broker_aggregator.events import SaveClaim, SaveCounter, SaveDevice, Send
from broker_aggregator.fleet import Claim
from broker_aggregator.operations import versions_of
from broker_aggregator.reading import replay
from broker_aggregator.service import DURABLE
from broker_aggregator.store import SqliteStore
from tests.support.fleet import FLEET, Gateway, key_of, make_update, results

NOW_MS = 1_790_000_000_000
FANS = [f"fan-{i}" for i in range(3)]


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    """A gateway's of two versions, with one update that waits, and a ticket that is out."""
    store = SqliteStore(tmp_path / "store.sqlite", keep_releases=1 << 40)
    gateway = Gateway().add(*FANS).start(buffer=2)
    for seq, version in ((1, 0), (2, 1)):
        for fan in FANS[:2]:
            gateway.send(make_update(fan, seq, version, [0.1] * 3))
    gateway.send(make_update(FANS[2], 1, 2, [0.1] * 3))
    with store.transaction():
        for fan in FANS:
            store.apply(SaveDevice(fan, key_of(fan).public), 1)
        for effect in gateway.effects:
            if isinstance(effect, DURABLE):
                store.apply(effect, 1)
            elif isinstance(effect, Send):
                store.next_counter(f"topic/{effect.topic}")
        store.apply(SaveClaim(Claim(id="c1", device="fan-9", expires_ms=NOW_MS)), 1)
        store.apply(SaveCounter("version/gone", 7), 1)
    return store


def test_versions_counters_and_revisions_go_on_above(store: SqliteStore) -> None:
    before = store.load(0.0)
    assert len(before.tasks["fan"].buffer) == 1
    done = advance(store, NOW_MS - 3_600_000, NOW_MS)
    after = store.load(0.0)
    task, was = after.tasks["fan"], before.tasks["fan"]
    assert task.release.version == task.plan.origin == done.versions["fan"] == was.next_version + 360_000
    assert task.release.sha256 == was.release.sha256
    assert task.plan.revision > was.plan.revision
    assert (task.buffer, task.plan.state) == ([], "running")
    assert after.counters["topic/"] == done.counter == (NOW_MS // 1000) << STEP_BITS
    assert done.counter < 1 << 53
    assert after.counters["boot"] >= MIN_VERSIONS
    waiting = store.query("SELECT disposal, why FROM ledger WHERE device = ?", FANS[2])
    assert [tuple(row) for row in waiting] == [("quarantined", "the gateway was restored from a backup")]
    assert all(replayed.same for replayed in replay(store, "fan"))
    assert (done.void, after.claims) == (["c1"], {})


def test_twice_from_one_backup_never_says_the_same_twice(store: SqliteStore) -> None:
    """Even with a clock that stands still."""
    first = advance(store, NOW_MS, NOW_MS, keep_tickets=True)
    second = advance(store, NOW_MS, NOW_MS, keep_tickets=True)
    assert second.counter > first.counter
    assert second.versions["fan"] > first.versions["fan"] + MIN_VERSIONS
    assert set(store.load(0.0).claims) == {"c1"}


def test_a_task_that_the_backup_does_not_know_begins_above_too(store: SqliteStore) -> None:
    """The lost gateway may have had one of that name."""
    advance(store, NOW_MS, NOW_MS)
    loaded = store.load(0.0)
    last = versions_of(loaded.counters)
    gateway = Gateway(Coordinator(FLEET, loaded.fleet, {}, last_versions=last)).start()
    assert gateway.coordinator.tasks["fan"].plan.origin > MIN_VERSIONS
    assert last["gone"] == 7 + MIN_VERSIONS


def test_what_was_trained_before_is_stale(store: SqliteStore) -> None:
    advance(store, NOW_MS, NOW_MS)
    loaded = store.load(0.0)
    gateway = Gateway(Coordinator(FLEET, loaded.fleet, loaded.tasks))
    (result,) = results(gateway.send(make_update(FANS[0], 9, 2, [0.1] * 3)))
    assert (result.verdict, result.code) == ("stale", "E_STALE")
