"""What codecs of whole numbers share: bits in rows, rounding to a grid, and which values stand where."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from fl_protocol.compression.rice import Bytes, Symbols
from fl_protocol.compression.scales import LARGEST
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.tensors import Vector

Rounding = Literal["stochastic", "nearest"]


def bounded(vector: Vector) -> Vector:
    """A copy without what float32 could not hold after a multiplication; error feedback carries the rest."""
    return np.clip(vector, -LARGEST, LARGEST)


def round_to_grid(ratios: Vector, rounding: Rounding, rng: Generator) -> Symbols:
    """Whole numbers for real ones: the nearest, or one of both neighbours so that the mean over `rng` is the number."""
    if rounding == "nearest":
        return np.rint(ratios).astype(np.int32)
    below = np.floor(ratios)
    return (below + (rng.random(ratios.shape, np.float32) < ratios - below)).astype(np.int32)


def rounding_of(word: str) -> Rounding:
    """The setting as its type."""
    return "nearest" if word == "nearest" else "stochastic"


def scale_by_tensor(symbols: Symbols | Vector, scales: Vector, tensors: Sequence[slice]) -> Vector:
    """Each tensor's numbers times its scale: float32, finite. Raises `ProtocolError(E_NAN)`."""
    vector = symbols.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a hostile scale; found below
        for scale, tensor in zip(scales, tensors, strict=True):
            vector[tensor] *= scale
    if not np.isfinite(vector).all():
        raise ProtocolError(Code.NAN, "a symbol times its scale is beyond float32")
    return vector


def cut(payload: Bytes, *ends: int) -> list[memoryview]:
    """The payload's fields up to each of `ends`, and what is left; no copies. Raises `ProtocolError(E_SIZE)`."""
    if len(payload) < ends[-1]:
        raise ProtocolError(Code.SIZE, f"{len(payload)} bytes; at least {ends[-1]} were to come")
    whole = memoryview(payload)
    return [whole[start:stop] for start, stop in pairwise([0, *ends, len(payload)])]


def pack(values: NDArray[np.integer] | NDArray[np.bool_], width: int) -> bytes:
    """Numbers from 0 to 2^width - 1, width at most 16, as so many bits each, highest first."""
    bits = np.empty((values.size, width), np.uint8)
    for i in range(width):
        bits[:, i] = values >> (width - 1 - i) & 1 if width > 1 else values
    return np.packbits(bits).tobytes()


def unpack(payload: Bytes, count: int, width: int) -> NDArray[np.int32]:
    """The inverse: shape `(count,)`. Raises `ProtocolError(E_SIZE)` unless the payload is just as long."""
    if len(payload) != (count * width + 7) // 8:
        raise ProtocolError(Code.SIZE, f"{count} numbers of {width} bits do not take {len(payload)} bytes")
    bits = np.unpackbits(np.frombuffer(payload, np.uint8))
    if bits[count * width :].any():
        raise ProtocolError(Code.SIZE, "bits beyond the last number")
    rows = bits[: count * width].reshape(count, width)
    values = np.zeros(count, np.int32)
    for i in range(width):
        values = values << 1 | rows[:, i]
    return values
