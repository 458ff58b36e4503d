"""Element by element, where ONNX has the very same operator or nearly so."""

from typing import Final

import numpy as np
from torch import fx

from models.graph_writer import GraphWriter
from models.ops.table import arguments, aten, lowers, numpy_dtype, operand, operand_dtype

# --- the same operator in ONNX -----------------------------------------------------------------------------
_SAME: Final = {
    aten.abs.default: "Abs",
    aten.exp.default: "Exp",
    aten.log.default: "Log",
    aten.neg.default: "Neg",
    aten.relu.default: "Relu",
    aten.round.default: "Round",  # both round half to even
}
_BINARY: Final = {
    aten.div.Scalar: "Div",
    aten.div.Tensor: "Div",
    aten.eq.Tensor: "Equal",
    aten.eq.Scalar: "Equal",
    aten.maximum.default: "Max",
    aten.minimum.default: "Min",
    aten.mul.Scalar: "Mul",
    aten.mul.Tensor: "Mul",
}


@lowers(*_SAME)
def _same(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node(_SAME[node.target], *(writer.emit(a) for a in node.args))


@lowers(*_BINARY)
def _binary(writer: GraphWriter, node: fx.Node) -> str:
    dtype = operand_dtype(node)
    return writer.node(_BINARY[node.target], *(operand(writer, a, dtype) for a in node.args))


@lowers(aten.add.Tensor, aten.sub.Tensor)
def _add(writer: GraphWriter, node: fx.Node) -> str:
    dtype = operand_dtype(node)
    left, right = (operand(writer, a, dtype) for a in node.args)
    alpha = node.kwargs.get("alpha", 1)
    if alpha != 1:
        right = writer.node("Mul", right, operand(writer, alpha, dtype))
    return writer.node("Add" if node.target is aten.add.Tensor else "Sub", left, right)


@lowers(aten.pow.Tensor_Scalar)
def _pow(writer: GraphWriter, node: fx.Node) -> str:
    tensor, exponent = node.args
    name = writer.emit(tensor)
    if exponent == 2:
        return writer.node("Mul", name, name)  # exact, and several times faster than Pow
    return writer.node("Pow", name, operand(writer, exponent, tensor.meta["val"].dtype))


@lowers(aten.alias.default, aten.clone.default)
def _through(writer: GraphWriter, node: fx.Node) -> str:
    return writer.emit(node.args[0])


@lowers(aten.clamp.default)
def _clamp(writer: GraphWriter, node: fx.Node) -> str:
    tensor, low, high = arguments(node, None, None, None)
    dtype = tensor.meta["val"].dtype
    name = writer.emit(tensor)
    if high is None:
        return writer.node("Max", name, operand(writer, low, dtype))
    bounds = ["" if bound is None else operand(writer, bound, dtype) for bound in (low, high)]
    return writer.node("Clip", name, *bounds)


@lowers(aten._to_copy.default)  # noqa: SLF001
def _cast(writer: GraphWriter, node: fx.Node) -> str:
    return operand(writer, node.args[0], node.meta["val"].dtype)


@lowers(aten.full_like.default)
def _full_like(writer: GraphWriter, node: fx.Node) -> str:
    tensor, value = node.args
    filling = operand(writer, value, node.meta["val"].dtype)
    return (
        writer.node("Expand", filling, writer.node("Shape", writer.emit(tensor)))
        if tensor.meta["val"].dim()
        else filling
    )


@lowers(aten.arange.start_step)
def _arange(writer: GraphWriter, node: fx.Node) -> str:
    return writer.constant(np.arange(*node.args).astype(numpy_dtype(node.meta["val"].dtype)))
