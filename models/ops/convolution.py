"""Convolutions over one and two dimensions, transposed ones too, and their gradients.

In a training step a weight is an input of the graph, so onnxruntime cannot lay it out in blocks beforehand, as it does
with stored ones. What is written instead, measured with onnxruntime 1.32 (benchmarks/op_costs.py):

- An ordinary convolution stays `Conv`; backwards it is one `ConvTranspose`, whatever its geometry.
- A weight's gradient is a matrix product of the output gradient with the shifted input, for each image, summed.
- A depthwise `Conv` takes 3 to 5 times as long as torch, and is written as `banded.py` says where planes are small.
"""

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import fx

from models import gradient_ops  # noqa: F401  registers the ops below
from models.graph_writer import GraphWriter
from models.ops.banded import Banded
from models.ops.geometry import Geometry
from models.ops.table import aten, int64, lowers

_MANY = 8  # channels with which the products of single taps are large enough to be fast


@lowers(aten.convolution.default)
def _convolution(writer: GraphWriter, node: fx.Node) -> str:
    x, weight, bias, *settings = node.args
    if settings[3]:  # transposed
        geometry = Geometry.of(node, x, weight, settings)
        return _spread(writer, geometry, x, weight, bias)
    return _slide(writer, Geometry.of(x, node, weight, settings), x, weight, bias)


@lowers(torch.ops.anabranch.convolution_input_gradient.default)
def _input_gradient(writer: GraphWriter, node: fx.Node) -> str:
    gradient, _, weight, *settings = node.args
    if settings[3]:
        return _slide(writer, Geometry.of(gradient, node, weight, settings), gradient, weight, None)
    return _spread(writer, Geometry.of(node, gradient, weight, settings), gradient, weight, None)


@lowers(torch.ops.anabranch.convolution_weight_gradient.default)
def _weight_gradient(writer: GraphWriter, node: fx.Node) -> str:
    gradient, x, weight, *settings = node.args
    wide, narrow = (gradient, x) if settings[3] else (x, gradient)
    geometry = Geometry.of(wide, narrow, weight, settings)
    names = writer.emit(wide), writer.emit(narrow)
    banded = Banded.of(writer, geometry)
    if banded:
        return banded.product(*names)
    return (_depthwise_product if geometry.is_depthwise else _product)(writer, geometry, *names)


def _slide(writer: GraphWriter, geometry: Geometry, wide: fx.Node, weight: fx.Node, bias: fx.Node | None) -> str:
    """From the wide side to the narrow one."""
    banded = None if writer.is_stored(weight) else Banded.of(writer, geometry)
    if banded:
        return _biased(writer, geometry, banded.slide(writer.emit(wide), writer.emit(weight)), bias)
    return writer.node("Conv", *(writer.emit(a) for a in (wide, weight, bias) if a is not None), **geometry.window)


def _spread(writer: GraphWriter, geometry: Geometry, narrow: fx.Node, weight: fx.Node, bias: fx.Node | None) -> str:
    """From the narrow side to the wide one."""
    names = writer.emit(narrow), writer.emit(weight)
    banded = None if writer.is_stored(weight) else Banded.of(writer, geometry)
    result = banded.spread(*names) if banded else None
    if result is not None:
        return _biased(writer, geometry, result, bias)
    if geometry.is_pointwise and geometry.groups == 1:
        transposed = _transposed(writer, geometry, names[1])
        return _biased(writer, geometry, writer.node("Conv", names[0], transposed), bias)
    inputs = names if bias is None else (*names, writer.emit(bias))
    return writer.node("ConvTranspose", *inputs, **geometry.window, output_padding=geometry.left_over)


def _transposed(writer: GraphWriter, geometry: Geometry, weight: str) -> str:
    """A pointwise weight with its channels swapped.

    As a matrix: as a tensor onnxruntime would move the transposition before the weight's quantization, which then has
    its scales on the inner dimension, where it is slow.
    """
    rows, columns, ones = geometry.narrow_channels, geometry.wide_channels, [1] * len(geometry.kernel)
    matrix = writer.node("Reshape", weight, int64(writer, [rows, columns]))
    swapped = writer.node("Transpose", matrix, perm=[1, 0])
    return writer.node("Reshape", swapped, int64(writer, [columns, rows, *ones]))


def _biased(writer: GraphWriter, geometry: Geometry, tensor: str, bias: fx.Node | None) -> str:
    if bias is None:
        return tensor
    by_channel = writer.node("Reshape", writer.emit(bias), int64(writer, [-1] + [1] * len(geometry.kernel)))
    return writer.node("Add", tensor, by_channel)


def _product(writer: GraphWriter, geometry: Geometry, wide: str, narrow: str) -> str:
    """The weight's gradient: each image's narrow side times its wide side, shifted by each tap; summed over images."""
    g, write = geometry, writer.node
    groups = [g.groups] if g.groups > 1 else []
    inputs, outputs = g.wide_channels // g.groups, g.narrow_channels // g.groups
    shifted, narrow, places = _shifted(writer, geometry, wide, narrow)
    per_tap, per_image = (int64(writer, [-1, *groups, channels, places]) for channels in (inputs, outputs))
    columns = [write("Reshape", tap, per_tap) for tap in shifted]
    if inputs < _MANY and len(columns) > 1:  # all taps at once; of many channels that would take much memory
        columns = [write("Concat", *columns, axis=len(groups) + 1)]
    rows = write("Reshape", narrow, per_image)
    swapped = [*range(len(groups) + 1), len(groups) + 2, len(groups) + 1]
    each = [write("MatMul", rows, write("Transpose", c, perm=swapped)) for c in columns]  # onnxruntime fuses the two
    sums = [write("ReduceSum", product, int64(writer, [0]), keepdims=0) for product in each]
    total = write("Concat", *sums, axis=len(groups) + 1) if len(sums) > 1 else sums[0]
    by_tap = write("Reshape", total, int64(writer, [g.narrow_channels, g.num_taps, inputs]))
    by_channel = write("Transpose", by_tap, perm=[0, 2, 1]) if g.num_taps > 1 else by_tap
    return write("Reshape", by_channel, int64(writer, [g.narrow_channels, inputs, *g.kernel]))


def _depthwise_product(writer: GraphWriter, geometry: Geometry, wide: str, narrow: str) -> str:
    """The same where a channel has one window: element by element, since there is nothing to multiply matrices of."""
    write, channels = writer.node, geometry.wide_channels
    shifted, narrow, places = _shifted(writer, geometry, wide, narrow)
    flat, single = int64(writer, [-1, channels, places]), int64(writer, [channels, 1])
    rows = write("Reshape", narrow, flat)
    products = [write("Mul", write("Reshape", tap, flat), rows) for tap in shifted]
    sums = [write("ReduceSum", write("ReduceSum", p, int64(writer, [2])), int64(writer, [0])) for p in products]
    window = [write("Reshape", total, single) for total in sums]
    taps = write("Concat", *window, axis=1) if len(window) > 1 else window[0]
    return write("Reshape", taps, int64(writer, [channels, 1, *geometry.kernel]))


def _shifted(writer: GraphWriter, geometry: Geometry, wide: str, narrow: str) -> tuple[list[str], str, int]:
    """For each tap, what of the wide side it meets; the narrow side to go with that, and how many places both have."""
    g = geometry
    if g.is_pointwise:
        return [wide], narrow, math.prod(g.narrow)
    taps = list(product(*(range(0, k * d, d) for k, d in zip(g.kernel, g.dilation, strict=True))))
    if len(g.kernel) == 2 and set(g.stride) == {1}:
        return _shifted_flat(writer, geometry, taps, wide, narrow)
    padded = _padded(writer, wide, (0, 0, *g.padding) * 2)
    reach = [s * (n - 1) + 1 for s, n in zip(g.stride, g.narrow, strict=True)]
    ends = ([start + size for start, size in zip(tap, reach, strict=True)] for tap in taps)
    shifted = [_sliced(writer, padded, tap, end, g.stride) for tap, end in zip(taps, ends, strict=True)]
    return shifted, narrow, math.prod(g.narrow)


def _shifted_flat(
    writer: GraphWriter, geometry: Geometry, taps: Sequence[tuple[int, ...]], wide: str, narrow: str
) -> tuple[list[str], str, int]:
    """The same for a stride of 1, with whole planes flat.

    onnxruntime copies a slice row by row, which is slow. In a flat plane a shift is one piece, if the narrow side is
    given rows as long as the padded wide side's, their ends zero. The last tap reaches into one more row.
    """
    g, width = geometry, geometry.wide[1] + 2 * geometry.padding[1]
    places = g.narrow[0] * width
    below = g.padding[0] + (g.kernel[1] > 1)
    padded = _padded(writer, wide, (0, 0, *g.padding, 0, 0, below, g.padding[1]))
    planes = writer.node("Reshape", padded, int64(writer, [0, g.wide_channels, -1]))
    starts = [row * width + column for row, column in taps]
    shifted = [_sliced(writer, planes, [start], [start + places], [1]) for start in starts]
    return shifted, _padded(writer, narrow, (0, 0, 0, 0, 0, 0, 0, width - g.narrow[1])), places


def _padded(writer: GraphWriter, tensor: str, widths: Sequence[int]) -> str:
    return writer.node("Pad", tensor, int64(writer, widths)) if any(widths) else tensor


def _sliced(writer: GraphWriter, tensor: str, starts: Sequence[int], ends: Sequence[int], steps: Sequence[int]) -> str:
    """Of dimension 2, or of 2 and 3."""
    axes = range(2, 2 + len(starts))
    return writer.node("Slice", tensor, *(int64(writer, values) for values in (starts, ends, axes, steps)))
