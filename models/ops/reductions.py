"""Sums, means and extremes over dimensions; running sums."""

from typing import Final

import torch
from torch import fx

from fl_protocol.errors import ConfigError
from models.graph_writer import GraphWriter, onnx_type
from models.ops.table import arguments, aten, dimensions, int64, lowers, operand

REDUCTIONS: Final = {
    aten.amax.default: "ReduceMax",
    aten.amin.default: "ReduceMin",
    aten.max.default: "ReduceMax",
    aten.mean.default: "ReduceMean",
    aten.mean.dim: "ReduceMean",
    aten.min.default: "ReduceMin",
    aten.prod.default: "ReduceProd",
    aten.prod.dim_int: "ReduceProd",
    aten.sum.default: "ReduceSum",
    aten.sum.dim_IntList: "ReduceSum",
}


@lowers(*REDUCTIONS)
def _reduce(writer: GraphWriter, node: fx.Node) -> str:
    return reduction(writer, node, arguments(node, None, None, False)[2])


def reduction(writer: GraphWriter, node: fx.Node, keep: bool) -> str:
    """Reduce, and leave the reduced dimensions there, of size 1, or not: whatever the node itself says."""
    tensor, dims, _ = arguments(node, None, None, False)
    op, name = REDUCTIONS[node.target], operand(writer, tensor, node.meta["val"].dtype)
    axes = dimensions(tensor, dims)
    sizes = tensor.meta["val"].shape
    if all(isinstance(sizes[a], int) and sizes[a] == 1 for a in axes):  # nothing to sum up: at most a shape changes
        return name if keep or not axes else writer.node("Squeeze", name, int64(writer, axes))
    if op == "ReduceSum":  # the one reduction whose axes became an input in opset 13
        return writer.node(op, name, int64(writer, axes), keepdims=int(keep))
    return writer.node(op, name, axes=axes, keepdims=int(keep))


@lowers(aten.argmax.default, aten.argmin.default)
def _argmax(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim, keep = arguments(node, None, None, False)
    op = "ArgMax" if node.target is aten.argmax.default else "ArgMin"
    name = writer.emit(tensor)
    if dim is None:
        name, dim, keep = writer.node("Reshape", name, int64(writer, [-1])), 0, False
    return writer.node(op, name, axis=dim % max(tensor.meta["val"].dim(), 1), keepdims=int(keep))


@lowers(aten.max.dim, aten.min.dim)
def _max_of_dimension(writer: GraphWriter, node: fx.Node) -> tuple[str, ...]:
    tensor, dim, keep = arguments(node, None, None, False)
    word, name, (axis,) = "Max" if node.target is aten.max.dim else "Min", writer.emit(tensor), dimensions(tensor, dim)
    return (
        writer.node(f"Reduce{word}", name, axes=[axis], keepdims=int(keep)),
        writer.node(f"Arg{word}", name, axis=axis, keepdims=int(keep)),
    )


@lowers(aten.any.default, aten.any.dim, aten.any.dims)
def _any(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dims, keep = arguments(node, None, None, False)
    one_if_true = writer.node("Cast", operand(writer, tensor, torch.bool), to=onnx_type(torch.int32))
    some = writer.node("ReduceMax", one_if_true, axes=dimensions(tensor, dims), keepdims=int(keep))
    return writer.node("Cast", some, to=onnx_type(torch.bool))


@lowers(aten.linalg_vector_norm.default)
def _norm(writer: GraphWriter, node: fx.Node) -> str:
    tensor, order, dims, keep = arguments(node, None, 2, None, False)
    if order not in (1, 2):
        raise ConfigError(
            f"the model takes a norm of order {order}", "norms of order 1 and 2 there are; or x.abs().amax()"
        )
    axes = dimensions(tensor, dims)
    return writer.node(f"ReduceL{int(order)}", writer.emit(tensor), axes=axes, keepdims=int(keep))


@lowers(aten.cumsum.default)
def _cumsum(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim = node.args
    name = operand(writer, tensor, node.meta["val"].dtype)
    return writer.node("CumSum", name, operand(writer, dimensions(tensor, dim)[0], torch.int64))
