"""Matrix products, and what networks do after them: activations, softmax, normalization."""

from typing import Final

import numpy as np
from torch import fx

from models.graph_writer import GraphWriter
from models.ops.table import arguments, aten, broadcast, int64, lowers, operand


# --- products --------------------------------------------------------------------------------------------------
@lowers(aten.mm.default, aten.addmm.default)
def _mm(writer: GraphWriter, node: fx.Node) -> str:
    *bias, left, right = node.args
    (left, trans_left), (right, trans_right) = _untransposed(left), _untransposed(right)
    inputs = [writer.emit(a) for a in (left, right, *bias)]
    if len(inputs) == 2 and not trans_left and not trans_right:
        return writer.node("MatMul", *inputs)
    factors = {name: float(factor) for name, factor in node.kwargs.items()}  # alpha and beta mean the same to both
    return writer.node("Gemm", *inputs, transA=int(trans_left), transB=int(trans_right), **factors)


def _untransposed(node: fx.Node) -> tuple[fx.Node, bool]:
    """The matrix behind a transposition, and whether there is one left to do: Gemm transposes as it goes."""
    transposed = False
    while node.target is aten.permute.default and list(node.args[1]) == [1, 0]:
        node, transposed = node.args[0], not transposed
    return node, transposed


@lowers(aten.bmm.default)
def _bmm(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node("MatMul", *(writer.emit(a) for a in node.args))


@lowers(aten.baddbmm.default)
def _baddbmm(writer: GraphWriter, node: fx.Node) -> str:
    dtype = node.meta["val"].dtype
    added, product = node.args[0], writer.node("MatMul", *(writer.emit(a) for a in node.args[1:]))
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    if alpha != 1:
        product = writer.node("Mul", product, operand(writer, alpha, dtype))
    if beta == 0:  # then torch does not even read what would be added
        return product
    name = writer.emit(added)
    if beta != 1:
        name = writer.node("Mul", name, operand(writer, beta, dtype))
    return writer.node("Add", name, product)


# --- activations -------------------------------------------------------------------------------------------------
_SAME: Final = {
    aten.hardswish.default: "HardSwish",
    aten.sigmoid.default: "Sigmoid",
    aten.tanh.default: "Tanh",
}


@lowers(*_SAME)
def _same(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node(_SAME[node.target], operand(writer, node.args[0], node.meta["val"].dtype))


@lowers(aten.hardsigmoid.default)
def _hard_sigmoid(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node("HardSigmoid", writer.emit(node.args[0]), alpha=1 / 6, beta=0.5)


@lowers(aten.leaky_relu.default)
def _leaky_relu(writer: GraphWriter, node: fx.Node) -> str:
    tensor, slope = arguments(node, None, 0.01)
    return writer.node("LeakyRelu", writer.emit(tensor), alpha=float(slope))


@lowers(aten.elu.default)
def _elu(writer: GraphWriter, node: fx.Node) -> str:
    """scale * (x if x > 0 else alpha (exp(x * input_scale) - 1)); ELU, SELU and CELU are cases of it."""
    tensor, alpha, scale, input_scale = arguments(node, None, 1, 1, 1)
    dtype = node.meta["val"].dtype
    name = writer.emit(tensor)
    if input_scale != 1:  # for x > 0 ONNX scales it as well, so that is undone in the end
        scaled = writer.node("Mul", name, operand(writer, input_scale, dtype))
        low = writer.node("Mul", writer.node("Elu", scaled, alpha=float(alpha)), operand(writer, scale, dtype))
        high = writer.node("Mul", name, operand(writer, scale, dtype))
        return writer.node("Where", writer.node("Greater", name, operand(writer, 0, dtype)), high, low)
    name = writer.node("Elu", name, alpha=float(alpha))
    return name if scale == 1 else writer.node("Mul", name, operand(writer, scale, dtype))


@lowers(aten.softplus.default)
def _softplus(writer: GraphWriter, node: fx.Node) -> str:
    """Without torch's threshold: above 20 the formula is x to float32's last bit."""
    tensor, beta, _ = arguments(node, None, 1, 20)
    dtype = node.meta["val"].dtype
    if beta == 1:
        return writer.node("Softplus", writer.emit(tensor))
    factor = operand(writer, beta, dtype)
    return writer.node("Div", writer.node("Softplus", writer.node("Mul", writer.emit(tensor), factor)), factor)


@lowers(aten.threshold_backward.default)
def _relu_backward(writer: GraphWriter, node: fx.Node) -> str:
    gradient, output, threshold = node.args
    dtype = node.meta["val"].dtype
    if threshold == 0:  # `Where` branches at each element, and takes 5 to 15 times as long (onnxruntime 1.32)
        slope, name = broadcast(writer, node, (gradient, output), dtype)
        return writer.node("Mul", slope, writer.node("HardSigmoid", name, alpha=3e38, beta=0.0))  # 1 above 0, else 0
    passed = writer.node("Greater", writer.emit(output), operand(writer, threshold, dtype))
    return writer.node("Where", passed, writer.emit(gradient), operand(writer, 0, dtype))


@lowers(aten._log_softmax.default, aten._softmax.default)  # noqa: SLF001
def _softmax(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim, _ = node.args
    op = "LogSoftmax" if "log" in str(node.target) else "Softmax"
    return writer.node(op, operand(writer, tensor, node.meta["val"].dtype), axis=dim)


# --- normalization -------------------------------------------------------------------------------------------------
@lowers(aten.native_layer_norm.default)
def _layer_norm(writer: GraphWriter, node: fx.Node) -> tuple[str, ...]:
    """Output, mean and 1 / deviation: ONNX has all three, and works in two passes as torch does."""
    tensor, normalized, weight, bias, epsilon = node.args
    if weight is None:  # onnxruntime makes a constant of this when it loads the graph, so the file stays small
        sizes = int64(writer, [int(size) for size in normalized])
        scale = writer.node("Expand", writer.constant(np.ones(1, np.float32)), sizes)
    else:
        scale = writer.emit(weight)
    inputs = [writer.emit(tensor), scale]
    if bias is not None:
        inputs.append(writer.emit(bias))
    return writer.nodes("LayerNormalization", 3, *inputs, axis=-len(normalized), epsilon=float(epsilon))


@lowers(aten._native_batch_norm_legit_no_training.default)  # noqa: SLF001
def _batch_norm(writer: GraphWriter, node: fx.Node) -> tuple[str, ...]:
    """With the running moments. torch returns the batch's moments besides: here they are empty, and nobody's."""
    tensor, weight, bias, mean, var, _, epsilon = node.args
    channels = int(tensor.meta["val"].shape[1])
    scale = writer.constant(np.ones(channels, np.float32)) if weight is None else writer.emit(weight)
    shift = writer.constant(np.zeros(channels, np.float32)) if bias is None else writer.emit(bias)
    inputs = (writer.emit(tensor), scale, shift, writer.emit(mean), writer.emit(var))
    empty = writer.constant(np.zeros(0, np.float32))
    return writer.node("BatchNormalization", *inputs, epsilon=float(epsilon)), empty, empty
