"""What is in a backup, as a tar of few names: each at most once, bounded, with its SHA-256 in the last of them.

backup.json first: format, fleet, when | the files | sums.json last
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

import msgspec

from fl_protocol.errors import ConfigError

FORMAT = 1
ABOUT, SUMS = "backup.json", "sums.json"
STORE, CONFIG, FLEET_KEY = "store.sqlite", "gateway.toml", "fleet.key"
SMALL = 1 << 20  # bytes of anything but the store, bundles and examples
MAX_MEMBERS = 100_000
_BLOCK = 1 << 20
_NAMES = re.compile(
    r"store\.sqlite|gateway\.toml|fleet\.(key|chain)|bundles/[0-9a-f]{64}|evaluation/[a-z0-9-]{1,64}\.npz"
    r"|pki/(services/)?[a-z0-9-]{1,64}\.(pem|key)|broker/(ca|certificate|key)\.pem"
)
_LARGE = re.compile(r"store\.sqlite|bundles/.*|evaluation/.*")


@dataclass(frozen=True, kw_only=True)
class About:
    """What a backup says of itself; `made_ms` is when its store was as it is in it, ms since 1970."""

    fleet: str
    made_ms: int
    software: str
    format: int = FORMAT


def is_ours(name: str) -> bool:
    """Whether a file of that name belongs into a backup."""
    return _NAMES.fullmatch(name) is not None


def write_archive(target: IO[bytes], about: About, files: dict[str, Path]) -> None:
    """Write `files`, archive name -> where it lies. Raises `OSError`, `ConfigError` for one that grows meanwhile."""
    sums: dict[str, str] = {}
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, ABOUT, json.dumps(asdict(about)).encode())
        for name, path in files.items():
            with path.open("rb") as file:
                info = tarfile.TarInfo(name)
                info.size = path.stat().st_size
                hashing = _Hashing(file)
                try:
                    tar.addfile(info, cast(IO[bytes], hashing))
                except OSError as error:
                    if error.errno is not None:
                        raise
                    raise ConfigError(f"{path} changed while it was read", "run the backup again") from None
                sums[name] = hashing.hexdigest()
        _add(tar, SUMS, json.dumps(sums).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


class _Hashing:
    """A file that is hashed as it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        return data

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def read_archive(source: IO[bytes], into: Path | None) -> tuple[About, dict[str, int]]:
    """Check all of it, and write it below `into` where that is given; what it says of itself, and its files' sizes.

    Raises `ConfigError` for anything that `write_archive` does not write: then what lies below `into` is worth nothing.
    """
    about: About | None = None
    sizes: dict[str, int] = {}
    found: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=source, mode="r|") as tar:
            for member in _members(tar):
                file = tar.extractfile(member)
                assert file is not None
                if about is None:
                    about = _about(member, file)
                elif member.name == SUMS:
                    if msgspec.json.decode(file.read(), type=dict[str, str]) != found:
                        raise ConfigError("the backup's sums are not its files'", "use another backup")
                    _to_the_end(source)
                    return about, sizes
                else:
                    found[member.name] = _take(member, file, sizes, into)
    except (tarfile.TarError, msgspec.MsgspecError, EOFError) as error:
        raise ConfigError(f"the backup cannot be read: {error}", "use another backup") from None
    raise ConfigError("the backup ends too early", "use another backup")


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for number, member in enumerate(tar):
        small = SMALL if member.name != SUMS else 128 * MAX_MEMBERS
        if not member.isreg() or number > MAX_MEMBERS or (member.size > small and not _LARGE.fullmatch(member.name)):
            raise ConfigError(f"the backup holds {member.name!r:.80}, which is no file of ours", "use another backup")
        yield member


def _about(member: tarfile.TarInfo, file: IO[bytes]) -> About:
    if member.name != ABOUT:
        raise ConfigError("not a gateway's backup", "name a file that `python -m deploy backup` wrote")
    about = msgspec.json.decode(file.read(), type=About)
    if about.format != FORMAT:
        raise ConfigError(f"a backup of format {about.format}", "read it with the software that wrote it")
    return about


def _take(member: tarfile.TarInfo, file: IO[bytes], sizes: dict[str, int], into: Path | None) -> str:
    if not is_ours(member.name) or member.name in sizes:
        raise ConfigError(f"the backup holds {member.name!r:.80}, which is no file of ours", "use another backup")
    sizes[member.name] = member.size
    digest = hashlib.sha256()
    if into is None:
        while data := file.read(_BLOCK):
            digest.update(data)
        return digest.hexdigest()
    target = into / member.name
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with target.open("xb") as out:
        target.chmod(mode_of(member.name))
        while data := file.read(_BLOCK):
            digest.update(data)
            out.write(data)
    return digest.hexdigest()


def mode_of(name: str) -> int:
    """Keys, and the store with them, are their owner's alone."""
    secret = name in (STORE, FLEET_KEY, "broker/key.pem") or name.endswith(".key")
    return 0o600 if secret else 0o644


def _to_the_end(source: IO[bytes]) -> None:
    while source.read(_BLOCK):
        pass
