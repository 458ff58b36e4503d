"""Sums, means and extremes over dimensions."""

from typing import Final

from torch import fx

from models.graph_writer import GraphWriter
from models.ops.table import arguments, aten, dimensions, int64, lowers, operand

_REDUCTIONS: Final = {
    aten.amax.default: "ReduceMax",
    aten.amin.default: "ReduceMin",
    aten.mean.default: "ReduceMean",
    aten.mean.dim: "ReduceMean",
    aten.sum.dim_IntList: "ReduceSum",
}


@lowers(*_REDUCTIONS)
def _reduce(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dims, keep = arguments(node, None, None, False)
    op, name = _REDUCTIONS[node.target], operand(writer, tensor, node.meta["val"].dtype)
    axes = dimensions(tensor, dims)
    if op == "ReduceSum":  # the one reduction whose axes became an input in opset 13
        return writer.node(op, name, int64(writer, axes), keepdims=int(keep))
    return writer.node(op, name, axes=axes, keepdims=int(keep))


@lowers(aten.argmax.default)
def _argmax(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim, keep = arguments(node, None, None, False)
    return writer.node("ArgMax", writer.emit(tensor), axis=dim % tensor.meta["val"].dim(), keepdims=int(keep))
