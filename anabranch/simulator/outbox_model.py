"""The device's database in memory: what `edge_agent.outbox.Outbox` means, on a disk that can fail.

Rows hold the effects' own objects, never changed; thousands of outboxes live in one process.
tests/contracts/test_outbox.py and test_outbox_model.py hold the two to each other.
"""

import sqlite3
from typing import Any

import numpy as np

from anabranch.simulator.journal import Journal, NoRoom, Table
from anabranch.simulator.power import CrashPoint
from edge_agent.budget import Spent
from edge_agent.commands import Configured, KeptCommand
from edge_agent.events import (
    Forget,
    ForgetCommand,
    LocalVector,
    PendingUpdate,
    Restored,
    SaveCommand,
    SaveConfigured,
    SaveCounter,
    SaveFleetKey,
    SavePaused,
    SaveSpent,
    SaveUpdate,
    Settle,
)
from edge_agent.outbox import LEDGER_ROWS
from edge_agent.storage import Kept
from fl_protocol.errors import ConfigError

_Verdict = tuple[str, str, int, int, int, str, str]
_LEDGER = ("task", "incarnation", "seq", "base_version", "num_examples", "verdict", "code")


class MemoryOutbox(Journal[Kept]):
    """`edge_agent.storage.Database`. `rng` draws the incarnation at the first start; see `Journal` for how it fails."""

    __slots__ = (
        "_commands",
        "_counters",
        "_ledger",
        "_ledger_rows",
        "_meta",
        "_personal",
        "_residuals",
        "_rng",
        "_trained",
        "_updates",
    )

    def __init__(
        self,
        crash_point: CrashPoint,
        rng: np.random.Generator,
        ledger_rows: int = LEDGER_ROWS,
        *,
        synchronous: bool = True,
    ) -> None:
        super().__init__(crash_point, synchronous=synchronous)
        self._rng, self._ledger_rows = rng, ledger_rows
        self._meta: Table[Any] = {}  # boot, incarnation, seq, spent, paused, configured; the last ids of two tables
        self._commands: Table[KeptCommand] = {}  # by cid
        self._updates: Table[tuple[int, PendingUpdate]] = {}  # by task, with the id that orders them
        self._residuals: Table[LocalVector] = {}
        self._personal: Table[LocalVector] = {}
        self._trained: Table[int] = {}
        self._counters: Table[int] = {}
        self._ledger: Table[_Verdict] = {}  # by id

    @property
    def seq(self) -> int:
        """The number of the last update that was made."""
        return int(self._meta.get("seq", 0))

    @property
    def pending(self) -> tuple[PendingUpdate, ...]:
        """Updates without a final verdict, oldest first."""
        return tuple(update for _, update in sorted(self._updates.values(), key=lambda row: row[0]))

    def start(self) -> Restored:
        """Count this start, and read what the last one left behind. Raises `ConfigError` where that cannot be."""
        try:
            with self.transaction():
                self._set(self._meta, "boot", self._meta.get("boot", 0) + 1)
                self._name()
                self._done()
        except sqlite3.Error as error:
            raise _unusable(error) from None
        return Restored(
            boot=self._meta["boot"],
            incarnation=self._meta["incarnation"],
            seq=self._meta.get("seq", 0),
            counters=dict(sorted(self._counters.items())),
            trained=dict(sorted(self._trained.items())),
            pending=self.pending,
            residuals=dict(sorted(self._residuals.items())),
            personal=dict(sorted(self._personal.items())),
            spent=self._meta.get("spent", Spent()),
            commands=tuple(command for _, command in sorted(self._commands.items())),
            paused=self._meta.get("paused"),
            configured=self._meta.get("configured", Configured()),
            followed=self._meta.get("followed"),
        )

    def incarnation(self) -> str:
        """This life of the storage: 16 hex digits, made at its first use."""
        if "incarnation" not in self._meta:
            with self.transaction():
                self._name()
        return str(self._meta["incarnation"])

    def apply(self, effect: Kept) -> bool:
        """One transaction, on the disk when this returns True; False when the disk is full, and nothing has changed."""
        try:
            with self.transaction():
                match effect:
                    case SaveUpdate(update, personal):
                        self._save(update, personal)
                    case Settle():
                        self._settle_update(effect)
                    case Forget(task):
                        tables: list[Table[Any]] = [self._updates, self._residuals, self._personal, self._trained]
                        for table in tables:
                            if task in table:
                                self._delete(table, task)
                    case SaveCounter(topic, counter):
                        self._count(topic, counter)
                    case SaveFleetKey(configured, key):
                        self._set(self._meta, "followed", (configured, key))
                    case SaveSpent(spent):
                        self._set(self._meta, "spent", spent)
                    case SaveCommand(command):
                        self._set(self._commands, command.cid, command)
                    case ForgetCommand(cid):
                        if cid in self._commands:
                            self._delete(self._commands, cid)
                    case SavePaused(paused):
                        self._set(self._meta, "paused", paused)
                    case SaveConfigured(configured):
                        self._set(self._meta, "configured", configured)
                self._done(effect)
        except NoRoom:
            return False
        except sqlite3.Error as error:
            raise _unusable(error) from None
        return True

    def ledger(self) -> list[dict[str, Any]]:
        """All verdicts that are kept, oldest first."""
        return [dict(zip(_LEDGER, self._ledger[id_], strict=True)) for id_ in sorted(self._ledger)]

    def _name(self) -> None:
        if "incarnation" not in self._meta:
            self._set(self._meta, "incarnation", self._rng.bytes(8).hex())

    def _save(self, update: PendingUpdate, personal: LocalVector) -> None:
        task = update.task
        if task in self._updates:
            raise sqlite3.IntegrityError("UNIQUE constraint failed: updates.task")
        self._set(self._updates, task, (self._next_id("updates"), update))
        self._set(self._trained, task, update.base_version)
        if personal.vector.size:
            self._set(self._personal, task, personal)
        self._set(self._meta, "seq", update.seq)

    def _settle_update(self, effect: Settle) -> None:
        result = effect.result
        task, key = result.task, (result.task, result.incarnation, result.seq)
        _, update = self._updates.get(task, (0, None))
        if update is not None and (update.task, update.incarnation, update.seq) == key:
            residual = update.if_accepted if result.verdict == "accepted" else update.if_refused
            self._set(self._residuals, task, LocalVector(update.fingerprint, residual, update.origin))
            row = (*key, update.base_version, update.num_examples, result.verdict, result.code)
            newest = self._next_id("ledger")
            self._set(self._ledger, newest, row)
            if newest - self._ledger_rows in self._ledger:
                self._delete(self._ledger, newest - self._ledger_rows)
            self._delete(self._updates, task)
        self._count(effect.topic, result.counter)

    def _count(self, topic: str, counter: int) -> None:
        self._set(self._counters, topic, max(counter, self._counters.get(topic, counter)))

    def _next_id(self, table: str) -> int:
        id_ = int(self._meta.get(table, 0)) + 1
        self._set(self._meta, table, id_)
        return id_


def _unusable(error: sqlite3.Error) -> ConfigError:
    return ConfigError(f"cannot use the device's database: {error}", "it is a model: see why it got there")
