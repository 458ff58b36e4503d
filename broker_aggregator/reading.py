"""The store as people read it: status, devices, and the replay that proves the releases."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from broker_aggregator.releasing import next_release
from broker_aggregator.storage import ReadableStore
from broker_aggregator.store_reader import StoreReader
from broker_aggregator.task import FLOAT32
from fl_protocol.better import best_of
from fl_protocol.codec import to_plain


def status(store: StoreReader) -> list[dict[str, Any]]:
    """One entry a task: plan, version, metric, verdicts, staleness, and bytes as `TaskStatus` counts them."""
    tasks = []
    for row in store.query("SELECT name, metric, why, better FROM task ORDER BY name"):
        name = row["name"]
        plan = store.plan(name)
        releases = store.query(
            "SELECT version, state, value, loss, num_bytes, elapsed_s, ts FROM release WHERE task = ? ORDER BY version",
            name,
        )
        released = [r for r in releases if r["state"] == "released"]
        verdicts = store.query(
            "SELECT json_extract(verdict, '$.verdict') AS verdict, count(*) AS n, sum(num_bytes) AS bytes"
            " FROM ledger WHERE task = ? GROUP BY 1",
            name,
        )
        bytes_up = sum(row["bytes"] for row in verdicts)
        accepted = sum(row["n"] for row in verdicts if row["verdict"] == "accepted")
        plain = accepted * store.layout(name, plan.revision).size * FLOAT32
        disposals = store.query(
            "SELECT disposal, count(*) AS n, avg(staleness) AS staleness FROM ledger"
            " WHERE task = ? AND disposal NOT NULL GROUP BY 1",
            name,
        )
        measured = [r for r in released if r["value"] is not None]
        tasks.append(
            {
                "task": name,
                "state": plan.state,
                "why": row["why"],
                "mode": plan.mode,
                "version": released[-1]["version"],
                "withheld": sum(r["state"] == "withheld" for r in releases),
                "canary": next((r["version"] for r in releases if r["state"] == "canary"), None),
                "metric": row["metric"],
                "value": measured[-1]["value"] if measured else None,
                "best": best_of((r["value"] for r in measured), row["better"]),
                "updates": {r["verdict"]: r["n"] for r in verdicts},
                "disposals": {r["disposal"]: r["n"] for r in disposals},
                "staleness": next((r["staleness"] for r in disposals if r["disposal"] == "counted"), None),
                "bytes_up": bytes_up,
                "bytes_up_float32": plain,
                "ratio_up": round(plain / bytes_up, 2) if bytes_up else None,
                "releases": [dict(r) for r in releases],
                "plan": to_plain(plan),
            }
        )
    return tasks


def devices(store: StoreReader) -> list[dict[str, Any]]:
    """One entry a device: its last word, and what became of its updates."""
    rows = store.query(
        "SELECT d.id, d.public_key, d.revoked, d.state, d.info, d.seen_ts,"
        " count(l.id) AS updates, coalesce(sum(l.disposal NOT NULL), 0) AS accepted,"
        " coalesce(sum(l.disposal = 'counted'), 0) AS counted, avg(l.staleness) AS staleness,"
        " coalesce(sum(l.num_bytes), 0) AS bytes_up, max(l.base_version) AS last_base"
        " FROM device d LEFT JOIN ledger l ON l.device = d.id GROUP BY d.id ORDER BY d.id"
    )
    found = []
    for row in rows:
        entry = dict(row)
        entry["state"] = json.loads(row["state"]) if row["state"] else None
        entry["info"] = json.loads(row["info"]) if row["info"] else None
        found.append(entry)
    return found


@dataclass(frozen=True)
class Replayed:
    """One release made again from what the store holds."""

    version: int
    updates: int
    same: bool


def replay(store: ReadableStore, task: str) -> Iterator[Replayed]:
    """Make every kept release again from its predecessor and its updates, and compare bit for bit."""
    versions = store.releases(task)
    for version in versions:
        release = store.release(task, version)
        if not release.used or version - 1 not in versions:
            continue
        base = store.release(task, version - 1)
        plan = store.plan(task, release.plan_revision)
        layout = store.layout(task, release.plan_revision)
        used = store.counted_in(task, version)
        again = next_release(plan, layout, base, used, release.elapsed_s, release.staleness, release.share)
        yield Replayed(version, len(used), again.sha256 == release.sha256)
