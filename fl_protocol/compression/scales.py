"""One positive scale a tensor, a byte each: four bytes for the largest, and small floating-point numbers of it.

    scale = value(code) unit;  value(249) = 1, going down by 16 codes a doubling for 8 doublings, then by 8 for 15

Neighbours are 3 to 6 % apart, at most 12 % below 2^-8: closer than any measurement of a good step. The largest scale is
exact. A scale below 2^-23 of it becomes 0, code 0: that tensor waits in the residual until it is worth mentioning.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fl_protocol.compression.floats import decode_floats
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.tensors import Vector

Scales = NDArray[np.float32]

_UPPER = np.ldexp(16 + np.tile(np.arange(16), 8), np.repeat(np.arange(-12, -4), 16))  # 2^-8 .. 31/32
_LOWER = np.ldexp(8 + np.tile(np.arange(8), 15), np.repeat(np.arange(-26, -11), 8))  # 2^-23 .. 15/16 2^-8
TABLE = np.concatenate([[0], _LOWER, _UPPER, [1]]).astype(np.float32)  # exact
_MIDDLES = (TABLE[1:].astype(np.float64) + TABLE[:-1]) / 2
TINY = np.finfo(np.float32).tiny  # processors differ in how they multiply what is smaller
LARGEST = np.float32(1e36)  # far above any delta; a few thousand times as much is still finite


def encode_scales(scales: Vector, rounding: Literal["nearest", "up"]) -> tuple[bytes, Scales]:
    """Scales from 0 to `LARGEST`, shape (t,), as `num_bytes(t)` bytes; and as they will be read."""
    unit = np.float32(scales.max(initial=0))
    if unit < TINY:
        return bytes(num_bytes(len(scales))), np.zeros(len(scales), np.float32)
    ratios = scales.astype(np.float64) / unit
    codes = np.searchsorted(_MIDDLES if rounding == "nearest" else TABLE, ratios)
    codes[ratios * unit < 2 * TINY] = 0
    return unit.astype("<f4").tobytes() + codes.astype(np.uint8).tobytes(), TABLE[codes] * unit


def decode_scales(payload: bytes | memoryview, count: int) -> Scales:
    """The inverse: shape `(count,)`, none negative. Raises `ProtocolError(E_SIZE | E_NAN | E_SCHEMA)`."""
    if len(payload) != num_bytes(count):
        raise ProtocolError(Code.SIZE, f"{count} scales take {num_bytes(count)} bytes; {len(payload)} came")
    if not count:
        return np.zeros(0, np.float32)
    unit = decode_floats(payload[:4], "<f4", 1)
    codes = np.frombuffer(payload, np.uint8, offset=4)
    if unit[0] < 0 or codes.max() >= len(TABLE):
        raise ProtocolError(Code.SCHEMA, "a scale that is negative, or larger than the largest")
    return TABLE[codes] * unit


def num_bytes(count: int) -> int:
    """What `count` scales take."""
    return 4 + count if count else 0
