"""The gateway's store on a real disk: as people read it, what is no store, and kill -9. Its rules: tests/contracts/."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from broker_aggregator.reading import devices, replay, status
from broker_aggregator.store import SqliteStore
from broker_aggregator.store_reader import StoreReader
from fl_protocol.errors import ConfigError
from tests.contracts.test_store import feed, started


@pytest.fixture
def store(tmp_path):
    store = SqliteStore(tmp_path / "store.sqlite")
    yield store
    store.close()


def test_people_can_read_it(store):
    """`status` and `devices` agree with what happened."""
    g = started(store)
    feed(g, store, np.random.default_rng(7), 20)
    (task,) = status(store)
    assert task["version"] == g.task.release.version
    assert task["updates"] == {k: v for k, v in g.task.verdicts.items() if v}
    assert sum(d["accepted"] for d in devices(store)) == g.task.verdicts["accepted"]
    said = g.task.status(1, 1)
    assert said.ratio_up
    for name in ("bytes_up", "bytes_up_float32", "ratio_up"):
        assert task[name] == getattr(said, name)


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


def test_a_store_of_an_older_schema_is_brought_up(tmp_path):
    """What a gateway of schema 1 left goes on; a higher metric was the better one for all of its tasks."""
    path = tmp_path / "store"
    store = SqliteStore(path)
    g = started(store)
    feed(g, store, np.random.default_rng(7), 9)
    before = status(store)
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE task DROP COLUMN better")
        db.execute("ALTER TABLE release DROP COLUMN state")
        db.execute("PRAGMA user_version = 1")
    again = SqliteStore(path)
    assert status(again) == before
    assert again.load(0.0).tasks["fan"].measured.better == "higher"
    again.close()
    StoreReader(path).close()


WRITER = """
import sys
from pathlib import Path
import numpy as np
from broker_aggregator.store import SqliteStore
from tests.contracts.test_store import feed, started
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
