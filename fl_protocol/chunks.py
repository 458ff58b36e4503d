"""An object larger than a packet, as chunks: cut up at one end, put together at the other.

Every chunk has a CRC-32, every object its SHA-256; a bitmap says what is missing. Each end holds the object once.
"""

import hashlib
import io
import zlib
from collections.abc import Iterator

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


class Outgoing:
    """An object as its chunks, named by its SHA-256. Raises `ProtocolError(E_SIZE)` for one that cannot be chunked."""

    def __init__(self, data: bytes, chunk_size: int) -> None:
        self.count = chunk_count(len(data), chunk_size)
        self.size = len(data)
        self.chunk_size = chunk_size
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._data = data

    def chunk(self, index: int) -> Chunk:
        """Chunk `index`, from 0. Raises `ProtocolError(E_SIZE)` when there is no such chunk."""
        if not 0 <= index < self.count:
            raise ProtocolError(Code.SIZE, f"chunk {index} of {self.count}")
        data = self._data[index * self.chunk_size : (index + 1) * self.chunk_size]
        return Chunk(sha256=self.sha256, index=index, count=self.count, crc32=zlib.crc32(data), data=data)

    def chunks(self, missing: bytes, window: int) -> Iterator[Chunk]:
        """The first `window` chunks, `MAX_WINDOW` at most, of those in the bitmap. Raises `ProtocolError(E_SIZE)`."""
        indices = np.flatnonzero(decode_bitmap(missing, self.count))[: min(window, MAX_WINDOW)]
        return (self.chunk(int(index)) for index in indices)


class Incoming:
    """An object in the making, from chunks in any order, however often they come.

    Raises `ProtocolError(E_SIZE)` for sizes out of bounds; memory grows with what has come.
    """

    def __init__(self, sha256: str, size: int, chunk_size: int) -> None:
        self.count = chunk_count(size, chunk_size)
        self.sha256 = sha256
        self.size = size
        self.chunk_size = chunk_size
        self._restart()

    def _restart(self) -> None:
        # BytesIO grows with what comes, and its getvalue is the buffer itself, not a copy.
        self._buffer = io.BytesIO()
        self.flags: Flags = np.ones(self.count, np.bool_)
        self._left = self.count

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

        Raises `ProtocolError(E_SHA)` for another object's or a damaged chunk, `ProtocolError(E_SIZE)` for one that is
        not of this object's sizes; nothing has happened then.
        """
        if chunk.sha256 != self.sha256:
            raise ProtocolError(Code.SHA, f"a chunk of {chunk.sha256:.12}, not of {self.sha256:.12}")
        start = chunk.index * self.chunk_size
        expected = min(self.chunk_size, self.size - start)
        if chunk.count != self.count or not 0 <= chunk.index < self.count or len(chunk.data) != expected:
            raise ProtocolError(
                Code.SIZE,
                f"chunk {chunk.index} of {chunk.count} with {len(chunk.data)} bytes; {self.count} are expected",
            )
        if zlib.crc32(chunk.data) != chunk.crc32:
            raise ProtocolError(Code.SHA, f"chunk {chunk.index} is damaged")
        if self.flags[chunk.index]:
            self._buffer.seek(start)
            self._buffer.write(chunk.data)
            self.flags[chunk.index] = False
            self._left -= 1
        return self.complete

    def data(self) -> bytes:
        """The complete object, which has the SHA-256 that it is called by.

        Raises `ProtocolError(E_SHA)` if it has another, and starts again; `ValueError` before it is complete.
        """
        if not self.complete:
            raise ValueError(f"{self._left} of {self.count} chunks are missing")
        data = self._buffer.getvalue()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            self._restart()
            raise ProtocolError(Code.SHA, f"what came as {self.sha256:.12} is another object")
        return data
