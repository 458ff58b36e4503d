"""Tables in memory with what a database's log does: whole transactions, an fsync, and two ways to die.

The model, after SQLite in WAL mode with `synchronous=FULL` (https://sqlite.org/wal.html, https://sqlite.org/atomiccommit.html):

- a transaction is open, then committed (in the log, in the page cache), then synced (on the disk);
- whoever dies in an open one leaves nothing of it;
- kill -9 takes nothing that was committed; a power cut leaves some first ones of the committed transactions that no
  fsync has followed, in their order, each of them whole;
- an fsync makes all that was committed before it durable, also what an earlier process committed.
"""

import sqlite3
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np

from anabranch.simulator.power import CrashPoint, Death, PowerCut, never

E = TypeVar("E")  # of the effects that are written
V = TypeVar("V")
Table = dict[Any, V]
_MISSING: Any = object()
_Undo = list[tuple[Table[Any], Hashable, Any]]  # (table, key, its value before), oldest first


class NoRoom(sqlite3.OperationalError):
    """The disk is full."""

    def __init__(self) -> None:
        super().__init__("database or disk is full")


class Failure(sqlite3.OperationalError):
    """The disk does not write."""

    def __init__(self) -> None:
        super().__init__("disk I/O error")


class Journal(Generic[E]):
    """A database of dicts, and its disk: it outlives the processes that use it.

    A subclass keeps its rows in dicts, reads them freely, and changes them by `_set` and `_delete` alone, in a
    transaction. Its tables have no order: what a rollback puts back comes last.

    `crash_point` is called with `write` before an effect's first change, `commit`, `fsync`, and `synced` after that;
    its `PowerCut` leaves the database dead until `die` has said what is left of it. `full` makes every write raise
    `NoRoom`, and `fails` `Failure`. `on_durable` is told the effects of each transaction as soon as nothing can take
    them any more: right after the fsync, or in a power cut that it came through. With `synchronous` False the fsync is
    left out, like a database whose `PRAGMA synchronous` is OFF: a planted bug.
    """

    __slots__ = (
        "_committed",
        "_cut",
        "_effects",
        "_undo",
        "_writing",
        "crash_point",
        "fails",
        "full",
        "on_durable",
        "synchronous",
    )

    def __init__(self, crash_point: CrashPoint = never, *, synchronous: bool = True) -> None:
        self.crash_point, self.synchronous = crash_point, synchronous
        self.full = self.fails = False
        self.on_durable: Callable[[Sequence[E]], None] | None = None
        self._cut: PowerCut | None = None
        self._undo: _Undo | None = None  # of the open transaction
        self._effects: list[E] = []  # of the open transaction
        self._writing = False  # an effect has changed something, and is not done yet
        self._committed: list[tuple[_Undo, list[E]]] = []  # not synced, oldest first

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """BEGIN ... COMMIT and an fsync, or ROLLBACK when anything fails. One that wrote nothing touches no disk."""
        self._alive()
        if self._undo is not None:
            raise sqlite3.OperationalError("cannot start a transaction within a transaction")
        self._undo, self._effects, self._writing = [], [], False
        try:
            yield
            if self._undo:
                self._pass("commit")
                self._may_write()
        except PowerCut as cut:
            self._cut = cut
            raise
        except BaseException:
            self._roll_back()
            raise
        if self._undo:
            self._committed.append((self._undo, self._effects))
            self._undo, self._effects = None, []
            if self.synchronous:
                self._sync()
        self._undo = None

    def die(self, death: Death, rng: np.random.Generator) -> None:
        """The process is gone, and with a power cut what the disk did not have; `rng` decides what it had.

        Then the next process may use what is left.
        """
        self._roll_back()
        if death == "power":
            kept = int(rng.integers(len(self._committed) + 1))
            for undo, _ in reversed(self._committed[kept:]):
                _take_back(undo)
            del self._committed[kept:]
            self._settle()
        self._cut = None

    def close(self) -> None:
        """The process lets go of its disk."""

    # --- for subclasses ---

    def _set(self, table: Table[V], key: Hashable, value: V) -> None:
        """Write a row."""
        if not self._writing:
            self._begin_effect()
        assert self._undo is not None
        self._undo.append((table, key, table.get(key, _MISSING)))
        table[key] = value

    def _delete(self, table: Table[V], key: Hashable) -> None:
        """Take a row away that is there."""
        if not self._writing:
            self._begin_effect()
        assert self._undo is not None
        self._undo.append((table, key, table.pop(key)))

    def _done(self, *effects: E) -> None:
        """The changes since the last call were for these effects; such as changed nothing are not told."""
        if self._writing:
            self._effects.extend(effects)
            self._writing = False

    def _synced(self, table: Table[V]) -> Mapping[Any, V]:
        """A table as a power cut now would leave it at the worst."""
        changes = [change for undo, _ in self._committed for change in undo] + (self._undo or [])
        if not changes:
            return table
        copy = dict(table)
        _take_back([(copy, key, before) for changed, key, before in changes if changed is table])
        return copy

    # --- inside ---

    def _begin_effect(self) -> None:
        self._alive()
        if self._undo is None:
            raise sqlite3.ProgrammingError("a write outside of a transaction")
        self._pass("write")
        self._may_write()
        self._writing = True

    def _may_write(self) -> None:
        if self.full:
            raise NoRoom
        if self.fails:
            raise Failure

    def _sync(self) -> None:
        self._pass("fsync")
        self._settle()
        self._pass("synced")

    def _settle(self) -> None:
        """Nothing takes back what is committed by now."""
        settled, self._committed = self._committed, []
        for _, effects in settled:
            if effects and self.on_durable is not None:
                self.on_durable(effects)

    def _roll_back(self) -> None:
        undo, self._undo, self._effects = self._undo or [], None, []
        _take_back(undo)

    def _pass(self, label: str) -> None:
        try:
            self.crash_point(label)
        except PowerCut as cut:
            self._cut = cut
            raise

    def _alive(self) -> None:
        if self._cut is not None:
            raise self._cut


def _take_back(undo: _Undo) -> None:
    for table, key, before in reversed(undo):
        if before is _MISSING:
            del table[key]
        else:
            table[key] = before
