"""Values picked by index, and put back where they came from.

Sums go through ScatterElements. ScatterND would be faster, but its additions race as soon as onnxruntime has two
threads: sums come out wrong (measured with 1.32).
"""

import numpy as np
from torch import fx

from models.graph_writer import GraphWriter
from models.ops.table import aten, broadcast, dimensions, lowers, operand


@lowers(aten.embedding.default)
def _embedding(writer: GraphWriter, node: fx.Node) -> str:
    table, indices = node.args[:2]
    return writer.node("Gather", writer.emit(table), writer.emit(indices), axis=0)


@lowers(aten.index_select.default)
def _index_select(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim, index = node.args
    return writer.node("Gather", writer.emit(tensor), writer.emit(index), axis=dimensions(tensor, dim)[0])


@lowers(aten.index.Tensor)
def _index(writer: GraphWriter, node: fx.Node) -> str:
    """By one tensor; several are taken apart before (models/decompositions.py)."""
    tensor, indices = node.args
    ((axis, index),) = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    return writer.node("Gather", writer.emit(tensor), writer.emit(index), axis=axis)


@lowers(aten.gather.default)
def _gather(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim, index = node.args[:3]
    return writer.node("GatherElements", writer.emit(tensor), writer.emit(index), axis=dimensions(tensor, dim)[0])


@lowers(aten.scatter.src, aten.scatter.value, aten.scatter_add.default)
def _scatter(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim, index, source = node.args
    dtype = node.meta["val"].dtype
    if node.target is aten.scatter.value:
        values = writer.node("Expand", operand(writer, source, dtype), writer.node("Shape", writer.emit(index)))
    else:
        values = operand(writer, source, dtype)
    how = {"reduction": "add"} if node.target is aten.scatter_add.default else {}
    inputs = (operand(writer, tensor, dtype), writer.emit(index), values)
    return writer.node("ScatterElements", *inputs, axis=dimensions(tensor, dim)[0], **how)


@lowers(aten.unfold.default)
def _unfold(writer: GraphWriter, node: fx.Node) -> str:
    """Windows over a dimension, which come last."""
    tensor, dim, size, step = node.args
    (axis,) = dimensions(tensor, dim)
    starts = np.arange(0, int(tensor.meta["val"].shape[axis]) - size + 1, step)
    windows = writer.constant(starts[:, None] + np.arange(size))
    name = writer.node("Gather", writer.emit(tensor), windows, axis=axis)
    rank = tensor.meta["val"].dim()
    order = [i for i in range(rank + 1) if i != axis + 1]
    return name if axis == rank - 1 else writer.node("Transpose", name, perm=[*order, axis + 1])


@lowers(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(writer: GraphWriter, node: fx.Node) -> str:
    tensor, mask, value = node.args
    dtype = node.meta["val"].dtype
    mask_name, other, name = broadcast(writer, node, (mask, value, tensor), (mask.meta["val"].dtype, dtype, dtype))
    return writer.node("Where", mask_name, other, name)
