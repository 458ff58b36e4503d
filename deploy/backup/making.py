"""Write a backup beside its place, read all of it back, and only then give it its name."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from broker_aggregator.config import GatewayConfig
from broker_aggregator.service import SOFTWARE
from fl_protocol.durable import sync_directory
from fl_protocol.errors import ConfigError

from .archive import About, read_archive, write_archive
from .contents import Found, Step, check, copy_store, files_of
from .sealing import OpeningReader, SealingWriter, is_sealed


@dataclass(frozen=True)
class Made:
    """A backup that was read back."""

    path: Path
    bytes: int
    about: About
    found: Found


def make_backup(out: Path, path: Path, config: GatewayConfig, passphrase: bytes | None, step: Step) -> Made:
    """Back up the gateway of the configuration at `path`, which may run; `passphrase` None: unsealed.

    Raises `ConfigError`, and then there is no file `out`; an earlier one of that name is refused, never replaced.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already", "name another file; old backups are yours to delete")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".anabranch-backup-", dir=out.parent) as folder:  # mode 0700
        work = Path(folder)
        about = About(fleet=config.gateway.fleet, made_ms=time.time_ns() // 1_000_000, software=SOFTWARE)
        copy_store(config.store_path, work / "store", step)
        files = files_of(config, path, work / "store")
        step("writing")
        whole = work / "archive"
        with _created(whole) as file:
            if passphrase is None:
                write_archive(file, about, files)
            else:
                sealing = SealingWriter(file, passphrase)
                write_archive(cast(IO[bytes], sealing), about, files)
                sealing.close()
        step("reading it back")
        (work / "back").mkdir()
        with whole.open("rb") as file:
            read_archive(opened(file, passphrase), work / "back")
        found = check(work / "back", step)
        os.link(whole, out)  # unlike a rename it never replaces
        sync_directory(out.parent)
    return Made(out, out.stat().st_size, about, found)


@contextmanager
def _created(path: Path) -> Iterator[BinaryIO]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def opened(file: BinaryIO, passphrase: bytes | None) -> IO[bytes]:
    """The archive in `file`. Raises `ConfigError` where a passphrase is lacking, or is one too many."""
    if is_sealed(file) != (passphrase is not None):
        if passphrase is None:
            raise ConfigError("the backup is sealed", "name its passphrase with --passphrase-file")
        raise ConfigError("the backup is not sealed", "leave --passphrase-file out, or name another backup")
    return file if passphrase is None else cast(IO[bytes], OpeningReader(file, passphrase))
