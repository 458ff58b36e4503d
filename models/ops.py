"""The table: aten op -> plain ONNX nodes of opset 17.

One function an op, or a line in `_SAME` or `_BINARY` where ONNX has the very same operator. A shape may hold one
symbol, the batch size.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from onnx import helper
from torch import fx

import models.quantization  # noqa: F401  registers the two ops at the end of the table
from fl_protocol.errors import ConfigError
from models.graph_writer import GraphWriter, Lowering, onnx_type

aten = torch.ops.aten
OPS: Final[dict[Any, Lowering]] = {}


def _lowers(*ops: Any) -> Callable[[Lowering], Lowering]:
    def register(lowering: Lowering) -> Lowering:
        OPS.update(dict.fromkeys(ops, lowering))
        return lowering

    return register


def _args(node: fx.Node, *defaults: Any) -> tuple[Any, ...]:
    """A node's arguments, all of them: torch leaves out the last ones that have their default."""
    return (*node.args, *defaults[len(node.args) :])


def _numpy(dtype: torch.dtype) -> np.dtype[Any]:
    numpy_dtype: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(onnx_type(dtype))
    return numpy_dtype


def _operand(writer: GraphWriter, value: Any, dtype: torch.dtype) -> str:
    """A traced tensor, a traced size or a Python number, as an ONNX value of `dtype`."""
    if isinstance(value, fx.Node):
        name = writer.emit(value)
        actual = value.meta["val"].dtype if isinstance(value.meta["val"], torch.Tensor) else torch.int64
        return name if actual == dtype else writer.node("Cast", name, to=onnx_type(dtype))
    return writer.constant(np.array(value, _numpy(dtype)))


def _operand_dtype(node: fx.Node) -> torch.dtype:
    """What torch computes a binary op in: its tensors' common dtype (a Python number adapts to them)."""
    tensors = [a.meta["val"] for a in node.args if isinstance(a, fx.Node) and isinstance(a.meta["val"], torch.Tensor)]
    dtype: torch.dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    result: torch.dtype = node.meta["val"].dtype
    return dtype if result == torch.bool else result


def _dims(node: fx.Node, dims: Any) -> list[int]:
    rank = node.meta["val"].dim()
    dims = [dims] if isinstance(dims, int) else list(dims if dims else range(rank))
    return [d % rank for d in dims]


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    # Compared as text: comparing symbols would make torch assume that they are equal.
    return [str(s) for s in a.meta["val"].shape] == [str(s) for s in b.meta["val"].shape]


def _int64(writer: GraphWriter, values: Sequence[int]) -> str:
    return writer.constant(np.array(values, np.int64))


def _sizes(writer: GraphWriter, sizes: Sequence[Any]) -> str:
    """A shape as an ONNX value; symbols are computed from the graph's inputs."""
    if all(isinstance(s, int) for s in sizes):
        return _int64(writer, sizes)
    parts = [
        writer.node("Unsqueeze", writer.emit(s), _int64(writer, [0])) if isinstance(s, fx.Node) else _int64(writer, [s])
        for s in sizes
    ]
    return parts[0] if len(parts) == 1 else writer.node("Concat", *parts, axis=0)


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


@_lowers(*_SAME)
def _same(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node(_SAME[node.target], *(writer.emit(a) for a in node.args))


@_lowers(*_BINARY)
def _binary(writer: GraphWriter, node: fx.Node) -> str:
    dtype = _operand_dtype(node)
    return writer.node(_BINARY[node.target], *(_operand(writer, a, dtype) for a in node.args))


@_lowers(aten.add.Tensor, aten.sub.Tensor)
def _add(writer: GraphWriter, node: fx.Node) -> str:
    dtype = _operand_dtype(node)
    left, right = (_operand(writer, a, dtype) for a in node.args)
    alpha = node.kwargs.get("alpha", 1)
    if alpha != 1:
        right = writer.node("Mul", right, _operand(writer, alpha, dtype))
    return writer.node("Add" if node.target is aten.add.Tensor else "Sub", left, right)


@_lowers(aten.pow.Tensor_Scalar)
def _pow(writer: GraphWriter, node: fx.Node) -> str:
    tensor, exponent = node.args
    name = writer.emit(tensor)
    if exponent == 2:
        return writer.node("Mul", name, name)  # exact, and several times faster than Pow
    return writer.node("Pow", name, _operand(writer, exponent, tensor.meta["val"].dtype))


@_lowers(aten.alias.default, aten.clone.default)
def _through(writer: GraphWriter, node: fx.Node) -> str:
    return writer.emit(node.args[0])


# --- sizes, the only numbers that are not known when the graph is written ---------------------------------
@_lowers(aten.sym_size.int)
def _sym_size(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim = node.args
    return writer.node("Gather", writer.node("Shape", writer.emit(tensor)), writer.constant(np.array(dim)), axis=0)


@_lowers(aten.sym_numel.default)
def _sym_numel(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node("Size", writer.emit(node.args[0]))


# --- shapes --------------------------------------------------------------------------------------------------
@_lowers(aten.view.default)
def _view(writer: GraphWriter, node: fx.Node) -> str:
    tensor, sizes = node.args
    if _same_shape(tensor, node):
        return writer.emit(tensor)
    symbols = [s for s in sizes if isinstance(s, fx.Node)]
    if len(symbols) > 1:
        raise ConfigError(f"the model reshapes to {sizes}: two free dimensions", "only the batch may be free")
    shape = [-1 if isinstance(s, fx.Node) else s for s in sizes]  # whatever the symbol is, it is what remains
    return writer.node("Reshape", writer.emit(tensor), _int64(writer, shape))


@_lowers(aten.permute.default)
def _permute(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dims = node.args
    if tensor.target is aten.permute.default:  # autograd likes to transpose twice
        inner = tensor.args[1]
        if [inner[d] for d in dims] == list(range(len(dims))):
            return writer.emit(tensor.args[0])
    return writer.node("Transpose", writer.emit(tensor), perm=_dims(tensor, dims))


@_lowers(aten.unsqueeze.default)
def _unsqueeze(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim = node.args
    return writer.node("Unsqueeze", writer.emit(tensor), _int64(writer, _dims(node, dim)))


@_lowers(aten.expand.default)
def _expand(writer: GraphWriter, node: fx.Node) -> str:
    tensor, sizes = node.args
    return writer.node("Expand", writer.emit(tensor), _sizes(writer, [1 if s == -1 else s for s in sizes]))


@_lowers(aten.cat.default)
def _cat(writer: GraphWriter, node: fx.Node) -> str:
    tensors, dim = _args(node, None, 0)
    return writer.node("Concat", *(writer.emit(t) for t in tensors), axis=_dims(node, dim)[0])


@_lowers(aten.slice.Tensor)
def _slice(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim, start, end, step = _args(node, None, None, None, None, 1)
    if _same_shape(tensor, node):  # the whole of it: torch slices every dimension that is written as `:`
        return writer.emit(tensor)
    bounds = [[start or 0], [2**63 - 1 if end is None else end], _dims(tensor, dim or 0), [step]]
    return writer.node("Slice", writer.emit(tensor), *(_int64(writer, b) for b in bounds))


@_lowers(aten.slice_backward.default)
def _slice_backward(writer: GraphWriter, node: fx.Node) -> str:
    """The gradient where the slice was, zeros around it."""
    gradient, sizes, dim, start, end, step = node.args
    if _same_shape(gradient, node):
        return writer.emit(gradient)
    (axis,) = _dims(node, dim)
    size = sizes[axis]
    if step != 1 or not isinstance(size, int):
        raise ConfigError(
            f"the model slices dimension {axis} with step {step}, and needs its gradient",
            "slice another dimension than the batch, with step 1; reshape to take every n-th",
        )
    start, end, _ = slice(start, end).indices(size)
    rank = node.meta["val"].dim()
    before, after = [0] * rank, [0] * rank
    before[axis], after[axis] = start, size - end
    return writer.node("Pad", writer.emit(gradient), _int64(writer, before + after))


@_lowers(aten._to_copy.default)  # noqa: SLF001
def _cast(writer: GraphWriter, node: fx.Node) -> str:
    return _operand(writer, node.args[0], node.meta["val"].dtype)


@_lowers(aten.full_like.default)
def _full_like(writer: GraphWriter, node: fx.Node) -> str:
    tensor, value = node.args
    filling = _operand(writer, value, node.meta["val"].dtype)
    return (
        writer.node("Expand", filling, writer.node("Shape", writer.emit(tensor)))
        if tensor.meta["val"].dim()
        else filling
    )


@_lowers(aten.arange.start_step)
def _arange(writer: GraphWriter, node: fx.Node) -> str:
    return writer.constant(np.arange(*node.args).astype(_numpy(node.meta["val"].dtype)))


# --- reductions ----------------------------------------------------------------------------------------------
_REDUCTIONS: Final = {
    aten.amax.default: "ReduceMax",
    aten.amin.default: "ReduceMin",
    aten.mean.default: "ReduceMean",
    aten.mean.dim: "ReduceMean",
    aten.sum.dim_IntList: "ReduceSum",
}


@_lowers(*_REDUCTIONS)
def _reduce(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dims, keep = _args(node, None, None, False)
    op, name = _REDUCTIONS[node.target], _operand(writer, tensor, node.meta["val"].dtype)
    axes = _dims(tensor, dims)
    if op == "ReduceSum":  # the one reduction whose axes became an input in opset 13
        return writer.node(op, name, _int64(writer, axes), keepdims=int(keep))
    return writer.node(op, name, axes=axes, keepdims=int(keep))


@_lowers(aten.argmax.default)
def _argmax(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim, keep = _args(node, None, None, False)
    return writer.node("ArgMax", writer.emit(tensor), axis=dim % tensor.meta["val"].dim(), keepdims=int(keep))


# --- networks --------------------------------------------------------------------------------------------------
@_lowers(aten.mm.default, aten.addmm.default)
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


@_lowers(aten._log_softmax.default)  # noqa: SLF001
def _log_softmax(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim, _ = node.args
    return writer.node("LogSoftmax", writer.emit(tensor), axis=dim)


@_lowers(aten.threshold_backward.default)
def _relu_backward(writer: GraphWriter, node: fx.Node) -> str:
    gradient, output, threshold = node.args
    dtype = node.meta["val"].dtype
    passed = writer.node("Greater", writer.emit(output), _operand(writer, threshold, dtype))
    return writer.node("Where", passed, writer.emit(gradient), _operand(writer, 0, dtype))


@_lowers(aten.clamp.default)
def _clamp(writer: GraphWriter, node: fx.Node) -> str:
    tensor, low, high = _args(node, None, None, None)
    dtype = tensor.meta["val"].dtype
    name = writer.emit(tensor)
    if high is None:
        return writer.node("Max", name, _operand(writer, low, dtype))
    bounds = ["" if bound is None else _operand(writer, bound, dtype) for bound in (low, high)]
    return writer.node("Clip", name, *bounds)


# --- quantization: the markers of quantization.py, which the int8 graph keeps ------------------------------
@_lowers(torch.ops.anabranch.quantize.default)
def _quantize(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node("QuantizeLinear", *(writer.emit(a) for a in node.args))


@_lowers(torch.ops.anabranch.dequantize.default)
def _dequantize(writer: GraphWriter, node: fx.Node) -> str:
    inputs = [writer.emit(a) for a in node.args]
    per_channel = node.args[1].meta["val"].dim() > 0
    return writer.node("DequantizeLinear", *inputs, **({"axis": 0} if per_channel else {}))
