"""Accepted updates that no version counts, as people inspect them: whose, why, and their deltas decoded."""

from pathlib import Path
from typing import Any

import numpy as np

from broker_aggregator.store_reader import StoreReader
from fl_protocol.codec import decode_as
from fl_protocol.compression import make_compressor
from fl_protocol.errors import ConfigError
from fl_protocol.messages import Update

MOST_DELTAS = 1000  # the newest, in one file


def quarantined(store: StoreReader, task: str | None = None) -> list[dict[str, Any]]:
    """One entry an update, oldest first. `ts`: when it came, ms since 1970; `version`: the one that was withheld.

    Raises `ConfigError` for a task that is not there.
    """
    _check(store, task)
    rows = store.query(
        "SELECT task, device, incarnation, seq, ts, base_version, version, norm, scale, why,"
        " update_bytes NOT NULL AS kept FROM ledger WHERE disposal = 'quarantined' AND task = ifnull(?, task)"
        " ORDER BY id",
        task,
    )
    return [{**dict(row), "kept": bool(row["kept"])} for row in rows]


def export_deltas(store: StoreReader, task: str, path: Path) -> int:
    """Write the newest `MOST_DELTAS` quarantined deltas of the task's present model; how many there were.

    The file has `delta` float32 (n, P) as the devices sent it, before any clipping, and of each row `device`, `seq`,
    `base_version`, `version` (-1: of none), `norm` and `why`. Raises `ConfigError` for a task that is not there.
    """
    _check(store, task)
    layout = store.layout(task, store.plan(task).revision)
    rows = store.query(
        "SELECT * FROM ledger WHERE disposal = 'quarantined' AND task = ? AND update_bytes NOT NULL"
        " ORDER BY id DESC LIMIT ?",
        task,
        MOST_DELTAS,
    )
    found = [(row, decode_as(Update, row["update_bytes"])) for row in reversed(rows)]
    found = [(row, update) for row, update in found if update.fingerprint == layout.fingerprint]
    deltas = [make_compressor(update.codec, layout).decompress(update.payload) for _, update in found]
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            delta=np.stack(deltas) if deltas else np.zeros((0, layout.num_parameters), np.float32),
            device=np.array([row["device"] for row, _ in found], np.str_),
            seq=np.array([row["seq"] for row, _ in found], np.int64),
            base_version=np.array([row["base_version"] for row, _ in found], np.int64),
            version=np.array([-1 if row["version"] is None else row["version"] for row, _ in found], np.int64),
            norm=np.array([row["norm"] for row, _ in found], np.float64),
            why=np.array([row["why"] for row, _ in found], np.str_),
        )
    return len(found)


def _check(store: StoreReader, task: str | None) -> None:
    known = [row["name"] for row in store.query("SELECT name FROM task ORDER BY name")]
    if task is not None and task not in known:
        raise ConfigError(f"there is no task {task}", f"tasks: {', '.join(known) or 'none'}")
