"""Depthwise convolution over small planes as one matrix product a channel.

Each channel's window becomes a banded matrix that takes a plane, flattened, to the whole output plane. It is several
times the window's own arithmetic, and still faster than onnxruntime's `Conv`: that one runs a product of one row for
each image and channel, while here all images of a batch are the rows of one. The matrix is the product of the window
with a constant of zeros and ones, and the same constant makes the window's gradient of the matrix's. Wider planes are
cut into strips, each with the rows that its output needs, so that the matrix stays small.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.graph_writer import GraphWriter
from models.ops.geometry import Geometry
from models.ops.table import int64

# Measured with onnxruntime 1.32 on x86-64, batches of 16 and 32, 8 to 128 channels: benchmarks/op_costs.py.
MAX_WHOLE = 10_000  # elements of a whole plane's matrix: planes of 10 by 10, or of 14 by 14 with a stride of 2
MAX_WIDTH = 32  # a strip's matrix has its width squared: in wider ones the window's own arithmetic is faster again


@dataclass(frozen=True)
class Banded:
    """The nodes of one depthwise convolution, one output row (`rows` of 1) or the whole plane (all rows) a strip."""

    writer: GraphWriter
    geometry: Geometry  # of two dimensions
    shape: tuple[int, ...]  # of the layer's kernel, one or two dimensions
    rows: int

    @classmethod
    def of(cls, writer: GraphWriter, geometry: Geometry) -> "Banded | None":
        """None where this way does not pay."""
        plane = geometry.in_two_dimensions
        if not geometry.is_depthwise:
            return None
        if math.prod(plane.wide) * math.prod(plane.narrow) <= MAX_WHOLE:
            return cls(writer, plane, geometry.kernel, plane.narrow[0])
        if len(geometry.kernel) == 2 and max(plane.wide[1], plane.narrow[1]) <= MAX_WIDTH:
            return cls(writer, plane, geometry.kernel, 1)
        return None

    def slide(self, wide: str, weight: str) -> str:
        """The convolution, without its bias."""
        return self._plane(self.writer.node("MatMul", self._wide(wide), self._matrix(weight)), self.geometry.narrow)

    def spread(self, narrow: str, weight: str) -> str | None:
        """The convolution backwards. None where strips overlap and have a stride."""
        write = self.writer.node
        if self.is_whole:
            matrix = write("Transpose", self._matrix(weight), perm=[0, 2, 1])
            return self._plane(write("MatMul", self._narrow(narrow), matrix), self.geometry.wide)
        mirrored = self.geometry.mirrored
        banded = Banded.of(self.writer, mirrored) if mirrored else None
        if banded is None:
            return None
        ends = (int64(self.writer, [end, end]) for end in (-1, -(2**63)))
        flipped = write("Slice", weight, *ends, *(int64(self.writer, v) for v in ([2, 3], [-1, -1])))
        return banded.slide(narrow, flipped)

    def product(self, wide: str, narrow: str) -> str:
        """The weight's gradient, (channels, 1, *kernel)."""
        columns = self.writer.node("Transpose", self._wide(wide), perm=[0, 2, 1])
        matrix = self.writer.node("MatMul", columns, self._narrow(narrow))
        window = self.writer.node("Gemm", self._reshape(matrix, self._channels, -1), self._bands, transB=1)
        return self._reshape(window, self._channels, 1, *self.shape)

    @property
    def is_whole(self) -> bool:
        """Whether a strip is a whole plane."""
        return self.rows == self.geometry.narrow[0]

    @property
    def _channels(self) -> int:
        return self.geometry.wide_channels

    @property
    def _strip(self) -> tuple[int, ...]:
        """Sizes of a strip of the wide side: of a plane cut in strips, padding's rows are part of it."""
        g = self.geometry
        return g.wide if self.is_whole else (g.dilation[0] * (g.kernel[0] - 1) + 1, g.wide[1])

    @cached_property
    def _bands(self) -> str:
        """Zeros and ones, (taps, wide elements of a strip * narrow ones): which tap takes which element where."""
        g = self.geometry
        tall = _bands(g, 0, self._strip[0], self.rows, g.padding[0] if self.is_whole else 0)
        broad = _bands(g, 1, g.wide[1], g.narrow[1], g.padding[1])
        # As a product of two small constants, so that it takes no space in the file; a session computes it once.
        parts = tall[:, None, :, None, :, None], broad[None, :, None, :, None, :]
        return self._reshape(self.writer.node("Mul", *map(self.writer.constant, parts)), g.num_taps, -1)

    def _matrix(self, weight: str) -> str:
        """(channels, wide elements of a strip, narrow elements of a strip)."""
        window = self._reshape(weight, self._channels, self.geometry.num_taps)
        matrix = self.writer.node("MatMul", window, self._bands)
        return self._reshape(matrix, self._channels, math.prod(self._strip), self.rows * self.geometry.narrow[1])

    def _wide(self, plane: str) -> str:
        """The wide side in strips, (channels, images * strips, elements)."""
        g, write = self.geometry, self.writer.node
        strips = self._by_channel(plane, g.wide)
        if not self.is_whole:
            strips = self._reshape(strips, self._channels, -1, *g.wide)
            if g.padding[0]:
                strips = write("Pad", strips, int64(self.writer, [0, 0, g.padding[0], 0, 0, 0, g.padding[0], 0]))
            axis, step = int64(self.writer, [2]), int64(self.writer, [g.stride[0]])
            starts = range(self._strip[0])
            ends = [start + g.stride[0] * (g.narrow[0] - 1) + 1 for start in starts]
            cuts = [(int64(self.writer, [s]), int64(self.writer, [e])) for s, e in zip(starts, ends, strict=True)]
            strips = write("Concat", *(write("Slice", strips, *cut, axis, step) for cut in cuts), axis=3)
        return self._reshape(strips, self._channels, -1, math.prod(self._strip))

    def _narrow(self, plane: str) -> str:
        """The narrow side in strips, (channels, images * strips, elements)."""
        strips = self._by_channel(plane, self.geometry.narrow)
        return self._reshape(strips, self._channels, -1, self.rows * self.geometry.narrow[1])

    def _by_channel(self, plane: str, sizes: tuple[int, ...]) -> str:
        """(images, channels, *sizes) with channels first, planes flat."""
        flat = self._reshape(plane, -1, self._channels, math.prod(sizes))
        return self.writer.node("Transpose", flat, perm=[1, 0, 2])

    def _plane(self, strips: str, sizes: tuple[int, ...]) -> str:
        """(channels, images * strips, elements) -> (images, channels, *sizes), of the layer's own dimensions."""
        flat = self._reshape(strips, self._channels, -1, math.prod(sizes))
        by_image = self.writer.node("Transpose", flat, perm=[1, 0, 2])
        return self._reshape(by_image, -1, self._channels, *sizes[-len(self.shape) :])

    def _reshape(self, tensor: str, *sizes: int) -> str:
        return self.writer.node("Reshape", tensor, int64(self.writer, sizes))


def _bands(geometry: Geometry, axis: int, wide: int, narrow: int, padding: int) -> NDArray[np.float32]:
    """One dimension's map, (taps, wide, narrow)."""
    taps, stride, dilation = geometry.kernel[axis], geometry.stride[axis], geometry.dilation[axis]
    bands = np.zeros((taps, wide, narrow), np.float32)
    for tap in range(taps):
        for to in range(narrow):
            source = to * stride + tap * dilation - padding
            if 0 <= source < wide:
                bands[tap, source, to] = 1
    return bands
