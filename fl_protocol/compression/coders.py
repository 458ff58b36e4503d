"""The lossless last stage: groups of whole numbers as bytes, by one of four coders that a plan names.

    rice     positions of what is not zero (rice.py, with figures of all): best for sparse symbols; no table, fast
    range    rANS with a static table (ranges.py): at the entropy of dense symbols; 25 ms and more even for few
    deflate  zlib over one byte a symbol: dense symbols, fast to read, slow to write
    packed   a fixed number of bits a symbol: constant size

zstandard is not among them: its wheel weighs 5 MB on a device, and on these symbols it took more than Rice's code and
more time (`algorithms.md`, section 2: +39 % over the entropy at level 19); zlib is in the standard library.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from fl_protocol.compression import ranges, rice
from fl_protocol.compression.grid import cut, pack, unpack
from fl_protocol.compression.rice import Bytes, Sparse, Symbols
from fl_protocol.errors import Code, ProtocolError

Name = Literal["rice", "range", "deflate", "packed"]
NAMES: tuple[str, ...] = get_args(Name)
WIDTHS = (1, 2, 4)  # bytes a symbol of zlib's
SLACK = 2048  # bytes beyond two a symbol, which is more than codecs' symbols take: heads and tables of two groups


@dataclass(frozen=True)
class Coder:
    """A coder for symbols from `low` to `high`."""

    name: str
    low: int
    high: int

    def encode(self, groups: Sequence[Symbols]) -> bytes:
        """Groups of symbols as bytes that `decode` reads."""
        match self.name:
            case "rice":
                return rice.encode(groups)
            case "range":
                return ranges.encode(groups)
            case "deflate":
                return _deflate(np.concatenate(groups))
        return pack(np.concatenate(groups) - self.low, self._width)

    def decode(self, stream: Bytes, sizes: Sequence[int]) -> list[Symbols]:
        """The inverse: groups of these sizes, in memory bounded by them and the stream's length.

        Raises `ProtocolError(E_SIZE | E_SCHEMA)` for anything that `encode` would not have said.
        """
        _check_length(stream, sizes)
        match self.name:
            case "rice":
                groups = rice.decode(stream, sizes)
            case "range":
                groups = ranges.decode(stream, sizes)
            case "deflate":
                groups = _split(_inflate(stream, sum(sizes)), sizes)
            case _:
                groups = _split(unpack(stream, sum(sizes), self._width) + self.low, sizes)
        for group in groups:
            self._check_range(group)
        return groups

    def decode_sparse(self, stream: Bytes, sizes: Sequence[int]) -> list[Sparse]:
        """What is not zero in these groups, which `decode` would return; `rice` says it without ever making the zeros.

        Raises `ProtocolError` where `decode` does.
        """
        if self.name != "rice":
            groups = self.decode(stream, sizes)
            return [(positions := np.flatnonzero(group), group[positions]) for group in groups]
        _check_length(stream, sizes)
        found = rice.decode_sparse(stream, sizes)
        for _, values in found:
            self._check_range(values)
        return found

    def _check_range(self, symbols: Symbols) -> None:
        if symbols.size and not (self.low <= symbols.min() and symbols.max() <= self.high):
            raise ProtocolError(Code.SCHEMA, f"a symbol outside of {self.low} .. {self.high}")

    @property
    def _width(self) -> int:
        return (self.high - self.low).bit_length()


def _check_length(stream: Bytes, sizes: Sequence[int]) -> None:
    if len(stream) > 2 * sum(sizes) + SLACK:
        raise ProtocolError(Code.SIZE, f"{len(stream)} bytes for {sum(sizes)} symbols")


def _split(row: Symbols, sizes: Sequence[int]) -> list[Symbols]:
    return np.split(row, np.cumsum(sizes)[:-1])


def _deflate(row: Symbols) -> bytes:
    """How many bytes a symbol takes, then zlib."""
    largest = int(np.abs(row).max(initial=0))
    width = next(width for width in WIDTHS if largest < 1 << 8 * width - 1)
    return bytes([width]) + zlib.compress(row.astype(f"<i{width}").tobytes(), 9)


def _inflate(stream: Bytes, size: int) -> Symbols:
    """Never more bytes than `size` symbols have."""
    head, body = cut(stream, 1)
    if head[0] not in WIDTHS:
        raise ProtocolError(Code.SCHEMA, f"symbols of {head[0]} bytes")
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(body, size * head[0] + 1)
    except zlib.error as error:
        raise ProtocolError(Code.SCHEMA, f"not a deflated stream: {error}") from None
    if len(plain) != size * head[0] or not inflater.eof or inflater.unused_data:
        raise ProtocolError(Code.SIZE, f"{len(plain)} bytes for {size} symbols")
    return np.frombuffer(plain, f"<i{head[0]}").astype(np.int32)
