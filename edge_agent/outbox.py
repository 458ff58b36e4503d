"""What the device must not forget, on flash storage: updates until their verdict, residuals, counters, the ledger.

SQLite in WAL mode with `synchronous=FULL`: each durable effect is one transaction, whole or not at all, also over a
power cut. One process at a time; nothing here decides anything.
"""

import errno
import json
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.budget import Spent
from edge_agent.commands import Configured, KeptCommand, Paused, read_command, write_command
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
from edge_agent.storage import Kept
from fl_protocol.errors import ConfigError
from fl_protocol.tensors import Vector

SCHEMA = 1
LEDGER_ROWS = 100_000
_COMMAND = "command/"  # + cid: a row of `meta` each, so that earlier software still opens the file
_FULL = {errno.ENOSPC, errno.EDQUOT}
_TABLES = """
CREATE TABLE meta     (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE updates  (task TEXT PRIMARY KEY, incarnation TEXT, seq INTEGER, base_version INTEGER, fingerprint TEXT,
                       num_examples INTEGER, sealed BLOB, if_accepted BLOB, if_refused BLOB, origin INTEGER);
CREATE TABLE residuals(task TEXT PRIMARY KEY, fingerprint TEXT, vector BLOB, origin INTEGER);
CREATE TABLE personal (task TEXT PRIMARY KEY, fingerprint TEXT, vector BLOB, origin INTEGER);
CREATE TABLE trained  (task TEXT PRIMARY KEY, version INTEGER) WITHOUT ROWID;
CREATE TABLE counters (topic TEXT PRIMARY KEY, counter INTEGER) WITHOUT ROWID;
CREATE TABLE ledger   (id INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT, incarnation TEXT, seq INTEGER,
                       base_version INTEGER, num_examples INTEGER, verdict TEXT, code TEXT);
"""
_COLUMNS = "task, incarnation, seq, base_version, fingerprint, num_examples, sealed, if_accepted, if_refused, origin"
_LEDGER = ("task", "incarnation", "seq", "base_version", "num_examples", "verdict", "code")


class Outbox:
    """The device's database. Raises `ConfigError` for one that cannot be opened, read or written."""

    def __init__(self, path: Path, ledger_rows: int = LEDGER_ROWS) -> None:
        self._path, self._ledger_rows = path, ledger_rows
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
            self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-512;")
            self._create()
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from None

    def start(self) -> Restored:
        """Count this start, and read what the last one left behind."""
        try:
            (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            with _transaction(self._db):
                boot = int(self._meta("boot") or 0) + 1
                incarnation = str(self._meta("incarnation") or secrets.token_hex(8))
                self._set_meta(boot=boot, incarnation=incarnation)
            return Restored(
                boot=boot,
                incarnation=incarnation,
                seq=int(self._meta("seq") or 0),
                counters=dict(self._db.execute("SELECT topic, counter FROM counters")),
                trained=dict(self._db.execute("SELECT task, version FROM trained")),
                pending=tuple(map(_pending, self._db.execute(f"SELECT {_COLUMNS} FROM updates"))),  # noqa: S608
                residuals=self._vectors("residuals"),
                personal=self._vectors("personal"),
                spent=self._spent(),
                commands=self._commands(),
                paused=Paused(**kept) if (kept := self._meta_json("paused")) else None,
                configured=Configured(**(self._meta_json("configured") or {})),
                followed=self._followed(),
            )
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise self._unusable(error) from None

    def incarnation(self) -> str:
        """This life of the storage: 16 hex digits, made at its first use."""
        if self._meta("incarnation") is None:
            with _transaction(self._db):
                self._set_meta(incarnation=secrets.token_hex(8))
        return str(self._meta("incarnation"))

    def apply(self, effect: Kept) -> bool:
        """One transaction, on the disk when this returns True; False when the disk is full, and nothing has changed."""
        try:
            with _transaction(self._db):
                match effect:
                    case SaveUpdate():
                        self._save_update(effect)
                    case Settle():
                        self._settle(effect)
                    case Forget(task):
                        for table in ("updates", "residuals", "personal", "trained"):
                            self._db.execute(f"DELETE FROM {table} WHERE task = ?", [task])  # noqa: S608
                    case SaveCounter(topic, counter):
                        self._count(topic, counter)
                    case SaveFleetKey(configured, key):
                        self._set_meta(fleet_key=key, fleet_key_from=configured)
                    case SaveSpent(spent):
                        self._set_meta(**{f"spent_{name}": value for name, value in asdict(spent).items()})
                    case SaveCommand(command):
                        self._set_meta(**{_COMMAND + command.cid: write_command(command)})
                    case ForgetCommand(cid):
                        self._db.execute("DELETE FROM meta WHERE name = ?", [_COMMAND + cid])
                    case SavePaused(paused):
                        self._set_meta(paused=json.dumps(paused and asdict(paused)))
                    case SaveConfigured(configured):
                        self._set_meta(configured=json.dumps(asdict(configured)))
        except (sqlite3.Error, OSError) as error:
            if _is_full(error):
                return False
            raise self._unusable(error) from None
        return True

    def ledger(self) -> list[dict[str, Any]]:
        """All verdicts that are kept, oldest first."""
        rows = self._db.execute(f"SELECT {', '.join(_LEDGER)} FROM ledger ORDER BY id")  # noqa: S608
        return [dict(zip(_LEDGER, row, strict=True)) for row in rows]

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _save_update(self, effect: SaveUpdate) -> None:
        update, personal = effect.update, effect.personal
        row = (
            *(update.task, update.incarnation, update.seq, update.base_version, update.fingerprint),
            *(update.num_examples, update.sealed, _bytes(update.if_accepted), _bytes(update.if_refused)),
            update.origin,
        )
        self._db.execute(f"INSERT INTO updates({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)", row)  # noqa: S608
        self._db.execute("INSERT OR REPLACE INTO trained VALUES (?,?)", [update.task, update.base_version])
        if personal.vector.size:
            self._put("personal", update.task, personal.fingerprint, _bytes(personal.vector), personal.origin)
        self._set_meta(seq=update.seq)

    def _settle(self, effect: Settle) -> None:
        result = effect.result
        which = "if_accepted" if result.verdict == "accepted" else "if_refused"
        mine = "task = ? AND incarnation = ? AND seq = ?"
        key = [result.task, result.incarnation, result.seq]
        query = f"SELECT fingerprint, origin, base_version, num_examples, {which} FROM updates WHERE {mine}"  # noqa: S608
        for fingerprint, origin, base, examples, residual in self._db.execute(query, key).fetchall():
            self._put("residuals", result.task, fingerprint, residual, origin)
            self._db.execute(
                f"INSERT INTO ledger({', '.join(_LEDGER)}) VALUES (?,?,?,?,?,?,?)",  # noqa: S608
                [*key, base, examples, result.verdict, result.code],
            )
            self._db.execute("DELETE FROM ledger WHERE id <= last_insert_rowid() - ?", [self._ledger_rows])
        self._db.execute(f"DELETE FROM updates WHERE {mine}", key)  # noqa: S608
        self._count(effect.topic, result.counter)

    def _count(self, topic: str, counter: int) -> None:
        self._db.execute(
            "INSERT INTO counters VALUES (?1,?2) ON CONFLICT DO UPDATE SET counter = max(counter, ?2)", [topic, counter]
        )

    def _followed(self) -> tuple[str, str] | None:
        key = self._meta("fleet_key")
        return None if key is None else (str(self._meta("fleet_key_from")), str(key))

    def _spent(self) -> Spent:
        names = [field.name for field in fields(Spent)]
        kept = {name: self._meta(f"spent_{name}") for name in names}
        return Spent() if kept["total"] is None else Spent(**kept)

    def _commands(self) -> tuple[KeptCommand, ...]:
        rows = self._db.execute("SELECT value FROM meta WHERE name GLOB ? ORDER BY name", [f"{_COMMAND}*"])
        return tuple(read_command(text) for (text,) in rows)

    def _meta_json(self, name: str) -> Any:
        return json.loads(self._meta(name) or "null")

    def _put(self, table: str, task: str, fingerprint: str, blob: bytes, origin: int) -> None:
        row = [task, fingerprint, blob, origin]
        self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES (?,?,?,?)", row)  # noqa: S608

    def _vectors(self, table: str) -> dict[str, LocalVector]:
        rows = self._db.execute(f"SELECT task, fingerprint, vector, origin FROM {table}")  # noqa: S608
        return {task: LocalVector(fingerprint, _vector(blob), origin) for task, fingerprint, blob, origin in rows}

    def _meta(self, name: str) -> Any:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", [name]).fetchone()
        return row and row[0]

    def _set_meta(self, **values: object) -> None:
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?,?)", values.items())

    def _create(self) -> None:
        (schema,) = self._db.execute("PRAGMA user_version").fetchone()
        if schema > SCHEMA:
            raise sqlite3.DatabaseError(f"it has schema {schema}; this software reads {SCHEMA}")
        if schema == 0:
            self._db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;")

    def _unusable(self, error: Exception) -> ConfigError:
        hint = f"make {self._path.parent} a writable directory of this user, on a disk with room and without errors"
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            hint = f"move {self._path}* away to start as a new incarnation; updates without a verdict are lost with it"
        return ConfigError(f"cannot use the device's database {self._path}: {error}", hint)


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; unlike sqlite3's own context manager also when COMMIT itself finds the disk full."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _pending(row: tuple[Any, ...]) -> PendingUpdate:
    task, incarnation, seq, base, fingerprint, examples, sealed, accepted, refused, origin = row
    residuals = _vector(accepted), _vector(refused)
    return PendingUpdate(task, incarnation, seq, base, fingerprint, examples, sealed, *residuals, origin)


def _bytes(vector: Vector) -> bytes:
    return vector.astype("<f4", copy=False).tobytes()


def _vector(blob: bytes) -> Vector:
    return np.frombuffer(blob, "<f4").astype(np.float32, copy=False)
