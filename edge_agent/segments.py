"""A segment of the ring: a file that is written once, by one `write`, and whole or not there after a power cut.

header: "ANBRING1", length, CRC-32, JSON {"shape": [3, 128], "meaning": "..."}
block:  "BLK1", examples, CRC-32, then (time float64, label float64, features float32 ...) for each; little-endian
"""

import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC, BLOCK = b"ANBRING1", b"BLK1"
_HEADER = struct.Struct("<8sII")
_BLOCK = struct.Struct("<4sII")
MAX_HEADER = 4096


@dataclass(frozen=True)
class Form:
    """What an example of a ring looks like; `meaning` names what its numbers are."""

    shape: tuple[int, ...]
    meaning: str = ""

    @property
    def dtype(self) -> np.dtype[Any]:
        """A record: time, label, features."""
        return np.dtype([("t", "<f8"), ("y", "<f8"), ("x", "<f4", self.shape)])

    def header(self) -> bytes:
        """The first bytes of a segment."""
        body = json.dumps({"shape": self.shape, "meaning": self.meaning}, separators=(",", ":")).encode()
        return _HEADER.pack(MAGIC, len(body), zlib.crc32(body)) + body


def read_form(data: bytes) -> tuple[Form, int] | None:
    """A segment's form and where its blocks begin; None where it has no whole header."""
    if len(data) < _HEADER.size:
        return None
    magic, length, crc = _HEADER.unpack_from(data)
    body = data[_HEADER.size : _HEADER.size + length]
    if magic != MAGIC or length > MAX_HEADER or len(body) != length or zlib.crc32(body) != crc:
        return None
    said = json.loads(body)
    return Form(tuple(said["shape"]), said["meaning"]), _HEADER.size + length


def pack_segment(form: Form, records: NDArray[Any]) -> bytes:
    """A segment of these records."""
    body = records.tobytes()
    count = struct.pack("<I", len(records))
    return form.header() + _BLOCK.pack(BLOCK, len(records), zlib.crc32(body, zlib.crc32(count))) + body


def read_records(data: bytes) -> tuple[Form, NDArray[Any]] | None:
    """A segment's form and its records; None for one that is not whole."""
    found = read_form(data)
    if found is None or len(data) < found[1] + _BLOCK.size:
        return None
    form, start = found
    magic, count, crc = _BLOCK.unpack_from(data, start)
    body = memoryview(data)[start + _BLOCK.size :]
    if magic != BLOCK or len(body) != count * form.dtype.itemsize:
        return None
    if zlib.crc32(body, zlib.crc32(struct.pack("<I", count))) != crc:
        return None
    return form, np.frombuffer(body, form.dtype)
