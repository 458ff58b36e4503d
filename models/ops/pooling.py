"""Pooling over planes, and its gradients. Series are planes of one row: torch makes them so."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import fx

from fl_protocol.errors import ConfigError
from models import gradient_ops
from models.graph_writer import GraphWriter
from models.ops.table import arguments, aten, int64, lowers


@lowers(torch.ops.anabranch.max_pool.default)
def _max_pool(writer: GraphWriter, node: fx.Node) -> str:
    x, *window = node.args
    return writer.node("MaxPool", writer.emit(x), **_window(*window))


@lowers(torch.ops.anabranch.max_pool_gradient.default)
def _max_pool_gradient(writer: GraphWriter, node: fx.Node) -> str:
    gradient, x, kernel, stride, padding, dilation = node.args
    name, slope = writer.emit(x), writer.emit(gradient)
    window = _window(kernel, stride, padding, dilation)
    if list(kernel) == list(stride) and not any(padding) and set(dilation) == {1}:
        return _to_first_largest(writer, name, slope, _sizes(x), _sizes(gradient), window)
    # Windows overlap, so gradients add up. onnxruntime's indices are places in the whole tensor, flat.
    _, places = writer.nodes("MaxPool", 2, name, **window)
    flat = int64(writer, [-1])
    zeros = writer.node("Mul", writer.node("Reshape", name, flat), writer.constant(np.array(0, np.float32)))
    inputs = zeros, *(writer.node("Reshape", tensor, flat) for tensor in (places, slope))
    added = writer.node("ScatterElements", *inputs, axis=0, reduction="add")
    return writer.node("Reshape", added, int64(writer, [-1, *_sizes(x)]))


def _to_first_largest(
    writer: GraphWriter,
    x: str,
    gradient: str,
    wide: tuple[int, ...],
    narrow: tuple[int, ...],
    window: dict[str, Any],
) -> str:
    """The gradient of `x` where windows lie side by side: place after place takes its part of what is left.

    Twice as fast as with the places that `MaxPool` gives, for which onnxruntime has slow code.
    """
    write = writer.node
    down, across = window["kernel_shape"]
    largest = write("MaxPool", x, **window)
    axes, step = int64(writer, [2, 3]), int64(writer, [down, across])
    last = [down * (narrow[1] - 1) + 1, across * (narrow[2] - 1) + 1]
    taken = []
    for place in product(range(down), range(across)):
        ends = [start + reach for start, reach in zip(place, last, strict=True)]
        values = write("Slice", x, int64(writer, place), int64(writer, ends), axes, step)
        is_largest = write("Cast", write("Equal", values, largest), to=TensorProto.FLOAT)
        taken.append(write("Mul", gradient, is_largest))
        gradient = write("Sub", gradient, taken[-1])
    return _woven(writer, taken, wide, narrow, (down, across))


def _woven(
    writer: GraphWriter, places: list[str], wide: tuple[int, ...], narrow: tuple[int, ...], kernel: tuple[int, int]
) -> str:
    """One plane of planes, each of which has the values of one place of all windows."""
    write = writer.node
    down, across = kernel
    single = int64(writer, [-1, narrow[1] * narrow[2], 1])
    single_row = int64(writer, [-1, narrow[1], 1, narrow[2] * across])
    rows = []
    for start in range(0, down * across, across):
        row = [write("Reshape", place, single) for place in places[start : start + across]]
        rows.append(write("Reshape", write("Concat", *row, axis=2), single_row))
    plane = write("Concat", *rows, axis=2)
    covered = [narrow[1] * down, narrow[2] * across]
    whole = write("Reshape", plane, int64(writer, [-1, narrow[0], *covered]))
    beyond = [size - reach for size, reach in zip(wide[1:], covered, strict=True)]
    return write("Pad", whole, int64(writer, [0] * 6 + beyond)) if any(beyond) else whole


@lowers(aten.avg_pool2d.default)
def _avg_pool(writer: GraphWriter, node: fx.Node) -> str:
    x, *settings = arguments(node, None, None, [], [0, 0], False, True, None)
    window, counts_padding = _average_window(x, *settings)
    return writer.node("AveragePool", writer.emit(x), **window, count_include_pad=int(counts_padding))


@lowers(aten.avg_pool2d_backward.default)
def _avg_pool_backward(writer: GraphWriter, node: fx.Node) -> str:
    """Every place of a window gets its share of the gradient: a transposed convolution with that share."""
    gradient, x, *settings = arguments(node, None, None, None, None, None, None, None, None)
    window, counts_padding = _average_window(x, *settings)
    kernel, stride, (top, left, *_) = window["kernel_shape"], window["strides"], window["pads"]
    wide, narrow = _sizes(x), _sizes(gradient)
    counts = np.full(narrow[1:], math.prod(kernel))
    if not counts_padding:
        counts = np.outer(*map(_covered, wide[1:], narrow[1:], kernel, stride, (top, left)))
    uniform = counts.min() == counts.max()
    planes = writer.node("Reshape", writer.emit(gradient), int64(writer, [-1, 1, *narrow[1:]]))
    if not uniform:
        planes = writer.node("Mul", planes, writer.constant((1 / counts).astype(np.float32)))
    share = np.full((1, 1, *kernel), 1 / counts.min() if uniform else 1, np.float32)
    reached = [s * (n - 1) + k - 2 * p for s, n, k, p in zip(stride, narrow[1:], kernel, (top, left), strict=True)]
    beyond = [size - reach for size, reach in zip(wide[1:], reached, strict=True)]
    spread = writer.node("ConvTranspose", planes, writer.constant(share), **window, output_padding=beyond)
    return writer.node("Reshape", spread, int64(writer, [-1, *wide]))


def _covered(wide: int, narrow: int, kernel: int, stride: int, padding: int) -> NDArray[np.int64]:
    """How many elements of one dimension each window has, padding left out."""
    starts = np.arange(narrow) * stride - padding
    return np.minimum(starts + kernel, wide) - np.maximum(starts, 0)


def _average_window(
    x: fx.Node,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> tuple[dict[str, Any], bool]:
    """ONNX's attributes, and whether padding counts. Raises `ConfigError` for what AveragePool cannot."""
    if divisor is not None:
        raise ConfigError("the model pools with divisor_override", "leave it out and multiply the result")
    kernel, stride, padding, _ = gradient_ops.window(x.meta["val"], kernel, stride, padding, [1, 1], ceil_mode)
    window = _window(kernel, stride, padding, [1, 1])
    del window["dilations"]  # AveragePool has none before opset 19
    return window, count_include_pad


def _window(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> dict[str, Any]:
    """ONNX's attributes of a window."""
    return {"kernel_shape": kernel, "strides": stride, "pads": [*padding, *padding], "dilations": dilation}


def _sizes(node: fx.Node) -> tuple[int, ...]:
    """Channels, height and width. Raises `ConfigError` for a tensor without a batch."""
    shape = node.meta["val"].shape
    if len(shape) != 4:
        raise ConfigError(f"the model pools a tensor of {len(shape)} dimensions", "(B, C, H, W), or (B, C, L)")
    return tuple(int(size) for size in shape[1:])
