"""What lies in a ring's directory, segments named by the flushes that they hold: looking at it, and erasing it."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge_agent.segments import read_records
from fl_protocol.durable import OS_FILES, Files, write_durably
from fl_protocol.errors import ConfigError

CLOCK_SET_S = 1_600_000_000.0  # before this the machine does not know what time it is
ERASING = "erasing"  # the file that says that an erasure has begun
_NAME = re.compile(r"([0-9]{12,})-([0-9]{12,})\.ring")


@dataclass(frozen=True)
class Held:
    """What a ring holds: examples, bytes on the disk, the oldest and the newest time (seconds since 1970)."""

    examples: int = 0
    num_bytes: int = 0
    segments: int = 0
    oldest_s: float | None = None
    newest_s: float | None = None
    shape: tuple[int, ...] | None = None
    damaged: int = 0  # bytes that are no whole segment


@dataclass
class Segment:
    """A segment on the disk, without its content."""

    first: int  # of the flushes that it holds, and
    last: int
    size: int
    count: int = 0
    oldest_s: float = 0.0  # 0: of no example the time is known
    newest_s: float = 0.0

    @property
    def name(self) -> str:
        """Its file's."""
        return f"{self.first:012d}-{self.last:012d}.ring"

    def of(self, records: NDArray[Any]) -> "Segment":
        """With what its records say."""
        self.count, times = len(records), records["t"]
        known = times[times > CLOCK_SET_S]
        if len(known):
            self.oldest_s, self.newest_s = float(known.min()), float(known.max())
        return self


class Usable:
    """What the disk says, in words."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise ConfigError(
                f"cannot use the ring {self._directory}: {error.strerror or error}",
                "make it a writable directory of this user, on a disk without errors",
            ) from None


def look(directory: Path, files: Files = OS_FILES) -> Held:
    """What a ring holds, whoever writes it meanwhile; nothing where there is none. Raises `ConfigError`."""
    found, shape, damaged = [], None, 0
    with Usable(directory):
        for first, last in numbers_in(directory, files) if files.is_directory(directory) else []:
            segment = Segment(first, last, 0)
            try:
                data = files.read(directory / segment.name)
            except FileNotFoundError:  # it went out meanwhile
                continue
            segment.size = len(data)
            read = read_records(data)
            if read is None:
                damaged += len(data)
                continue
            shape = read[0].shape
            found.append(segment.of(read[1]))
    return held_in(outermost(found), shape, damaged)


def erase(directory: Path, files: Files = OS_FILES) -> Held:
    """Erase a ring that nobody has open: every file of it is overwritten, synced and removed; what was there.

    Raises `OSError`. The file `erasing` says that it has begun, so that the next start ends it.
    """
    if not files.is_directory(directory):
        return Held()
    gone = look(directory, files)
    with suppress(OSError):  # a full disk: what is there is removed all the same
        write_durably(directory / ERASING, b"", files=files)
    for name in files.names(directory):
        path = directory / name
        if name == ERASING or not files.is_file(path):
            continue
        with suppress(OSError):
            files.write_at(path, 0, bytes(files.size(path)))
            files.sync(path)
        files.remove(path)
    files.sync_directory(directory)
    if files.is_file(directory / ERASING):
        files.remove(directory / ERASING)
        files.sync_directory(directory)
    return gone


def numbers_in(directory: Path, files: Files) -> list[tuple[int, int]]:
    """Which flushes the segments in a directory hold, in order; those that hold others' too come before these."""
    found = [match for name in files.names(directory) if (match := _NAME.fullmatch(name))]
    return sorted(((int(match[1]), int(match[2])) for match in found), key=lambda pair: (pair[0], -pair[1]))


def outermost(segments: list[Segment]) -> list[Segment]:
    """Those whose flushes no other one holds."""
    kept: list[Segment] = []
    for segment in segments:
        if not kept or segment.last > kept[-1].last:
            kept.append(segment)
    return kept


def held_in(segments: list[Segment], shape: tuple[int, ...] | None, damaged: int) -> Held:
    """What these hold together."""
    known = [s for s in segments if s.newest_s]
    return Held(
        examples=sum(s.count for s in segments),
        num_bytes=sum(s.size for s in segments),
        segments=len(segments),
        oldest_s=min((s.oldest_s for s in known), default=None),
        newest_s=max((s.newest_s for s in known), default=None),
        shape=shape,
        damaged=damaged,
    )
