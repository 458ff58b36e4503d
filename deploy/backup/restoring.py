"""A backup becomes a gateway again: in places where none is, checked before anything stands there, at one stroke.

Below `root` it lies where `gateway up --root` puts things: etc/anabranch-gateway/gateway.toml, and all else in
var/lib/anabranch-gateway. The store is moved on past what the fleet has heard meanwhile (`advancing.py`).
"""

import os
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
import tomlkit.exceptions

from broker_aggregator.advancing import Advanced, advance
from broker_aggregator.store import SqliteStore
from fl_protocol.durable import OS_FILES, make_directory, sync_directory, write_durably
from fl_protocol.errors import ConfigError

from .archive import CONFIG, STORE, About, mode_of, read_archive
from .contents import KEEP_ALL, Found, Step, check, evaluations
from .making import opened

DATA, ETC = Path("var/lib/anabranch-gateway"), Path("etc/anabranch-gateway")


@dataclass(frozen=True)
class Restored:
    """What stands there now."""

    config: Path
    data: Path
    about: About
    found: Found
    advanced: Advanced


def restore(backup: Path, root: Path, passphrase: bytes | None, step: Step, *, keep_tickets: bool = False) -> Restored:
    """Raises `ConfigError`, and then nothing was put in place; `OSError` where the disk fails."""
    root = root.resolve()
    data, config = root / DATA, root / ETC / CONFIG
    for there in (config, data):
        if there.is_file() or (there.is_dir() and any(there.iterdir())):
            raise ConfigError(f"{there} is there already", "name another --to, or move what is there away")
    step("checking the backup")
    about, sizes = _read(backup, passphrase, None)
    make_directory(data.parent)
    free, need = shutil.disk_usage(data.parent).free, sum(sizes.values()) * 11 // 10 + (64 << 20)
    if free < need:
        raise ConfigError(f"{free >> 20} MB are free below {data.parent}, {need >> 20} MB are needed", "make room")
    staging = Path(tempfile.mkdtemp(prefix=".anabranch-restore-", dir=data.parent))
    try:
        step("unpacking")
        _read(backup, passphrase, staging)
        found = check(staging, step, migrate=True)
        text = _settled((staging / CONFIG).read_text("utf-8"), staging, data)
        (staging / CONFIG).unlink()
        step("moving the store on")
        advanced = _advance(staging / STORE, data, about, keep_tickets=keep_tickets)
        _sync(staging)
        if data.is_dir():
            data.rmdir()  # empty, as seen above
        staging.rename(data)
        sync_directory(data.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    write_durably(config, text.encode(), mode=mode_of(CONFIG))
    return Restored(config, data, about, found, advanced)


def _read(backup: Path, passphrase: bytes | None, into: Path | None) -> tuple[About, dict[str, int]]:
    try:
        with backup.open("rb") as file:
            return read_archive(opened(file, passphrase), into)
    except FileNotFoundError:
        raise ConfigError(f"there is no backup {backup}", "name a file that `python -m deploy backup` wrote") from None


def _advance(store: Path, data: Path, about: About, *, keep_tickets: bool) -> Advanced:
    """The store below its new folder: where examples lie now, and past what was said since."""
    with closing(sqlite3.connect(store)) as db, db:
        for task in evaluations(store):
            file = store.parent / "evaluation" / f"{task}.npz"
            if file.is_file():
                there = str(data / "evaluation" / file.name)
                db.execute("UPDATE task SET evaluation = ? WHERE name = ?", (there, task))
    opened_store = SqliteStore(store, keep_releases=KEEP_ALL)  # of what the backup kept nothing is pruned
    try:
        return advance(opened_store, about.made_ms, time.time_ns() // 1_000_000, keep_tickets=keep_tickets)
    finally:
        opened_store.close()


def _settled(text: str, staging: Path, data: Path) -> str:
    """The configuration with its places as they will be; whatever else stands in it stays."""
    try:
        document: Any = tomlkit.parse(text)
    except tomlkit.exceptions.ParseError as error:
        raise ConfigError(f"{CONFIG} of the backup is not TOML: {error}", "use another backup") from None
    document["gateway"]["data_dir"] = str(data)
    if (staging / "pki").is_dir() and "enrollment" in document:
        document["enrollment"]["pki"] = str(data / "pki")
    broker = document.get("broker", {})
    for name in ("ca", "certificate", "key"):
        if name in broker:
            broker[name] = str(data / _place(name, Path(broker[name]), staging))
    return tomlkit.dumps(document)


def _place(name: str, before: Path, staging: Path) -> Path:
    """Where a file of [broker] lies in the backup."""
    kept = Path("broker") / f"{name}.pem"
    if (staging / kept).is_file():
        return kept
    for candidate in (Path("pki/services") / before.name, Path("pki") / before.name):
        if (staging / candidate).is_file():
            return candidate
    raise ConfigError(f"[broker] {name} = {before} is not in the backup", "use another backup")


def _sync(folder: Path) -> None:
    """Everything in it is on the disk when this returns; what services read is theirs to list."""
    for parent, _, names in os.walk(folder):
        for name in names:
            OS_FILES.sync(Path(parent) / name)
        Path(parent).chmod(0o755 if Path(parent).name in ("pki", "services") else 0o750)
        sync_directory(Path(parent))
