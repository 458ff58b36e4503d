"""Both stores and both outboxes, each on a disk that outlives whoever opens it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from anabranch.simulator.outbox_model import MemoryOutbox
from anabranch.simulator.power import Death, never
from anabranch.simulator.store_model import MemoryStore, Row
from broker_aggregator.store import SqliteStore
from edge_agent.outbox import Outbox
from fl_protocol.codec import decode_as
from fl_protocol.messages import Result, Update

Kind = Literal["sqlite", "memory"]
KINDS: tuple[Kind, ...] = ("sqlite", "memory")


@dataclass
class StoreDisk:
    """Where a store is kept."""

    kind: Kind
    folder: Path
    opened: list[SqliteStore | MemoryStore] = field(default_factory=list)

    def open(self, keep_releases: int = 200, death: Death = "kill") -> SqliteStore | MemoryStore:
        """The store as the next process finds it; the last one is gone."""
        if self.kind == "memory":
            if self.opened:
                self.opened[0].die(death, np.random.default_rng(0))  # type: ignore[union-attr]
                self.opened[0].keep_releases = keep_releases
            return self._opened(self.opened[0] if self.opened else MemoryStore(keep_releases=keep_releases))
        self.close()
        return self._opened(SqliteStore(self.folder / "store.sqlite", keep_releases=keep_releases))

    def close(self) -> None:
        """Let go of it."""
        for store in self.opened:
            store.close()

    def _opened(self, store: SqliteStore | MemoryStore) -> SqliteStore | MemoryStore:
        self.opened.append(store)
        return store


@dataclass
class OutboxDisk:
    """Where an outbox is kept."""

    kind: Kind
    folder: Path
    name: str = "o.sqlite3"
    _outbox: Outbox | MemoryOutbox | None = None

    def open(self, ledger_rows: int = 100_000, death: Death = "kill") -> Outbox | MemoryOutbox:
        """The outbox as the next process finds it; the last one is gone."""
        last = self._outbox
        if isinstance(last, MemoryOutbox):
            last.die(death, np.random.default_rng(0))
        elif self.kind == "memory":
            seed = sum(self.name.encode())
            self._outbox = MemoryOutbox(never, np.random.default_rng(seed), ledger_rows)
        else:
            if last is not None:
                last.close()
            self._outbox = Outbox(self.folder / self.name, ledger_rows)
        assert self._outbox is not None
        return self._outbox

    def close(self) -> None:
        """Let go of it."""
        if self._outbox is not None:
            self._outbox.close()


def fill(outbox: Outbox | MemoryOutbox) -> None:
    """From now on there is no room on its disk."""
    if isinstance(outbox, MemoryOutbox):
        outbox.full = True
        return
    outbox._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (pages,) = outbox._db.execute("PRAGMA page_count").fetchone()
    outbox._db.execute(f"PRAGMA max_page_count = {pages}")


def make_room(outbox: Outbox | MemoryOutbox) -> None:
    """From now on there is."""
    if isinstance(outbox, MemoryOutbox):
        outbox.full = False
    else:
        outbox._db.execute("PRAGMA max_page_count = 1000000")


def rows(store: SqliteStore | MemoryStore) -> list[Row]:
    """A store's ledger, in record order."""
    if isinstance(store, MemoryStore):
        return list(store.rows())
    return [
        Row(
            *(row["device"], row["incarnation"], row["seq"], row["task"], row["base_version"], row["num_bytes"]),
            decode_as(Result, row["verdict"].encode()),
            *(row["disposal"], row["version"], row["place"], row["staleness"], row["why"], row["norm"], row["scale"]),
            decode_as(Update, row["update_bytes"]) if row["update_bytes"] is not None else None,
        )
        for row in store.query("SELECT * FROM ledger ORDER BY id")
    ]
