"""A range coder for whole numbers, by asymmetric numeral systems (rANS; Duda 2013, interleaved as by Giesen 2014).

A table says how often each symbol comes, in parts of 2^14, which is what the coder spends by: log2(2^14 / frequency)
bits a symbol, fractions included. One state could only go symbol by symbol; so there are lanes, each with every so
manieth symbol and a state of its own, and numpy steps through all of them at once.

    encode  x >= f 2^18: out go the low 16 bits of x;   x <- (x div f) 2^14 + x mod f + c
    decode  s from the table at x mod 2^14;   x <- f (x div 2^14) + x mod 2^14 - c;   x < 2^16: in come 16 bits

A group of symbols: the table's length and frequencies, LEB128 · length of the rest · the rest, rice.py's (what symbols
have beyond +-127) · number of words · states, 4 bytes each · words, 2 bytes each.

A lane costs four bytes, a step 25 microseconds: 4,096 symbols a lane. Figures in rice.py.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fl_protocol.compression import rice
from fl_protocol.compression.rice import Bytes, Symbols, leb128, read_count
from fl_protocol.errors import Code, ProtocolError

Wide = NDArray[np.int64]

PRECISION = 14
TOTAL = 1 << PRECISION
LOWEST = 1 << 16  # of a state
LANE = 4096  # symbols
MOST = 127  # of a magnitude in the table; a symbol at the end says its rest elsewhere


def encode(groups: Sequence[Symbols]) -> bytes:
    """Groups of whole numbers, none beyond rice.py's `MAX_MAGNITUDE`, as bytes that `decode` reads."""
    return b"".join(_encode(group) for group in groups if group.size)


def decode(stream: Bytes, sizes: Sequence[int]) -> list[Symbols]:
    """The inverse: groups of these sizes. Memory is bounded by the sizes and the stream's length.

    Raises `ProtocolError(E_SIZE | E_SCHEMA)` for anything that `encode` would not have said of so many numbers.
    """
    groups, at = [], 0
    for size in sizes:
        group, at = _decode(stream, at, size) if size else (np.zeros(0, np.int32), at)
        groups.append(group)
    if at != len(stream):
        raise ProtocolError(Code.SIZE, "the symbols end too late")
    return groups


def _encode(symbols: Symbols) -> bytes:
    capped = np.clip(symbols, -MOST, MOST)
    codes = np.where(capped < 0, -2 * capped - 1, 2 * capped)  # 0 -1 1 -2 2 ..
    frequencies = _frequencies(np.bincount(codes))
    rest = rice.encode([(np.abs(symbols) - MOST)[np.abs(capped) == MOST]])
    states, words = _push(codes, frequencies)
    parts = [leb128(len(frequencies)), *map(leb128, frequencies.tolist()), leb128(len(rest)), rest, leb128(len(words))]
    return b"".join([*parts, states.astype("<u4").tobytes(), words.astype("<u2").tobytes()])


def _decode(stream: Bytes, at: int, size: int) -> tuple[Symbols, int]:
    length, at = read_count(stream, at, 2 * MOST + 1)
    frequencies = np.zeros(length, np.int64)
    left = TOTAL
    for i in range(length):
        frequencies[i], at = read_count(stream, at, left)
        left -= int(frequencies[i])
    if left:
        raise ProtocolError(Code.SCHEMA, f"the frequencies are {left} short of {TOTAL}")
    length, at = read_count(stream, at, len(stream))
    rest, at = _take(stream, at, length), at + length
    num_words, at = read_count(stream, at, len(stream))
    lanes = _lanes(size)
    states = np.frombuffer(_take(stream, at, 4 * lanes), "<u4").astype(np.int64)
    words = np.frombuffer(_take(stream, at + 4 * lanes, 2 * num_words), "<u2").astype(np.int64)
    codes = _pull(states, words, frequencies, size)
    symbols = np.where(codes % 2, -(codes // 2) - 1, codes // 2).astype(np.int32)
    capped = np.abs(symbols) == MOST
    (more,) = rice.decode(rest, [int(np.count_nonzero(capped))])
    if more.size and (more.min() < 0 or more.max() > rice.MAX_MAGNITUDE - MOST):
        raise ProtocolError(Code.SCHEMA, f"a symbol beyond {rice.MAX_MAGNITUDE}")
    symbols[capped] += np.sign(symbols[capped]) * more
    return symbols, at + 4 * lanes + 2 * num_words


def _push(codes: NDArray[np.integer], frequencies: Wide) -> tuple[Wide, Wide]:
    """Last symbol first, so that the reader has the first one first: states, shape (lanes,), and words."""
    starts = np.cumsum(frequencies) - frequencies
    lanes = _lanes(codes.size)
    states = np.full(lanes, LOWEST, np.int64)
    words: list[Wide] = []
    for at in range((codes.size - 1) // lanes * lanes, -1, -lanes):
        now = codes[at : at + lanes]
        f, x = frequencies[now], states[: now.size]
        full = x >= f << 18
        words.append(x[full] & 0xFFFF)
        x[full] >>= 16
        quotient = x // f
        states[: now.size] = (quotient << PRECISION) + (x - quotient * f) + starts[now]
    return states, np.concatenate(words[::-1])


def _pull(states: Wide, words: Wide, frequencies: Wide, size: int) -> Wide:
    """The inverse; it must end with the states that `_push` began with, and no word left."""
    table = np.repeat(np.arange(len(frequencies)), frequencies)
    starts = np.cumsum(frequencies) - frequencies
    codes = np.empty(size, np.int64)
    lanes, word = len(states), 0
    for at in range(0, size, lanes):
        x = states[: min(lanes, size - at)]
        slots = x & (TOTAL - 1)
        now = table[slots]
        codes[at : at + lanes] = now
        x = frequencies[now] * (x >> PRECISION) + slots - starts[now]
        low = np.flatnonzero(x < LOWEST)
        if word + low.size > words.size:
            raise ProtocolError(Code.SIZE, "the symbols end too early")
        x[low] = x[low] << 16 | words[word : word + low.size]
        states[: x.size] = x
        word += low.size
    if word != words.size or (states != LOWEST).any():
        raise ProtocolError(Code.SIZE, "the symbols do not end where they should")
    return codes


def _frequencies(counts: NDArray[np.integer]) -> Wide:
    """Counts in parts of `TOTAL`, at least one for what comes at all."""
    parts: Wide = np.maximum(counts * (TOTAL / counts.sum()), counts > 0).astype(np.int64)
    while (excess := int(parts.sum()) - TOTAL) != 0:
        largest = int(parts.argmax())
        parts[largest] -= max(-TOTAL, min(excess, int(parts[largest]) // 2))
    return parts


def _lanes(size: int) -> int:
    return max(1, size // LANE)


def _take(stream: Bytes, at: int, count: int) -> Bytes:
    piece = stream[at : at + count]
    if len(piece) < count:
        raise ProtocolError(Code.SIZE, "the symbols end too early")
    return piece
