"""An object larger than a packet, as chunks: cut up at one end, put together at the other.

Every chunk has a CRC-32, every object its SHA-256; a bitmap says what is missing. Where an object is read from
(`Source`) and where its chunks lie until it is whole (`Part`) is the caller's matter: in memory here, on the disk in
`fl_protocol/parts.py`.
"""

import hashlib
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import Code, ConfigError, ProtocolError
from fl_protocol.messages import MAX_CHUNK_BYTES, MAX_CHUNKS, MAX_OBJECT_BYTES, Chunk

PACKET_OVERHEAD = 512  # topic, MQTT header and properties, and the chunk's other fields take less
CHUNK_BYTES = {"3.1.1": 16 << 10, "5": 48 << 10}
MAX_WINDOW = 64  # chunks in flight, 3 MiB of them at most

Flags = NDArray[np.bool_]  # one a chunk


def chunk_size_for(version: str, max_packet: int) -> int:
    """Bytes of data a chunk, for a broker of MQTT `version` whose packets have at most `max_packet` bytes.

    Raises `ConfigError` for a broker that carries nothing of use.
    """
    if max_packet < 2 * PACKET_OVERHEAD:
        raise ConfigError(
            f"the broker carries packets of {max_packet} bytes", f"allow {2 * PACKET_OVERHEAD} or more there"
        )
    return min(CHUNK_BYTES[version], max_packet - PACKET_OVERHEAD)


def chunk_count(size: int, chunk_size: int) -> int:
    """How many chunks an object of `size` bytes has. Raises `ProtocolError(E_SIZE)` for sizes out of bounds."""
    if not (0 < size <= MAX_OBJECT_BYTES and 0 < chunk_size <= MAX_CHUNK_BYTES):
        raise ProtocolError(Code.SIZE, f"an object of {size} bytes in chunks of {chunk_size}")
    count = -(-size // chunk_size)
    if count > MAX_CHUNKS:
        raise ProtocolError(Code.SIZE, f"{count} chunks; at most {MAX_CHUNKS} make an object")
    return count


def encode_bitmap(flags: Flags) -> bytes:
    """Bit i % 8 of byte i // 8 is flag i."""
    return np.packbits(flags, bitorder="little").tobytes()


def decode_bitmap(bitmap: bytes, count: int) -> Flags:
    """The inverse, shape `(count,)`. Raises `ProtocolError(E_SIZE)` unless the bitmap is of exactly `count` chunks."""
    flags = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little").astype(np.bool_)
    if len(bitmap) != (count + 7) // 8 or flags[count:].any():
        raise ProtocolError(Code.SIZE, f"a bitmap of {len(bitmap)} bytes is not one of {count} chunks")
    return flags[:count]


class Source(Protocol):
    """An object that can be read in pieces, wherever it lies."""

    @property
    def sha256(self) -> str:
        """What it is called by."""
        ...

    @property
    def size(self) -> int:
        """Its bytes."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes of it. Raises `ProtocolError(E_DISK)` where they can no longer be had."""
        ...


class InMemory:
    """A `Source` that is held."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self.sha256 = hashlib.sha256(data).hexdigest()

    def read(self, offset: int, size: int) -> bytes:
        """See `Source.read`."""
        return self._data[offset : offset + size]


class Outgoing:
    """An object as its chunks, each read when it is asked for.

    Raises `ProtocolError(E_SIZE)` for one that cannot be chunked.
    """

    def __init__(self, data: bytes | Source, chunk_size: int) -> None:
        self._source = InMemory(data) if isinstance(data, bytes) else data
        self.sha256, self.size = self._source.sha256, self._source.size
        self.count = chunk_count(self.size, chunk_size)
        self.chunk_size = chunk_size

    def chunk(self, index: int) -> Chunk:
        """Chunk `index`, from 0.

        Raises `ProtocolError`: E_SIZE when there is no such chunk, E_DISK when it cannot be read.
        """
        if not 0 <= index < self.count:
            raise ProtocolError(Code.SIZE, f"chunk {index} of {self.count}")
        data = self._source.read(*_place(index, self.size, self.chunk_size))
        return Chunk(sha256=self.sha256, index=index, count=self.count, crc32=zlib.crc32(data), data=data)

    def chunks(self, missing: bytes, window: int) -> Iterator[Chunk]:
        """The first `window` chunks, `MAX_WINDOW` at most, of those in the bitmap. Raises `ProtocolError(E_SIZE)`."""
        indices = np.flatnonzero(decode_bitmap(missing, self.count))[: min(window, MAX_WINDOW)]
        return (self.chunk(int(index)) for index in indices)


class Part(Protocol):
    """Where the chunks of one object lie until it is whole.

    Everything but `clear` raises `ProtocolError(E_DISK)` where the disk is full or fails; nothing has happened then.
    """

    @property
    def held(self) -> Sequence[int]:
        """The chunks that lay here when this was opened."""
        ...

    def put(self, index: int, data: bytes, crc32: int) -> None:
        """Keep a chunk whose CRC-32 was seen to be right."""
        ...

    def is_whole(self) -> bool:
        """Whether what lies here has the SHA-256 that it is called by; it is read piece by piece."""
        ...

    def read(self) -> bytes:
        """All of it."""
        ...

    def clear(self) -> None:
        """Nothing lies here any more."""
        ...


class MemoryPart:
    """A `Part` that is held, and forgotten with the process."""

    held: Sequence[int] = ()

    def __init__(self, sha256: str, chunk_size: int) -> None:
        self._sha256, self._chunk_size = sha256, chunk_size
        self.clear()

    def put(self, index: int, data: bytes, crc32: int) -> None:  # noqa: ARG002  # nothing comes between
        """See `Part.put`."""
        self._buffer.seek(index * self._chunk_size)
        self._buffer.write(data)

    def is_whole(self) -> bool:
        """See `Part.is_whole`."""
        return hashlib.sha256(self._buffer.getvalue()).hexdigest() == self._sha256

    def read(self) -> bytes:
        """See `Part.read`."""
        return self._buffer.getvalue()

    def clear(self) -> None:
        """See `Part.clear`."""
        # BytesIO grows with what comes, and its getvalue is the buffer itself, not a copy.
        self._buffer = io.BytesIO()


@dataclass(frozen=True)
class Found:
    """A part that lies on the disk from before a restart; nothing was added to it for `age_s` seconds."""

    name: str
    sha256: str
    size: int
    chunk_size: int
    age_s: float


class Parts(Protocol):
    """Where parts are made and found again."""

    def open(self, name: str, sha256: str, size: int, chunk_size: int) -> Part:
        """The part of that name, which goes on where it was. Raises `ProtocolError(E_SIZE | E_DISK)`."""
        ...

    def found(self) -> Sequence[Found]:
        """What an earlier process left, the longest untouched first."""
        ...

    def remove(self, name: str) -> None:
        """Drop a part, if it is there."""
        ...


class MemoryParts:
    """`Parts` that are forgotten with the process."""

    def open(self, name: str, sha256: str, size: int, chunk_size: int) -> Part:  # noqa: ARG002
        """See `Parts.open`."""
        return MemoryPart(sha256, chunk_size)

    def found(self) -> Sequence[Found]:
        """See `Parts.found`."""
        return ()

    def remove(self, name: str) -> None:
        """See `Parts.remove`."""


class Incoming:
    """An object in the making, from chunks in any order, however often they come; they lie in `part`.

    Of a part that lacks nothing the last chunk is missing once more, so that there is one way to finish. Raises
    `ProtocolError(E_SIZE)` for sizes out of bounds; in memory it grows with what has come.
    """

    def __init__(self, sha256: str, size: int, chunk_size: int, part: Part | None = None) -> None:
        self.count = chunk_count(size, chunk_size)
        self.sha256, self.size, self.chunk_size = sha256, size, chunk_size
        self._part = part or MemoryPart(sha256, chunk_size)
        self._begin(self._part.held)

    def _begin(self, held: Sequence[int]) -> None:
        self.flags: Flags = np.ones(self.count, np.bool_)
        self.flags[list(held)] = False
        if not self.flags.any():
            self.flags[-1] = True
        self._left = int(self.flags.sum())

    @property
    def missing(self) -> bytes:
        """The bitmap of what has not come yet."""
        return encode_bitmap(self.flags)

    @property
    def complete(self) -> bool:
        """Whether every chunk has come."""
        return self._left == 0

    @property
    def progress(self) -> float:
        """The share of chunks that have come, 0 to 1."""
        return 1 - self._left / self.count

    def add(self, chunk: Chunk) -> bool:
        """Put a chunk in its place; whether the object is complete now.

        Raises `ProtocolError`: E_SHA for another object's or a damaged chunk, E_SIZE for one that is not of this
        object's sizes, E_DISK where it cannot be kept; nothing has happened then.
        """
        if chunk.sha256 != self.sha256:
            raise ProtocolError(Code.SHA, f"a chunk of {chunk.sha256:.12}, not of {self.sha256:.12}")
        _, expected = _place(chunk.index, self.size, self.chunk_size)
        if chunk.count != self.count or not 0 <= chunk.index < self.count or len(chunk.data) != expected:
            raise ProtocolError(
                Code.SIZE,
                f"chunk {chunk.index} of {chunk.count} with {len(chunk.data)} bytes; {self.count} are expected",
            )
        if zlib.crc32(chunk.data) != chunk.crc32:
            raise ProtocolError(Code.SHA, f"chunk {chunk.index} is damaged")
        if self.flags[chunk.index]:
            self._part.put(chunk.index, chunk.data, chunk.crc32)
            self.flags[chunk.index] = False
            self._left -= 1
        return self.complete

    def verify(self) -> None:
        """The complete object has the SHA-256 that it is called by; it is not read at once.

        Raises `ProtocolError(E_SHA)` if it has another, and starts again; `ValueError` before it is complete.
        """
        if not self.complete:
            raise ValueError(f"{self._left} of {self.count} chunks are missing")
        if not self._part.is_whole():
            self._part.clear()
            self._begin(())
            raise ProtocolError(Code.SHA, f"what came as {self.sha256:.12} is another object")

    def data(self) -> bytes:
        """The complete object, verified. Raises what `verify` does."""
        self.verify()
        return self._part.read()


def _place(index: int, size: int, chunk_size: int) -> tuple[int, int]:
    """Where a chunk begins, and its bytes."""
    return index * chunk_size, min(chunk_size, size - index * chunk_size)
