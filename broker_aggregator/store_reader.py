"""What the gateway remembers, as rows and as the coordinator's state. Nothing here writes."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np

from broker_aggregator.events import Release
from broker_aggregator.fleet import KEPT_VERDICTS, Certificate, Claim, CommandRecord, Configuration, Device
from broker_aggregator.releasing import Buffered
from broker_aggregator.restoring import KeptCanary, KeptTask, Loaded, not_kept, restored_fleet, restored_task
from broker_aggregator.rollout import Attempt, KeptRelease, Rollout
from broker_aggregator.schema import SCHEMA_VERSION
from broker_aggregator.task import KEPT_NORMS
from fl_protocol.codec import decode_as
from fl_protocol.errors import ConfigError
from fl_protocol.messages import DeviceInfo, DeviceState, Plan, Reported, Result, Update
from fl_protocol.tensors import ModelLayout, Vector


def unpack_vectors(data: bytes) -> dict[str, Vector]:
    """The inverse of `pack_vectors`."""
    return {name: np.frombuffer(v, "<f4").astype(np.float32) for name, v in msgpack.unpackb(data).items()}


class StoreReader:
    """A store open for reading, beside a gateway that writes it. Raises `ConfigError` for a file that is none."""

    def __init__(self, path: Path, mode: str = "ro") -> None:
        self.path = path
        if mode == "ro" and not path.exists():
            raise ConfigError(f"there is no store at {path}", "`broker-aggregator run` makes it at its first start")
        try:
            uri = f"{path.absolute().as_uri()}?mode={mode}"
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10)
            self._db.row_factory = sqlite3.Row
            self._prepare()
            version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        except sqlite3.Error as error:
            raise ConfigError(f"{path} is not a usable store: {error}", "restore it from a backup") from None
        if version != SCHEMA_VERSION:
            raise ConfigError(
                f"{path} has schema {version}, this software reads {SCHEMA_VERSION}",
                "install the version that wrote it",
            )

    def _prepare(self) -> None:
        """What a reader need not do."""

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def suspects(self) -> dict[str, int]:
        """How often each delivery was in hand at a crash."""
        return {row["sha256"]: row["times"] for row in self.query("SELECT * FROM suspect")}

    def query(self, sql: str, *arguments: object) -> list[sqlite3.Row]:
        """Rows for people: `status`, `devices`, the reports."""
        return self._db.execute(sql, arguments).fetchall()

    def load(self, now: float) -> Loaded:
        """Fleet, tasks with their buffers, counters."""
        return Loaded(
            restored_fleet(self._devices(), self._newest_verdicts()),
            {
                row["name"]: restored_task(self._kept_task(row), now)
                for row in self.query("SELECT * FROM task ORDER BY name")
            },
            {row["name"]: row["value"] for row in self.query("SELECT * FROM counter")},
            self.claims(),
            self.certificates(),
            self.commands(),
            self.configurations(),
            rollouts := self.rollouts(),
            {id_: self.attempts(id_) for id_ in rollouts},
        )

    def claims(self) -> dict[str, Claim]:
        """The tickets that are out, by id."""
        return {r["id"]: Claim(**json.loads(r["claim"])) for r in self.query("SELECT * FROM claim ORDER BY id")}

    def certificates(self) -> dict[str, Certificate]:
        """All that were ever issued, by serial number."""
        rows = self.query("SELECT * FROM certificate ORDER BY serial")
        return {r["serial"]: Certificate(**json.loads(r["certificate"])) for r in rows}

    def commands(self) -> dict[str, CommandRecord]:
        """What devices were told to do, by id."""
        rows = self.query("SELECT * FROM command ORDER BY id")
        return {r["id"]: CommandRecord(**json.loads(r["command"])) for r in rows}

    def configurations(self) -> dict[str, Configuration]:
        """What is wanted of each device, and of all."""
        rows = self.query("SELECT * FROM configuration ORDER BY device")
        return {r["device"]: Configuration(**json.loads(r["configuration"])) for r in rows}

    def rollouts(self) -> dict[str, Rollout]:
        """The roll-outs of the agent, by id."""
        kept = {r["id"]: json.loads(r["rollout"]) for r in self.query("SELECT * FROM rollout ORDER BY id")}
        return {id_: Rollout(**{**plain, "release": KeptRelease(**plain["release"])}) for id_, plain in kept.items()}

    def attempts(self, rollout: str) -> dict[str, Attempt]:
        """The devices of a roll-out, and how far each is."""
        rows = self.query("SELECT * FROM attempt WHERE rollout = ? ORDER BY device", rollout)
        return {r["device"]: Attempt(**json.loads(r["attempt"])) for r in rows}

    def reported(self) -> dict[str, Reported]:
        """What configuration each device says that it has."""
        rows = self.query("SELECT * FROM reported ORDER BY device")
        return {r["device"]: decode_as(Reported, r["reported"].encode()) for r in rows}

    def _devices(self) -> Iterator[Device]:
        for row in self.query("SELECT * FROM device"):
            state = decode_as(DeviceState, row["state"].encode()) if row["state"] else None
            info = decode_as(DeviceInfo, row["info"].encode()) if row["info"] else None
            yield Device(row["id"], row["public_key"], bool(row["revoked"]), state, info=info)

    def _newest_verdicts(self) -> Iterator[tuple[str, Result]]:
        """Of each incarnation as many as are remembered, and one more for the mark below them."""
        newest = self.query(
            "SELECT device, verdict FROM (SELECT device, incarnation, seq, verdict, row_number() OVER"
            " (PARTITION BY device, incarnation ORDER BY seq DESC) AS place FROM ledger) WHERE place <= ?"
            " ORDER BY device, incarnation, seq",
            KEPT_VERDICTS + 1,
        )
        for row in newest:
            yield row["device"], decode_as(Result, row["verdict"].encode())

    def _kept_task(self, row: sqlite3.Row) -> KeptTask:
        name = row["name"]
        plan, release = self.plan(name), self.release(name)
        measured = self.query(
            "SELECT value, loss FROM release WHERE task = ? AND version >= ? AND value NOT NULL AND state = 'released'"
            " ORDER BY version",
            name,
            plan.origin,
        )
        verdicts = self.query(
            "SELECT json_extract(verdict, '$.verdict') AS verdict, count(*) AS n, sum(num_bytes) AS bytes"
            " FROM ledger WHERE task = ? GROUP BY 1",
            name,
        )
        norms = self.query(
            "SELECT norm * scale AS norm FROM ledger WHERE task = ? AND base_version >= ? AND norm NOT NULL"
            " ORDER BY id DESC LIMIT ?",
            name,
            plan.origin,
            KEPT_NORMS,
        )
        taken = self.query(
            "SELECT device, max(base_version) AS version FROM ledger WHERE task = ? AND disposal NOT NULL"
            " GROUP BY device ORDER BY device",
            name,
        )
        made = self.query(
            "SELECT count(*) AS n, max(version) AS last FROM release"
            " WHERE task = ? AND share > 0 AND state = 'released'",
            name,
        )
        trials = self.query(
            "SELECT version, state, value, loss FROM release WHERE task = ? AND version >= ? AND state != 'released'"
            " ORDER BY version",
            name,
            plan.origin,
        )
        return KeptTask(
            plan=plan,
            layout=ModelLayout.from_rows(json.loads(row["layout"])),
            metric=row["metric"],
            evaluation=row["evaluation"],
            elapsed_s=row["elapsed_s"],
            why=row["why"],
            release=release,
            made=made[0]["n"],
            buffered=[self._buffered(r) for r in self._updates(name, "disposal = 'buffered' AND version IS NULL")],
            in_vain=len(
                self._updates(
                    name,
                    "(disposal IS NULL OR disposal = 'quarantined' AND version IS NULL) AND base_version = ?",
                    release.version,
                )
            ),
            measured=[(r["value"], r["loss"]) for r in measured],
            verdicts=[(r["verdict"], r["n"], r["bytes"]) for r in verdicts],
            norms=[r["norm"] for r in reversed(norms)],
            better=row["better"],
            taken=[(r["device"], r["version"]) for r in taken],
            withheld=[r["version"] for r in trials if r["state"] == "withheld"],
            last_made=made[0]["last"] or -1,
            canary=next((self._kept_canary(name, r) for r in trials if r["state"] == "canary"), None),
        )

    def _kept_canary(self, task: str, row: sqlite3.Row) -> KeptCanary:
        release = self.release(task, row["version"])
        return KeptCanary(release, row["value"], row["loss"], self.counted_in(task, release.version))

    def plan(self, task: str, revision: int | None = None) -> Plan:
        """A task's plan, the newest revision unless told."""
        row = self.query(
            "SELECT plan FROM plan WHERE task = ?"
            " AND revision = ifnull(?, (SELECT max(revision) FROM plan WHERE task = ?))",
            task,
            revision,
            task,
        )[0]
        return decode_as(Plan, row["plan"].encode())

    def layout(self, task: str, revision: int) -> ModelLayout:
        """The layout that a plan's revision trained."""
        row = self.query("SELECT layout FROM plan WHERE task = ? AND revision = ?", task, revision)[0]
        return ModelLayout.from_rows(json.loads(row["layout"]))

    def releases(self, task: str) -> list[int]:
        """The released versions whose vector is still kept, oldest first."""
        return list(self.values(task))

    def values(self, task: str) -> dict[int, float | None]:
        """What those versions measured on the held-out set, None where they were not; oldest first."""
        rows = self.query(
            "SELECT version, value FROM release WHERE task = ? AND vector NOT NULL AND state = 'released'"
            " ORDER BY version",
            task,
        )
        return {row["version"]: row["value"] for row in rows}

    def release(self, task: str, version: int | None = None) -> Release:
        """A version with its vector, the newest released one unless told. Raises `ConfigError` for one not kept."""
        rows = self.query(
            "SELECT * FROM release WHERE task = ? AND vector NOT NULL AND"
            " version = ifnull(?, (SELECT max(version) FROM release WHERE task = ? AND state = 'released'))",
            task,
            version,
            task,
        )
        if not rows:
            raise not_kept(task, version, [r["name"] for r in self.query("SELECT name FROM task")])
        row = rows[0]
        used = self._updates(task, "version = ?", row["version"], order="place")
        rule, optimizer, *published = map(unpack_vectors, msgpack.unpackb(row["memory"]))
        return Release(
            task=task,
            version=row["version"],
            plan_revision=row["plan_revision"],
            fingerprint=row["fingerprint"],
            vector=np.frombuffer(row["vector"], "<f4").astype(np.float32),
            sha256=row["sha256"],
            used=tuple((u["device"], u["incarnation"], u["seq"]) for u in used),
            staleness=tuple(u["staleness"] for u in used),
            share=row["share"],
            rule=rule,
            optimizer=optimizer,
            num_examples=row["num_examples"],
            num_bytes=row["num_bytes"],
            step_norm=row["step_norm"],
            elapsed_s=row["elapsed_s"],
            residual=published[0]["residual"] if published else np.zeros(0, np.float32),
        )

    def counted_in(self, task: str, version: int) -> list[Buffered]:
        """The updates that a version counted, or would have, in the order of their summation."""
        rows = self._updates(task, "version = ?", version, order="place")
        return [self._buffered(row) for row in rows]

    def vector_bytes(self, sha256: str) -> bytes | None:
        """The kept version of that SHA-256 as devices fetch it, None where there is none."""
        rows = self.query("SELECT vector FROM release WHERE sha256 = ? AND vector NOT NULL LIMIT 1", sha256)
        return bytes(rows[0]["vector"]) if rows else None

    def _updates(self, task: str, where: str, *arguments: object, order: str = "id") -> list[sqlite3.Row]:
        sql = f"SELECT * FROM ledger WHERE task = ? AND {where} ORDER BY {order}"  # noqa: S608  # our own words
        return self.query(sql, task, *arguments)

    @staticmethod
    def _buffered(row: sqlite3.Row) -> Buffered:
        return Buffered(decode_as(Update, row["update_bytes"]), row["norm"], row["scale"], row["num_bytes"])
