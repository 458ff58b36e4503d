"""Files as they ought to be, with owner and mode: written where they differ, and only there."""

import grp
import os
import pwd
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError


@dataclass(frozen=True)
class Wanted:
    """A file, or with `text` None a file or folder that somebody else writes; an owner of None is left as it is."""

    path: Path
    text: str | None = None
    mode: int = 0o644
    owner: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Change:
    """What was done to a file, or would be: `made`, `changed`, or `given other permissions`."""

    path: Path
    what: str


def user_id(name: str) -> int:
    """The account's number. Raises `ConfigError`."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError(f"there is no account {name}", "install mosquitto, or name another one") from None


def group_id(name: str) -> int:
    """The number of the group of an account's name. Raises `ConfigError`."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"there is no group {name}", "install mosquitto, or name another account") from None


def apply(wanted: Iterable[Wanted], *, dry_run: bool = False) -> list[Change]:
    """Make every file what is wanted of it; what was changed. Raises `OSError`, and `ConfigError` for an account."""
    return [change for one in wanted if (change := _apply(one, dry_run)) is not None]


def _apply(wanted: Wanted, dry_run: bool) -> Change | None:
    path, change = wanted.path, None
    if wanted.text is not None:
        data = wanted.text.encode()
        try:
            there: bytes | None = path.read_bytes()
        except FileNotFoundError:
            there = None
        if there != data:
            change = Change(path, "made" if there is None else "changed")
            if not dry_run:
                write_durably(path, data, mode=wanted.mode & ~0o077)  # nobody else's before it has its owner
    if dry_run and (change or not path.exists()):
        return change or Change(path, "made")
    found = path.stat()
    owner = found.st_uid if wanted.owner is None else user_id(wanted.owner)
    group = found.st_gid if wanted.group is None else group_id(wanted.group)
    if (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (owner, group, wanted.mode):
        return change
    if not dry_run:
        if (found.st_uid, found.st_gid) != (owner, group):
            os.chown(path, owner, group)
        path.chmod(wanted.mode)
    return change or Change(path, "given other permissions")
