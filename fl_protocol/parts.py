"""Objects in the making on the disk: a restart of either end goes on where it was.

Two files an object. `NAME.part` has each chunk at its place. `NAME.records` begins with a header (what the object is
called, its size, its chunk size), and each chunk that came appends a record: its index, its CRC-32, the time.

Nothing is synced, and nothing needs to be: at an opening each record is held against the bytes that it speaks of, and
what does not have its CRC-32 has not come. So kill -9 and a power cut cost chunks and no more, whatever part of either
file they took. (Write-ahead logs end at the first record whose checksum fails; here each stands for itself.) A finished
object is synced, and takes its name by one rename.
"""

import re
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fl_protocol.chunks import Found, MemoryPart, Part, chunk_count
from fl_protocol.durable import OS_FILES, Files, make_directory
from fl_protocol.errors import Code, ConfigError, ProtocolError
from fl_protocol.file_source import sha256_of
from fl_protocol.messages import MAX_CHUNKS

SMALL = 64 << 10  # bytes; what is not larger is held in memory: sent again soon, and spares a flash disk its wear
CLOCK_SET_S = 1_577_836_800  # 2020: before this a machine does not know what time it is
PART, RECORDS = ".part", ".records"

_MAGIC = b"anaparts"
_HEADER = struct.Struct("<8sQI32sI")  # magic, size, chunk size, SHA-256, CRC-32 of what stands before
_RECORD = struct.Struct("<III")  # index, CRC-32, seconds since 1970
_MAX_RECORDS = 2 * MAX_CHUNKS  # one a chunk, and some that were lost and came again
_NAME = re.compile(r"([a-z0-9-]{1,64}\.)?[0-9a-f]{64}")


class FileParts:
    """A directory of parts, which may hold other files too; it is made when it is needed.

    With `max_bytes` the oldest make room for the newest, by the sizes that they will have. `now_s` is a wall clock:
    monotonic ones do not outlive a restart. A name is an object's SHA-256, or an owner's id, a dot and that.
    """

    def __init__(
        self,
        folder: Path,
        files: Files = OS_FILES,
        *,
        now_s: Callable[[], float] = time.time,
        small: int = SMALL,
        max_bytes: int | None = None,
    ) -> None:
        self._folder, self._files, self._now_s = folder, files, now_s
        self._small, self._max_bytes = small, max_bytes
        self._whole: set[str] = set()  # names of parts whose SHA-256 was seen to be right

    def open(self, name: str, sha256: str, size: int, chunk_size: int) -> Part:
        """The part of that name, with all of it that came before; small ones are not kept on the disk.

        Raises `ProtocolError`: E_SIZE for sizes out of bounds, E_DISK where the disk is full or fails.
        """
        chunk_count(size, chunk_size)
        if size <= self._small:
            return MemoryPart(sha256, chunk_size)
        self._whole.discard(name)
        try:
            make_directory(self._folder, self._files)
            self._make_room(name, size)
        except OSError as error:
            raise _unwritten(error) from None
        return _FilePart(self, self._files, self._path(name), sha256, size, chunk_size)

    def found(self) -> list[Found]:
        """What lies here, the longest untouched first; what cannot be read is dropped. Raises `ConfigError`."""
        if not self._files.is_directory(self._folder):
            return []
        try:
            names = self._files.names(self._folder)
        except OSError as error:
            raise ConfigError(f"cannot read {self._folder}: {error}", "let this user read and write it") from None
        stems = sorted({stem for each in names for end in (PART, RECORDS) if (stem := each.removesuffix(end)) != each})
        found = []
        for stem in stems:
            header = self._read_header(stem) if {stem + PART, stem + RECORDS} <= {*names} else None
            if header is None:
                self.remove(stem)
            else:
                found.append(header)
        return sorted(found, key=lambda each: -each.age_s)

    def expire(self, ttl_s: float) -> None:
        """Drop what nothing was added to for so long."""
        for each in self.found():
            if each.age_s >= ttl_s:
                self.remove(each.name)

    def remove(self, name: str) -> None:
        """Drop a part, if it is there; what a failing disk keeps of it is dropped at the next start."""
        self._whole.discard(name)
        for end in (RECORDS, PART):
            path = self._folder / f"{name}{end}"
            with suppress(OSError):
                if self._files.is_file(path):
                    self._files.remove(path)

    def finish(self, name: str, path: Path) -> bool:
        """Give a part that was seen to be whole its name in the same directory, durably; False where there is none.

        Raises `OSError`; it can be tried again.
        """
        if name not in self._whole:
            return False
        part = self._path(name)
        self._files.sync(part)
        self._files.rename(part, path)
        self._whole.discard(name)
        self._files.sync_directory(path.parent)
        self.remove(name)
        return True

    def is_whole(self, name: str, sha256: str) -> bool:
        """Whether a part has this SHA-256."""
        try:
            right = sha256_of(self._path(name), self._files) == sha256
        except OSError:
            return False
        (self._whole.add if right else self._whole.discard)(name)
        return right

    def now(self) -> int:
        """Seconds since 1970."""
        return int(self._now_s()) & 0xFFFFFFFF

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ProtocolError(Code.SCHEMA, f"{name!r:.100} is no name of a part")
        return self._folder / f"{name}{PART}"

    def _make_room(self, name: str, size: int) -> None:
        if self._max_bytes is None:
            return
        others = [each for each in self.found() if each.name != name]
        taken = sum(each.size for each in others)
        for each in others:
            if taken + size <= self._max_bytes:
                return
            self.remove(each.name)
            taken -= each.size

    def _read_header(self, name: str) -> Found | None:
        if not _NAME.fullmatch(name):
            return None
        records = self._folder / f"{name}{RECORDS}"
        try:
            header = parse_header(self._files.read_at(records, 0, _HEADER.size))
            end = self._files.size(records)
            last = self._files.read_at(records, max(_HEADER.size, end - _RECORD.size), _RECORD.size)
        except OSError:
            return None
        if header is None or header[0] != name[-64:]:
            return None
        at = _RECORD.unpack(last)[2] if len(last) == _RECORD.size else 0
        age = max(0, self.now() - at) if at > CLOCK_SET_S else 0
        return Found(name, *header, float(age))


class _FilePart:
    """A `Part` on the disk."""

    def __init__(self, parts: FileParts, files: Files, path: Path, sha256: str, size: int, chunk_size: int) -> None:
        self._parts, self._files = parts, files
        self._part, self._records = path, path.with_suffix(RECORDS)
        self._name, self._sha256, self._size, self._chunk_size = path.stem, sha256, size, chunk_size
        crcs = self._restore()
        self.held = sorted(crcs)
        if self._end == 0:
            self._write_records(crcs)

    def put(self, index: int, data: bytes, crc32: int) -> None:
        """See `Part.put`."""
        try:
            self._files.write_at(self._part, index * self._chunk_size, data)
            self._files.write_at(self._records, self._end, _RECORD.pack(index, crc32, self._parts.now()))
        except OSError as error:
            raise _unwritten(error) from None
        self._end += _RECORD.size

    def is_whole(self) -> bool:
        """See `Part.is_whole`."""
        return self._parts.is_whole(self._name, self._sha256)

    def read(self) -> bytes:
        """See `Part.read`."""
        try:
            return self._files.read(self._part)
        except OSError as error:
            raise ProtocolError(Code.DISK, f"cannot read a partial object: {error.strerror}") from None

    def clear(self) -> None:
        """See `Part.clear`."""
        self._parts.remove(self._name)
        with suppress(ProtocolError):  # then nothing of it survives a restart
            self._write_records({})

    def _restore(self) -> dict[int, int]:
        """The CRC-32 of each chunk that is here; where nothing can be gone on from, `_end` is 0."""
        self._end = 0
        try:
            too_long = self._files.is_file(self._part) and self._files.size(self._part) > self._size
            raw = self._files.read_at(self._records, 0, 0 if too_long else _HEADER.size + _MAX_RECORDS * _RECORD.size)
        except OSError:
            raw = b""
        header = parse_header(raw[: _HEADER.size])
        if header is None or header[:2] != (self._sha256, self._size):
            self._parts.remove(self._name)
            return {}
        whole = (len(raw) - _HEADER.size) // _RECORD.size * _RECORD.size
        records = _RECORD.iter_unpack(raw[_HEADER.size : _HEADER.size + whole])
        said = {index: crc32 for index, crc32, _ in records}
        chunk_size = header[2]
        held = {i: crc32 for i, crc32 in said.items() if self._crc32(i, chunk_size) == crc32}
        if chunk_size != self._chunk_size:
            return self._cut_anew(held, chunk_size)
        self._end = _HEADER.size + whole
        return held

    def _cut_anew(self, held: dict[int, int], chunk_size: int) -> dict[int, int]:
        """The chunks of our size that chunks of another size cover: the next connection carries other packets."""
        kept = {}
        for index in range(chunk_count(self._size, self._chunk_size)):
            start = index * self._chunk_size
            last = min(start + self._chunk_size, self._size) - 1
            if all(old in held for old in range(start // chunk_size, last // chunk_size + 1)):
                crc32 = self._crc32(index, self._chunk_size)
                if crc32 is not None:
                    kept[index] = crc32
        return kept

    def _crc32(self, index: int, chunk_size: int) -> int | None:
        """The CRC-32 of what lies where a chunk belongs; None where the file ends before."""
        start = index * chunk_size
        size = min(chunk_size, self._size - start)
        try:
            data = self._files.read_at(self._part, start, size) if size > 0 else b""
        except OSError:
            return None
        return zlib.crc32(data) if size > 0 and len(data) == size else None

    def _write_records(self, crcs: dict[int, int]) -> None:
        """Begin the records again."""
        header = struct.pack("<8sQI32s", _MAGIC, self._size, self._chunk_size, bytes.fromhex(self._sha256))
        now = self._parts.now()
        records = b"".join(_RECORD.pack(index, crc32, now) for index, crc32 in crcs.items())
        try:
            with self._files.create(self._records, 0o644) as file:
                file.write(header + struct.pack("<I", zlib.crc32(header)) + records)
            self._files.write_at(self._part, 0, b"")
        except OSError as error:
            raise _unwritten(error) from None
        self._end = _HEADER.size + len(records)


def parse_header(header: bytes) -> tuple[str, int, int] | None:
    """SHA-256, size and chunk size; None unless they are sound."""
    if len(header) != _HEADER.size:
        return None
    magic, size, chunk_size, sha256, crc32 = _HEADER.unpack(header)
    if magic != _MAGIC or zlib.crc32(header[:-4]) != crc32:
        return None
    try:
        chunk_count(size, chunk_size)
    except ProtocolError:
        return None
    return sha256.hex(), size, chunk_size


def _unwritten(error: OSError) -> ProtocolError:
    return ProtocolError(Code.DISK, f"cannot keep a part of an object: {error.strerror}")
