"""What a version differs by from an earlier one, as few bytes; and a version alone, a keyframe.

The published vector is the model: the gateway publishes what `reconstruct` makes of the parameters that it wants, keeps
the rest as its own residual, and every device holds those float32 bits. So that a device which has slept through many
versions need fetch one delta only, published values lie on a grid: in each tensor they are whole multiples of 2^g, and
the steps between versions of some 2^k, k >= g. From any version to any later one

    w' = (rint(w / 2^g) + q 2^(k-g)) 2^g        q whole numbers, mostly zero, entropy coded (compression/rice.py)

by multiplications with powers of two, which are exact, and one addition: the same bits on every processor. A delta
that spans many versions adds up symbols instead of concatenating them. The result is checked by its SHA-256.

    delta:     format · int8 g, uint8 k - g of each tensor · symbols, in three groups: of the large tensors, of the
               small ones, and the differences of the statistics' float16 codes
    keyframe:  format · zlib over the float32 values, bytes of equal significance together

Statistics are published as float16. Source of the dead zone: `algorithms.md`, sections 2 and 3.
"""

import struct
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fl_protocol.compression import rice
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.parameters import Parameters
from fl_protocol.tensors import ModelLayout, Vector

DEFAULT_STEP, MIN_STEP, MAX_STEP = 1.5, 0.25, 8.0
ROUNDING = 0.33
SMALL = 256  # elements; a tensor below that has a finer step, since it is sensitive and costs little
FINER = 8.0
GRID_BITS = 20  # what a tensor's largest value is fine to, at least
FLOOR = 2.0**-10  # of the model's largest value: a tensor that is smaller is not gridded finer for it
LOWEST, HIGHEST = -100, 60  # exponents of grids
HOLDS = 24  # bits of a float32's significand
DELTA, KEYFRAME = b"\x01", b"\x02"  # formats
_CODE_BYTES = 16  # the most that a symbol takes, by far

Integers = NDArray[np.int64]


def downlink_step(settings: Mapping[str, str]) -> float | None:
    """The step of a plan's `downlink`, e.g. `{"name": "uq", "step": "2.0"}`; None where versions are published whole.

    Raises `ProtocolError(E_SCHEMA)` naming what is unknown, or out of range.
    """
    if not settings:
        return None
    parameters = Parameters(settings)
    if parameters.name not in ("none", "uq"):
        raise ProtocolError(Code.SCHEMA, f"no downlink codec is called {parameters.name!r:.80}; there are none and uq")
    step = parameters.number("step", DEFAULT_STEP, MIN_STEP, MAX_STEP) if parameters.name == "uq" else None
    parameters.finish()
    return step


def reconstruct(layout: ModelLayout, base: Vector, wanted: Vector, step: float) -> Vector:
    """The version to publish after `base` where `wanted` is meant, all of shape (layout.size,).

    `step` is in units of the root mean square of a tensor's change, and is rounded to a power of two.
    """
    published = np.empty_like(wanted)
    largest = float(np.abs(wanted[: layout.num_parameters]).max(initial=0.0))
    for entry, place in layout.parameter_slices():
        now, then = wanted[place].astype(np.float64), base[place]
        g = _grid_for(then, float(np.abs(now).max()), largest)
        on_grid = np.rint(_scaled(then, -g))
        change = now - np.ldexp(on_grid.astype(np.float64), g)
        rms, most = float(np.sqrt(np.mean(np.square(change)))), float(np.abs(change).max())
        symbols = np.zeros(change.size)
        k = g
        if most > 0:
            fine = step if entry.size >= SMALL else step / FINER
            # Never above the largest change, so that something always arrives (see compression/uq.py).
            k = max(g, min(round(np.log2(fine * rms)), int(np.floor(np.log2(most)))))
            symbols = np.trunc(np.ldexp(change, -k) + np.copysign(ROUNDING, change))
        published[place] = _moved(on_grid, symbols.astype(np.float32), k - g, g)
    published[layout.num_parameters :] = _as_half(wanted[layout.num_parameters :]).astype(np.float32)
    return published


def encode_delta(layout: ModelLayout, base: Vector, target: Vector) -> bytes | None:
    """What `apply_delta` makes `target` of on `base`; None where no delta says it (a target that lies on no grid)."""
    exponents: list[tuple[int, int]] = []
    large: list[Integers] = []
    small: list[Integers] = []
    for entry, place in layout.parameter_slices():
        g = _grid_of(target[place])
        steps = _scaled(target[place], -g).astype(np.float64) - np.rint(_scaled(base[place], -g))
        if not np.isfinite(steps).all() or np.abs(steps).max() > rice.MAX_MAGNITUDE:
            return None
        whole = steps.astype(np.int64)
        shift = _trailing_zeros(whole)
        exponents.append((g, shift))
        (large if entry.size >= SMALL else small).append(whole >> shift)
    codes = _codes(target[layout.num_parameters :]) - _codes(base[layout.num_parameters :])
    head = b"".join(struct.pack("<bB", g, shift) for g, shift in exponents)
    delta = b"".join([DELTA, head, rice.encode([_row(large), _row(small), _row([codes])])])
    try:
        return delta if np.array_equal(_bits(apply_delta(layout, base, delta)), _bits(target)) else None
    except ProtocolError:
        return None


def apply_delta(layout: ModelLayout, base: Vector, delta: bytes) -> Vector:
    """`base` and a delta -> the version, shape (layout.size,). Memory is bounded by the layout.

    Raises `ProtocolError(E_SCHEMA | E_SIZE | E_NAN)`; that it is the right version, its SHA-256 says.
    """
    sliced = layout.parameter_slices()
    at = 1 + 2 * len(sliced)
    if delta[:1] != DELTA or not at <= len(delta) <= at + _CODE_BYTES * (layout.size + 4):
        raise ProtocolError(Code.SIZE, f"{len(delta)} bytes are no delta of {layout.size} values")
    sizes = [sum(e.size for e, _ in sliced if (e.size >= SMALL) == is_large) for is_large in (True, False)]
    *rows, codes = rice.decode(delta[at:], [*sizes, layout.num_statistics])
    vector = np.empty(layout.size, np.float32)
    taken = [0, 0]
    with np.errstate(over="ignore", invalid="ignore"):
        for i, (entry, place) in enumerate(sliced):
            g, shift = struct.unpack_from("<bB", delta, 1 + 2 * i)
            if not LOWEST <= g <= HIGHEST or shift > 30:
                raise ProtocolError(Code.SCHEMA, f"tensor {entry.name} has a grid of 2^{g} and steps 2^{shift} of it")
            row = 0 if entry.size >= SMALL else 1
            symbols = rows[row][taken[row] : taken[row] + entry.size].astype(np.float32)
            taken[row] += entry.size
            vector[place] = _moved(np.rint(_scaled(base[place], -g)), symbols, shift, g)
    vector[layout.num_parameters :] = _from_codes(_codes(base[layout.num_parameters :]) + codes)
    if not np.isfinite(vector).all():
        raise ProtocolError(Code.NAN, "with this delta, the version would not be finite")
    return vector


def encode_keyframe(vector: Vector) -> bytes:
    """A version alone, lossless. Signs and exponents are alike, so that they come together."""
    planes = vector.astype("<f4", copy=False).view(np.uint8).reshape(-1, 4).T
    return KEYFRAME + zlib.compress(planes.tobytes(), 6)


def decode_keyframe(layout: ModelLayout, keyframe: bytes) -> Vector:
    """The inverse, shape (layout.size,). Raises `ProtocolError(E_SCHEMA | E_SIZE | E_NAN)`."""
    size = 4 * layout.size
    if keyframe[:1] != KEYFRAME or len(keyframe) > 2 * size + 64:
        raise ProtocolError(Code.SCHEMA, f"{len(keyframe)} bytes are no keyframe of {layout.size} values")
    unpacking = zlib.decompressobj()
    try:
        planes = unpacking.decompress(keyframe[1:], size + 1)
    except zlib.error as error:
        raise ProtocolError(Code.SCHEMA, f"a keyframe that is not zlib: {error}") from None
    if len(planes) != size or not unpacking.eof or unpacking.unused_data:
        raise ProtocolError(Code.SIZE, f"a keyframe of {layout.size} values has {len(planes)} bytes")
    vector = np.frombuffer(planes, np.uint8).reshape(4, -1).T.copy().view("<f4").reshape(-1).astype(np.float32)
    if not np.isfinite(vector).all():
        raise ProtocolError(Code.NAN, "a keyframe that is not finite")
    return vector


def _scaled(values: Vector, exponent: int) -> Vector:
    """values 2^exponent, float32."""
    with np.errstate(over="ignore"):
        return np.ldexp(values, exponent)


def _moved(on_grid: Vector, symbols: Vector, shift: int, g: int) -> Vector:
    """The one addition: both are whole numbers in float32. Its zeros are positive, since no symbol is -0."""
    return _scaled(on_grid + _scaled(symbols + np.float32(0.0), shift), g)


def _grid_for(base: Vector, largest_here: float, largest: float) -> int:
    """The grid of a tensor's next version. One that becomes coarser moves every value, so that it is kept if it holds
    what comes."""
    peak = max(largest_here, FLOOR * largest, 2.0**LOWEST)
    wanted = min(max(int(np.floor(np.log2(peak))) - GRID_BITS, LOWEST), HIGHEST)
    before = _grid_of(base)
    if before < wanted and peak < 2.0 ** (HOLDS - 1 + before):
        return max(before, LOWEST)
    return wanted


def _grid_of(values: Vector) -> int:
    """The largest g such that all values are multiples of 2^g."""
    bits = values.view(np.uint32)
    exponents = (bits >> 23 & 255).astype(np.int32)
    fraction = bits & 0x7FFFFF
    whole = np.where(exponents > 0, fraction | 0x800000, fraction)
    grids = np.maximum(exponents, 1) - 150 + _lowest_bit(whole)
    used = grids[whole != 0]
    return min(max(int(used.min()), LOWEST), HIGHEST) if used.size else HIGHEST


def _lowest_bit(whole: NDArray[np.uint32]) -> NDArray[np.int32]:
    """The place of the lowest set bit of each (of 0, nothing of use)."""
    lowest = whole & (~whole + np.uint32(1))
    return (lowest.astype(np.float32).view(np.uint32) >> 23).astype(np.int32) - 127


def _trailing_zeros(whole: Integers) -> int:
    """By how many bits all may be shifted."""
    every = int(np.bitwise_or.reduce(np.abs(whole)))
    return min((every & -every).bit_length() - 1, 30) if every else 0


def _row(parts: list[Integers]) -> NDArray[np.int32]:
    return (np.concatenate(parts) if parts else np.zeros(0)).astype(np.int32)


def _as_half(values: Vector) -> NDArray[np.float16]:
    most = np.float32(np.finfo(np.float16).max)
    return np.clip(values, -most, most).astype(np.float16) + np.float16(0.0)  # no -0


def _codes(values: Vector) -> Integers:
    """float16 values as whole numbers in their order: neighbours differ by one."""
    bits = _as_half(values).view(np.int16).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFF), bits)


def _from_codes(codes: Integers) -> Vector:
    """The inverse. What is no float16 becomes infinite, and is found by whoever checks."""
    beyond = np.abs(codes) > 0x7C00
    bits = np.where(codes < 0, -codes | 0x8000, codes).astype(np.uint16)
    return np.where(beyond, np.float32(np.inf), bits.view(np.float16).astype(np.float32)).astype(np.float32)


def _bits(vector: Vector) -> NDArray[np.uint32]:
    return vector.view(np.uint32)
