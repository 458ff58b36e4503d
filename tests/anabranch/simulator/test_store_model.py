"""The gateway's store in memory dies as a disk does, and is never what a run waits for."""

import math
import sqlite3
import time

import numpy as np
import pytest

from anabranch.simulator.power import PowerCut
from anabranch.simulator.store_model import MemoryStore
from broker_aggregator.events import CommitRelease, RecordUpdate, Release, RemoveTask
from broker_aggregator.releasing import digest
from fl_protocol.messages import Result
from tests.support.fleet import LAYOUT, make_update


class Fuse:
    """A crash point that lets so many effects pass."""

    def __init__(self, passes: int) -> None:
        self.left, self.labels = passes, []

    def __call__(self, label: str) -> None:
        self.labels.append(label)
        if self.left == 0:
            raise PowerCut(label)
        self.left -= 1


def record(seq: int) -> RecordUpdate:
    """An accepted update."""
    update = make_update("d0", seq, 0, [1, 2, 3], task="a")
    verdict = Result(task="a", incarnation="0" * 16, seq=seq, verdict="accepted")
    return RecordUpdate(update, verdict, 10, 1.0, 1.0)


def release(version: int) -> CommitRelease:
    """A version made of the update `version`."""
    vector = np.full(LAYOUT.size, version, np.float32)
    used = (("d0", "0" * 16, version),) if version else ()
    return CommitRelease(
        Release(
            "a", version, 1, LAYOUT.fingerprint, vector, digest(vector), used, (0,) * len(used), 1.0 * bool(version)
        )
    )


def live(store: MemoryStore, turns: int, said: list[int]) -> None:
    """Each turn records an update and counts it, in one transaction, and then says so."""
    for seq in range(len(said) + 1, turns + 1):
        with store.transaction():
            store.apply(record(seq), 1)
            store.apply(release(seq), 1)
        said.append(seq)


def check_whole(store: MemoryStore, said: list[int]) -> int:
    """Of each transaction all or nothing, none without those before, and all that were said. How many there are."""
    there = [row.seq for row in store.rows()]
    assert there == list(range(1, len(there) + 1))
    assert [row.disposal for row in store.rows()] == ["counted"] * len(there)
    assert store.releases("a") == there
    assert len(there) >= len(said), f"{len(said)} transactions were said to be on the disk, {len(there)} are"
    return len(there)


@pytest.mark.parametrize("death", ["kill", "power"])
def test_whoever_dies_at_any_moment_leaves_whole_transactions(death) -> None:
    """At every crash point, twice in a row: what was said to be there is, and `on_durable` was told just what is."""
    counted = Fuse(-1)
    live(MemoryStore(counted), 3, [])
    assert counted.labels == ["write", "write", "commit", "fsync", "synced"] * 3
    for passes in range(len(counted.labels)):
        store, said, told = MemoryStore(Fuse(passes)), [], []
        store.on_durable = told.append
        with pytest.raises(PowerCut):
            live(store, 3, said)
        with pytest.raises(PowerCut):  # the dead write no more
            live(store, 3, said)
        store.die(death, np.random.default_rng(passes))
        store.crash_point = Fuse(passes % 5)
        found = check_whole(store, said)
        said[:] = range(1, found + 1)  # the next process has seen them ...
        with pytest.raises(PowerCut):
            live(store, 10, said)
        store.die("kill", np.random.default_rng(passes))
        assert check_whole(store, said) in (len(said), len(said) + 1)
        store.crash_point = Fuse(-1)
        said[:] = [row.seq for row in store.rows()]
        live(store, 11, said)
        assert [[type(e) for e in effects] for effects in told] == [[RecordUpdate, CommitRelease]] * 11
        assert [effects[0].update.seq for effects in told] == list(range(1, 12))


def test_a_kill_keeps_what_the_next_fsync_makes_durable() -> None:
    """Committed and not synced, it outlives the process; a power cut before the next fsync may take it, none after."""
    fates = set()
    for seed in range(20):
        store = MemoryStore(Fuse(3))
        with pytest.raises(PowerCut):
            live(store, 1, [])
        store.die("kill", np.random.default_rng(seed))
        assert (len(list(store.rows())), store.durable_verdict("d0", "0" * 16, 1)) == (1, None)
        if seed % 2:
            store.crash_point = Fuse(-1)
            with store.transaction():
                store.next_counter("boot")
            assert store.durable_verdict("d0", "0" * 16, 1) is not None
        store.die("power", np.random.default_rng(seed))
        fates.add((seed % 2, len(list(store.rows()))))
    assert fates == {(0, 0), (0, 1), (1, 1)}


def test_without_fsync_a_power_cut_takes_what_was_said() -> None:
    """The model has teeth: a store that leaves its fsync out is found by the same check, though not by kill -9."""
    lost = 0
    for seed in range(20):
        store, said = MemoryStore(synchronous=False), []
        live(store, 3, said)
        assert store.durable_version("a") is None
        store.die("kill", np.random.default_rng(seed))
        assert check_whole(store, said) == 3
        store.die("power", np.random.default_rng(seed))
        lost += check_whole(store, []) < 3
    assert lost > 5


def test_only_what_is_synced_is_durable() -> None:
    """Seen from inside of a transaction, what it writes is not there yet, and what it removes still is."""
    store = MemoryStore()
    live(store, 1, [])
    with store.transaction():
        store.apply(record(2), 1)
        store.apply(release(2), 1)
        assert store.durable_verdict("d0", "0" * 16, 2) is None
        assert store.durable_version("a") == (1, release(1).release.sha256)
        store.apply(RemoveTask("a"), 1)
        assert store.durable_version("a") == (1, release(1).release.sha256)
    assert store.durable_verdict("d0", "0" * 16, 2) == record(2).verdict
    assert store.durable_version("a") is None


def test_a_full_disk_takes_nothing() -> None:
    """A write raises what SQLite raises, its transaction leaves nothing, and with room the same succeeds."""
    store, said = MemoryStore(), []
    live(store, 1, said)
    store.full = True
    with pytest.raises(sqlite3.OperationalError, match="database or disk is full"):
        live(store, 2, said)
    with store.transaction():
        pass  # nothing to write
    assert check_whole(store, said) == 1
    store.full = False
    live(store, 2, said)
    assert check_whole(store, said) == 2


def test_it_is_fast_enough_for_a_hundred_thousand_updates() -> None:
    """A few microseconds an update: the model is never what a run waits for."""
    store, effects = MemoryStore(), [record(seq) for seq in range(5000)]
    best = math.inf
    for start in range(0, 5000, 500):
        began = time.perf_counter()
        for effect in effects[start : start + 500]:
            with store.transaction():
                store.apply(effect, 1)
        best = min(best, (time.perf_counter() - began) / 500)
    print(f"{best * 1e6:.1f} us")  # noqa: T201  # what was measured
    assert best < 100e-6  # 30 on a quiet machine; the best of ten, for others work here too
