"""What the gateway must not forget: SQLite in WAL mode, one transaction a batch, fsync before anything is visible.

The ledger of updates is the truth that a replay starts from: every accepted update is a row, and its disposal is
exactly one of `buffered`, `counted` (in `version`) and `quarantined`. What a canary's version used is `buffered` with
that version until it is known what the version is worth.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgpack

from broker_aggregator.events import (
    CommitRelease,
    Durable,
    Promote,
    Quarantine,
    RecordUpdate,
    RecordVerdict,
    ReleaseState,
    RemoveClaim,
    RemoveCommand,
    RemoveRollout,
    RemoveTask,
    SaveAttempt,
    SaveCertificate,
    SaveClaim,
    SaveCommand,
    SaveConfiguration,
    SaveCounter,
    SaveDevice,
    SaveEvaluation,
    SaveRollout,
    SaveState,
    SaveTask,
    Withhold,
)
from broker_aggregator.fleet import Certificate, Claim, CommandRecord, Configuration
from broker_aggregator.rollout import Attempt, Rollout
from broker_aggregator.schema import MIGRATIONS, SCHEMA, SCHEMA_VERSION
from broker_aggregator.store_reader import StoreReader
from fl_protocol.codec import encode
from fl_protocol.messages import DeviceState, Plan, Reported, Result
from fl_protocol.tensors import Vector

DISPOSALS: Mapping[ReleaseState, str] = {"released": "counted", "canary": "buffered", "withheld": "quarantined"}


def pack_vectors(vectors: Mapping[str, Vector]) -> bytes:
    """Named float32 vectors as bytes."""
    return bytes(msgpack.packb({name: v.astype("<f4").tobytes() for name, v in vectors.items()}))


class SqliteStore(StoreReader):
    """The embedded default. Raises `ConfigError` for a file that is no store, `sqlite3.Error` when a write fails."""

    def __init__(self, path: Path, *, keep_releases: int = 200) -> None:
        self.keep_releases = keep_releases
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, "rwc")

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")  # the WAL is synced at each commit: accepted means on disk
        self._db.execute("PRAGMA foreign_keys=ON")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._migrate(SCHEMA, SCHEMA_VERSION)
        while version in MIGRATIONS:
            self._migrate(MIGRATIONS[version], version + 1)
            version += 1

    def _migrate(self, statements: Sequence[str], version: int) -> None:
        """To a newer schema, wholly or not at all."""
        with self.transaction():
            for statement in statements:
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={version}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """BEGIN ... COMMIT, or ROLLBACK when anything fails."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    # --- writing ---

    def next_counter(self, name: str) -> int:
        """One more than the last."""
        row = self._db.execute(
            "INSERT INTO counter VALUES (?, 1) ON CONFLICT(name) DO UPDATE SET value = value + 1 RETURNING value",
            (name,),
        ).fetchone()
        return int(row[0])

    def apply(self, effect: Durable, ts: int) -> None:
        """Write one effect."""
        match effect:
            case RecordUpdate():
                self._record(effect, ts)
            case RecordVerdict(device, verdict, base_version, num_bytes):
                self._db.execute(
                    "INSERT INTO ledger(device, incarnation, seq, task, base_version, num_bytes, verdict, ts)"
                    " VALUES (?,?,?,?,?,?,?,?)",
                    (
                        device,
                        verdict.incarnation,
                        verdict.seq,
                        verdict.task,
                        base_version,
                        num_bytes,
                        _text(verdict),
                        ts,
                    ),
                )
            case CommitRelease():
                self._commit(effect, ts)
            case Promote(task, version):
                self._judge(task, version, "released", "counted", "")
            case Withhold(task, version, why):
                self._judge(task, version, "withheld", "quarantined", why)
            case Quarantine(used, why):
                for name in used:
                    self._dispose(name, "quarantined", None, None, None, why)
            case SaveTask():
                self._save_task(effect)
            case SaveEvaluation(task, version, loss, value):
                self._db.execute(
                    "UPDATE release SET loss = ?, value = ? WHERE task = ? AND version = ?",
                    (loss, value, task, version),
                )
            case RemoveTask(task):
                for table, column in (("release", "task"), ("plan", "task"), ("task", "name")):
                    self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", (task,))  # noqa: S608  # our own names
                # No id holds a '#': a later task of the same name shares no row with this one.
                self._db.execute(
                    "UPDATE ledger SET task = task || '#' || ?, update_bytes = NULL WHERE task = ?", (ts, task)
                )
            case SaveDevice(device, public_key, revoked):
                self._db.execute(
                    "INSERT INTO device(id, public_key, revoked) VALUES (?,?,?)"
                    " ON CONFLICT(id) DO UPDATE SET public_key = excluded.public_key, revoked = excluded.revoked",
                    (device, public_key, revoked),
                )
            case SaveClaim(claim):
                self._db.execute("INSERT OR REPLACE INTO claim VALUES (?,?)", (claim.id, _json(claim)))
            case RemoveClaim(name):
                self._db.execute("DELETE FROM claim WHERE id = ?", (name,))
            case SaveCertificate(certificate):
                self._db.execute(
                    "INSERT OR REPLACE INTO certificate VALUES (?,?)", (certificate.serial, _json(certificate))
                )
            case SaveCommand(command):
                row = command.id, command.device, _json(command)
                self._db.execute("INSERT OR REPLACE INTO command VALUES (?,?,?)", row)
            case RemoveCommand(name):
                self._db.execute("DELETE FROM command WHERE id = ?", (name,))
            case SaveRollout(rollout):
                self._db.execute("INSERT OR REPLACE INTO rollout VALUES (?,?)", (rollout.id, _json(rollout)))
            case SaveAttempt(attempt):
                row = attempt.rollout, attempt.device, _json(attempt)
                self._db.execute("INSERT OR REPLACE INTO attempt VALUES (?,?,?)", row)
            case RemoveRollout(name):
                self._db.execute("DELETE FROM attempt WHERE rollout = ?", (name,))
                self._db.execute("DELETE FROM rollout WHERE id = ?", (name,))
            case SaveConfiguration(configuration):
                self._db.execute(
                    "INSERT OR REPLACE INTO configuration VALUES (?,?)", (configuration.device, _json(configuration))
                )
            case SaveState(device, Reported() as reported):
                self._db.execute("INSERT OR REPLACE INTO reported VALUES (?,?,?)", (device, _text(reported), ts))
            case SaveState(device, state):
                column = "state" if isinstance(state, DeviceState) else "info"
                self._db.execute(
                    f"UPDATE device SET {column} = ?, seen_ts = ? WHERE id = ?",  # noqa: S608  # our own names
                    (_text(state), ts, device),
                )
            case SaveCounter(name, value):
                self._db.execute(
                    "INSERT INTO counter VALUES (?,?)"
                    " ON CONFLICT(name) DO UPDATE SET value = max(value, excluded.value)",
                    (name, value),
                )

    def _record(self, effect: RecordUpdate, ts: int) -> None:
        update = effect.update
        self._db.execute(
            "INSERT INTO ledger(device, incarnation, seq, task, base_version, num_bytes, verdict, ts, disposal, norm,"
            " scale, update_bytes) VALUES (?,?,?,?,?,?,?,?,'buffered',?,?,?)",
            (
                update.device,
                update.incarnation,
                update.seq,
                update.task,
                update.base_version,
                effect.num_bytes,
                _text(effect.verdict),
                ts,
                effect.norm,
                effect.scale,
                encode(update),
            ),
        )

    def _commit(self, effect: CommitRelease, ts: int) -> None:
        release = effect.release
        self._db.execute(
            "INSERT INTO release(task, version, plan_revision, fingerprint, sha256, vector, memory, share,"
            " num_examples, step_norm, num_bytes, elapsed_s, ts, state) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                release.task,
                release.version,
                release.plan_revision,
                release.fingerprint,
                release.sha256,
                release.vector.astype("<f4").tobytes(),
                msgpack.packb(
                    [pack_vectors(v) for v in (release.rule, release.optimizer, {"residual": release.residual})]
                ),
                release.share,
                release.num_examples,
                release.step_norm,
                release.num_bytes,
                release.elapsed_s,
                ts,
                effect.state,
            ),
        )
        for place, (name, staleness) in enumerate(zip(release.used, release.staleness, strict=True)):
            self._dispose(name, DISPOSALS[effect.state], release.version, place, staleness, effect.why)
        self._prune(release.task, release.version - self.keep_releases)

    def _judge(self, task: str, version: int, state: ReleaseState, disposal: str, why: str) -> None:
        """A canary's version becomes what it is worth, and with it all that it used."""
        done = self._db.execute(
            "UPDATE release SET state = ? WHERE task = ? AND version = ? AND state = 'canary'", (state, task, version)
        )
        if done.rowcount != 1:
            raise sqlite3.IntegrityError(
                f"version {version} of {task} is not with the canary: it would be judged twice"
            )
        self._db.execute(
            "UPDATE ledger SET disposal = ?, why = ? WHERE task = ? AND version = ? AND disposal = 'buffered'",
            (disposal, why, task, version),
        )

    def _dispose(
        self,
        name: tuple[str, str, int],
        disposal: str,
        version: int | None,
        place: int | None,
        staleness: int | None,
        why: str,
    ) -> None:
        done = self._db.execute(
            "UPDATE ledger SET disposal = ?, version = ?, place = ?, staleness = ?, why = ?"
            " WHERE device = ? AND incarnation = ? AND seq = ? AND disposal = 'buffered' AND version IS NULL",
            (disposal, version, place, staleness, why, *name),
        )
        if done.rowcount != 1:
            raise sqlite3.IntegrityError(f"update {name} is not waiting in a buffer: it would be counted twice")

    def _prune(self, task: str, old: int) -> None:
        """Vectors and payloads of old releases go; their ledger rows stay."""
        self._db.execute(
            "UPDATE release SET vector = NULL, memory = NULL WHERE task = ? AND version < ? AND vector IS NOT NULL",
            (task, old),
        )
        self._db.execute(
            "UPDATE ledger SET update_bytes = NULL WHERE task = ? AND version <= ? AND update_bytes IS NOT NULL",
            (task, old),
        )
        self._db.execute(  # what is quarantined of no version is as old as what it was trained from
            "UPDATE ledger SET update_bytes = NULL WHERE task = ? AND disposal = 'quarantined' AND version IS NULL"
            " AND base_version <= ? AND update_bytes IS NOT NULL",
            (task, old),
        )

    def _save_task(self, effect: SaveTask) -> None:
        plan = effect.plan
        self._db.execute(
            "INSERT INTO task(name, layout, metric, evaluation, elapsed_s, why, better) VALUES (?,?,?,?,?,?,?)"
            " ON CONFLICT(name) DO UPDATE SET layout = excluded.layout, metric = excluded.metric,"
            " evaluation = excluded.evaluation, elapsed_s = excluded.elapsed_s, why = excluded.why,"
            " better = excluded.better",
            (
                plan.task,
                json.dumps(effect.layout.to_rows()),
                effect.metric,
                effect.evaluation,
                effect.elapsed_s,
                effect.why,
                effect.better,
            ),
        )
        self._db.execute(
            "INSERT INTO plan(task, revision, plan, layout) VALUES (?,?,?,?)"
            " ON CONFLICT(task, revision) DO UPDATE SET plan = excluded.plan",
            (plan.task, plan.revision, _text(plan), json.dumps(effect.layout.to_rows())),
        )

    def suspect(self, digest: str) -> None:
        """A delivery was in hand when something raised; on the disk before the process falls."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO suspect VALUES (?, 1) ON CONFLICT(sha256) DO UPDATE SET times = times + 1", (digest,)
            )


def _json(record: Claim | Certificate | CommandRecord | Configuration | Rollout | Attempt) -> str:
    return json.dumps(asdict(record), sort_keys=True)


def _text(message: DeviceState | Plan | Result | Any) -> str:
    return encode(message).decode()
