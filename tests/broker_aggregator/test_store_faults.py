"""The gateway's SQLite under real faults: kill -9 at any moment, and a disk that is full."""

import itertools
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from broker_aggregator.events import SaveDevice
from broker_aggregator.reading import replay
from broker_aggregator.store import SqliteStore
from tests.broker_aggregator.store_writer import FANS, batch, keep, last_seq, opened
from tests.support.fleet import Gateway
from tests.support.small_disk import ROOT, SmallDisk, on_a_small_disk


@contextmanager
def store_at(path: Path) -> Iterator[SqliteStore]:
    """A store, closed at the end."""
    with closing(SqliteStore(path)) as store:
        yield store


def check(path: Path) -> int:
    """A store is sound: whole batches, one disposal an accepted update, releases that can be made again; the last seq.

    Batches are of `store_writer`: a row of each fan.
    """
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute(
            "SELECT device, seq, json_extract(verdict, '$.verdict'), disposal, version FROM ledger ORDER BY id"
        ).fetchall()
        used = Counter(row[0] for row in db.execute("SELECT version FROM ledger WHERE disposal = 'counted'"))
        released = {row[0] for row in db.execute("SELECT version FROM release")}
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    last = len(rows) // len(FANS)
    assert [row[:2] for row in rows] == [(fan, seq) for seq in range(1, last + 1) for fan in FANS]
    for _, _, verdict, disposal, version in rows:
        assert (disposal in ("buffered", "counted")) == (verdict == "accepted")
        assert (version is not None) == (disposal == "counted")
    assert released - {0} == set(used) == set(range(1, len(used) + 1))
    with store_at(path) as store:
        again = list(replay(store, "fan"))
        assert [r.version for r in again] == sorted(used)
        assert all(r.same and r.updates == used[r.version] for r in again)
        waiting = store.load(0.0).tasks["fan"].buffer
        assert len(waiting) == sum(disposal == "buffered" for _, _, _, disposal, _ in rows)
    return last


def test_killed_at_any_moment_the_store_has_whole_transactions(tmp_path: Path) -> None:
    """A writer that goes on from where the last was killed: what it said is there, and all of it is sound."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201  # pytest shows it with a failure
    rng, path, said = random.Random(seed), tmp_path / "store.sqlite", 0
    for life in range(6):
        command = [sys.executable, str(ROOT / "tests/broker_aggregator/store_writer.py"), str(path), str(seed + life)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}
        ) as writer:
            assert writer.stdout
            lines = [writer.stdout.readline() for _ in range(rng.randrange(1, 12))]
            deadline = time.monotonic() + rng.random() * 0.02
            while time.monotonic() < deadline:  # somewhere inside of a transaction, not just after one
                pass
            writer.kill()
            lines += writer.stdout.readlines()
        said = max(int(line) for line in lines if line.endswith("\n"))
        assert said <= check(path) <= said + 1


def keep_until_it_is_full(store: SqliteStore, g: Gateway, rng: np.random.Generator) -> int:
    """The last batch that fitted."""
    for seq in itertools.count(2):
        try:
            keep(store, batch(g, seq, rng))
        except sqlite3.OperationalError as error:
            assert "full" in str(error)  # noqa: PT017  # the loop ends here or nowhere
            return seq - 1
    raise AssertionError


@on_a_small_disk(kilobytes=1024)
def test_a_store_on_a_full_disk(disk: SmallDisk) -> None:
    """However many pages are free: a batch is there whole, or it raises and nothing of it is; then it works again."""
    fitted = []
    for pages in range(30):
        path, rng = disk.path / str(pages) / "store.sqlite", np.random.default_rng(pages)
        with store_at(path) as store:
            g = opened(store)
            keep(store, batch(g, 1, rng))
            disk.fill(pages)
            kept = keep_until_it_is_full(store, g, rng)
            assert last_seq(path) == kept
            with pytest.raises(sqlite3.OperationalError, match="full"), store.transaction():
                store.apply(SaveDevice("x" * 60_000, "f" * 64), 1)
            assert set(store.load(0.0).fleet.devices) == set(FANS)
            disk.make_room()
        assert check(path) == kept
        with store_at(path) as store:
            keep(store, batch(opened(store), kept + 1, rng))
        assert check(path) == kept + 1
        fitted.append(kept)
        for file in path.parent.iterdir():
            file.unlink()
    assert fitted[0] == 1 < fitted[-1]
