"""Writes to a gateway's store until it is killed, and says on standard output what the disk must have by then."""

import sqlite3
import sys
from pathlib import Path

import numpy as np

from broker_aggregator.coordinator import Coordinator
from broker_aggregator.events import Durable, Effect, SaveDevice
from broker_aggregator.operations import OPERATOR, versions_of
from broker_aggregator.store import SqliteStore
from tests.support.fleet import FLEET, Gateway, key_of, make_update

FANS = [f"fan-{i}" for i in range(5)]


def keep(store: SqliteStore, effects: list[Effect]) -> None:
    """Apply the durable ones in one transaction."""
    with store.transaction():
        for effect in effects:
            if isinstance(effect, Durable):
                store.apply(effect, 1)


def opened(store: SqliteStore) -> Gateway:
    """A gateway that goes on from the store; a new one makes devices and a task, in one transaction."""
    loaded = store.load(0.0)
    if not loaded.tasks:
        g = Gateway().add(*FANS).start(buffer=3, server_momentum="0.5")
        keep(store, [*(SaveDevice(fan, key_of(fan).public) for fan in FANS), *g.effects])
        return g
    counter, versions = loaded.counters.get(OPERATOR, 0), versions_of(loaded.counters)
    return Gateway(Coordinator(FLEET, loaded.fleet, loaded.tasks, operator_counter=counter, last_versions=versions))


def batch(g: Gateway, seq: int, rng: np.random.Generator) -> list[Effect]:
    """What comes of one update of each fan, all with the same seq: 5 rows, and a release or two."""
    effects: list[Effect] = []
    for fan in FANS:
        taken = g.task.invitations.habits_of(fan).taken
        base = max(taken + 1, g.task.release.version - int(rng.integers(0, 4)))
        effects += g.send(make_update(fan, seq, base, rng.normal(size=3) * 0.1))
    return effects


def last_seq(path: Path) -> int:
    """The newest in the ledger, 0 for an empty one."""
    db = sqlite3.connect(path)
    (seq,) = db.execute("SELECT ifnull(max(seq), 0) FROM ledger").fetchone()
    db.close()
    return int(seq)


def main(path: Path, seed: int) -> None:
    """For ever: a batch of updates in one transaction, and a line with its seq after it."""
    store, rng = SqliteStore(path), np.random.default_rng(seed)
    g, seq = opened(store), last_seq(path)
    while True:
        seq += 1
        keep(store, batch(g, seq, rng))
        sys.stdout.write(f"{seq}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
