"""Element by element, where ONNX has the very same operator or nearly so."""

import operator
from typing import Any, Final

import torch
from torch import fx

from fl_protocol.errors import ConfigError
from models.graph_writer import GraphWriter, onnx_type
from models.ops.table import arguments, aten, broadcast, int64, is_number, lowers, operand, operand_dtype, shape

# --- the same operator in ONNX -----------------------------------------------------------------------------
_SAME: Final = {
    aten.abs.default: "Abs",
    aten.ceil.default: "Ceil",
    aten.cos.default: "Cos",
    aten.erf.default: "Erf",
    aten.exp.default: "Exp",
    aten.floor.default: "Floor",
    aten.isnan.default: "IsNaN",
    aten.log.default: "Log",
    aten.neg.default: "Neg",
    aten.reciprocal.default: "Reciprocal",
    aten.round.default: "Round",  # both round half to even
    aten.sign.default: "Sign",
    aten.sin.default: "Sin",
    aten.sqrt.default: "Sqrt",
}
_BINARY: Final = {
    aten.clamp_max.Tensor: "Min",
    aten.clamp_min.Tensor: "Max",
    aten.div.Scalar: "Div",
    aten.div.Tensor: "Div",
    aten.maximum.default: "Max",
    aten.minimum.default: "Min",
    aten.mul.Scalar: "Mul",
    aten.mul.Tensor: "Mul",
    aten.pow.Scalar: "Pow",
    aten.pow.Tensor_Tensor: "Pow",
}
_COMPARISONS: Final = {"eq": "Equal", "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual"}
_COMPARING: Final = {
    getattr(getattr(aten, name), kind): op for name, op in _COMPARISONS.items() for kind in ("Tensor", "Scalar")
}
_LOGICAL: Final = {
    aten.bitwise_and.Tensor: "And",
    aten.bitwise_or.Tensor: "Or",
    aten.bitwise_xor.Tensor: "Xor",
    aten.logical_and.default: "And",
    aten.logical_or.default: "Or",
    aten.logical_xor.default: "Xor",
}


@lowers(*_SAME)
def _same(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node(_SAME[node.target], operand(writer, node.args[0], operand_dtype(node)))


@lowers(*_BINARY)
def _binary(writer: GraphWriter, node: fx.Node) -> str:
    dtype = operand_dtype(node)
    op = "And" if dtype == torch.bool and _BINARY[node.target] == "Mul" else _BINARY[node.target]
    return _flat(writer, op, node, broadcast(writer, node, node.args, dtype))


def _flat(writer: GraphWriter, op: str, node: fx.Node, names: list[str]) -> str:
    """Write an op of two; a number and a tensor like a pointwise convolution's weight, (64, 32, 1, 1), with that flat.

    Where a tensor's last dimension is 1, onnxruntime 1.32 takes each element by itself: ten times the time.
    """
    sizes = node.meta["val"].shape
    flat = [i for i, arg in enumerate(node.args[:2]) if not is_number(arg)]
    if len(flat) != 1 or len(sizes) < 3 or sizes[-1] != 1 or not all(isinstance(size, int) for size in sizes):
        return writer.node(op, *names)
    names[flat[0]] = writer.node("Reshape", names[flat[0]], int64(writer, [-1]))
    return writer.node("Reshape", writer.node(op, *names), int64(writer, sizes))


@lowers(*_COMPARING)
def _compare(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node(_COMPARING[node.target], *broadcast(writer, node, node.args, operand_dtype(node)))


@lowers(aten.ne.Tensor, aten.ne.Scalar)
def _not_equal(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node("Not", writer.node("Equal", *broadcast(writer, node, node.args, operand_dtype(node))))


@lowers(*_LOGICAL)
def _logical(writer: GraphWriter, node: fx.Node) -> str:
    if str(node.target).startswith("aten.bitwise") and node.meta["val"].dtype != torch.bool:
        raise ConfigError(f"the model uses {node.target} on integers", "ONNX has it on booleans only; use // and %")
    return writer.node(_LOGICAL[node.target], *broadcast(writer, node, node.args, torch.bool))


@lowers(aten.logical_not.default, aten.bitwise_not.default)
def _not(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node("Not", operand(writer, node.args[0], torch.bool))


@lowers(aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar)
def _add(writer: GraphWriter, node: fx.Node) -> str:
    dtype = operand_dtype(node)
    left, right = broadcast(writer, node, node.args[:2], dtype)
    alpha = node.kwargs.get("alpha", 1)
    if alpha != 1:
        right = writer.node("Mul", right, operand(writer, alpha, dtype))
    return _flat(writer, "Add" if "add" in str(node.target) else "Sub", node, [left, right])


@lowers(aten.pow.Tensor_Scalar)
def _pow(writer: GraphWriter, node: fx.Node) -> str:
    tensor, exponent = node.args
    dtype = node.meta["val"].dtype
    name = operand(writer, tensor, dtype)
    if exponent == 2:
        return writer.node("Mul", name, name)  # exact, and several times faster than Pow
    if exponent == 3:
        return writer.node("Mul", writer.node("Mul", name, name), name)
    if exponent == 1:
        return name
    if exponent == 0.5:
        return writer.node("Sqrt", name)
    return writer.node("Pow", name, operand(writer, exponent, dtype))


@lowers(aten.rsqrt.default)
def _rsqrt(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node("Reciprocal", writer.node("Sqrt", operand(writer, node.args[0], torch.float32)))


@lowers(aten.log1p.default)
def _log1p(writer: GraphWriter, node: fx.Node) -> str:
    """log(1 + x) * x / (1 + x - 1), which takes back what rounding 1 + x did (Kahan)."""
    (tensor,) = node.args
    if tensor.target is aten.exp.default:  # as in binary cross-entropy and log-sigmoid
        return writer.node("Softplus", writer.emit(tensor.args[0]))
    name, one = operand(writer, tensor, torch.float32), operand(writer, 1, torch.float32)
    more = writer.node("Add", name, one)
    rounded = writer.node("Sub", more, one)
    exact = writer.node("Div", writer.node("Mul", writer.node("Log", more), name), rounded)
    tiny = writer.node("Equal", rounded, operand(writer, 0, torch.float32))
    return writer.node("Where", tiny, name, exact)


@lowers(aten.expm1.default)
def _expm1(writer: GraphWriter, node: fx.Node) -> str:
    """tanh(x / 2) (exp(x) + 1), which is exact near 0 where exp(x) - 1 is not."""
    name = operand(writer, node.args[0], torch.float32)
    half = writer.node("Tanh", writer.node("Mul", name, operand(writer, 0.5, torch.float32)))
    return writer.node("Mul", half, writer.node("Add", writer.node("Exp", name), operand(writer, 1, torch.float32)))


@lowers(aten.remainder.Tensor, aten.remainder.Scalar, aten.fmod.Tensor, aten.fmod.Scalar)
def _remainder(writer: GraphWriter, node: fx.Node) -> str:
    dtype = operand_dtype(node)
    left, right = broadcast(writer, node, node.args, dtype)
    if "fmod" in str(node.target):
        return writer.node("Mod", left, right, fmod=1)
    if not dtype.is_floating_point:
        return writer.node("Mod", left, right)  # of integers: the sign of the divisor, as in torch
    multiple = writer.node("Mul", writer.node("Floor", writer.node("Div", left, right)), right)
    return writer.node("Sub", left, multiple)


@lowers(aten.div.Tensor_mode, aten.div.Scalar_mode, aten.floor_divide.default)
def _divide_to_whole(writer: GraphWriter, node: fx.Node) -> str:
    mode, dtype = node.kwargs.get("rounding_mode", "floor"), operand_dtype(node)
    left, right = broadcast(writer, node, node.args, dtype)
    if dtype.is_floating_point:
        quotient = writer.node("Div", left, right)
        if mode == "floor":
            return writer.node("Floor", quotient)
        return writer.node("Mul", writer.node("Floor", writer.node("Abs", quotient)), writer.node("Sign", quotient))
    if mode == "floor":  # ONNX cuts off, which differs for negative numbers: take the remainder away first
        left = writer.node("Sub", left, writer.node("Mod", left, right))
    return writer.node("Div", left, right)


@lowers(aten.where.self)
def _where(writer: GraphWriter, node: fx.Node) -> str:
    dtype = node.meta["val"].dtype
    names = broadcast(writer, node, node.args, (torch.bool, dtype, dtype))
    return writer.node("Where", *names)


@lowers(aten.alias.default, aten.clone.default, aten.detach.default, aten.lift_fresh_copy.default)
def _through(writer: GraphWriter, node: fx.Node) -> str:
    return writer.emit(node.args[0])


@lowers(aten.clamp.default, aten.clamp.Tensor, aten.hardtanh.default, aten.relu.default)
def _clamp(writer: GraphWriter, node: fx.Node) -> str:
    tensor, low, high = arguments(node, None, None, None)
    if node.target is aten.hardtanh.default:
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    dtype = node.meta["val"].dtype
    name = operand(writer, tensor, dtype)
    if node.target is aten.relu.default:
        rectified = tensor.target is torch.ops.anabranch.nonnegative.default  # quantizing has done it already
        return name if rectified else writer.node("Relu", name)
    if any(isinstance(bound, fx.Node) for bound in (low, high)):
        name = name if low is None else writer.node("Max", name, operand(writer, low, dtype))
        return name if high is None else writer.node("Min", name, operand(writer, high, dtype))
    if high is None:
        return writer.node("Max", name, operand(writer, low, dtype))
    bounds = ["" if bound is None else operand(writer, bound, dtype) for bound in (low, high)]
    return writer.node("Clip", name, *bounds)


@lowers(aten._to_copy.default)  # noqa: SLF001
def _cast(writer: GraphWriter, node: fx.Node) -> str:
    return operand(writer, node.args[0], node.meta["val"].dtype)


@lowers(aten.copy.default)
def _copy(writer: GraphWriter, node: fx.Node) -> str:
    """What is written over a whole tensor."""
    _, source = node.args[:2]
    name = operand(writer, source, node.meta["val"].dtype)
    sizes = node.meta["val"].shape
    if [str(s) for s in source.meta["val"].shape] == [str(s) for s in sizes]:
        return name
    return writer.node("Expand", name, writer.node("Shape", writer.emit(node.args[0])))


# --- filled with one number ----------------------------------------------------------------------------------
@lowers(aten.full_like.default)
def _full_like(writer: GraphWriter, node: fx.Node) -> str:
    tensor, value = node.args
    filling = operand(writer, value, node.meta["val"].dtype)
    if not tensor.meta["val"].dim():
        return filling
    return writer.node("Expand", filling, writer.node("Shape", writer.emit(tensor)))


@lowers(aten.full.default)
def _full(writer: GraphWriter, node: fx.Node) -> str:
    sizes, value = node.args
    filling = operand(writer, value, node.meta["val"].dtype)
    return writer.node("Expand", filling, shape(writer, sizes)) if sizes else filling


@lowers(aten.scalar_tensor.default)
def _scalar(writer: GraphWriter, node: fx.Node) -> str:
    return operand(writer, node.args[0], node.meta["val"].dtype)


@lowers(aten.empty.memory_format, aten.empty_permuted.default, aten.empty_like.default)
def _empty(writer: GraphWriter, node: fx.Node) -> str:
    """Zeros: nobody may read them before something is written there."""
    zero = operand(writer, 0, node.meta["val"].dtype)
    if isinstance(node.args[0], fx.Node):
        return writer.node("Expand", zero, writer.node("Shape", writer.emit(node.args[0])))
    return writer.node("Expand", zero, shape(writer, node.args[0]))


@lowers(aten.arange.start_step)
def _arange(writer: GraphWriter, node: fx.Node) -> str:
    start, end, step = arguments(node, None, None, 1)
    name = writer.node("Range", *(operand(writer, part, torch.int64) for part in (start, end, step)))
    dtype = node.meta["val"].dtype
    return name if dtype == torch.int64 else writer.node("Cast", name, to=onnx_type(dtype))


# --- sizes: numbers that are computed from the batch size -------------------------------------------------------
_OF_SIZES: Final[dict[Any, str]] = {
    operator.add: "Add",
    operator.floordiv: "Div",  # sizes are not negative
    operator.mul: "Mul",
    operator.sub: "Sub",
    operator.truediv: "Div",
}


@lowers(*_OF_SIZES)
def _of_sizes(writer: GraphWriter, node: fx.Node) -> str:
    whole = node.target is not operator.truediv and not isinstance(node.meta["val"], torch.SymFloat)
    dtype = torch.int64 if whole else torch.float32
    return writer.node(_OF_SIZES[node.target], *(operand(writer, a, dtype) for a in node.args))


@lowers(operator.neg)
def _negative_size(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node("Neg", writer.emit(node.args[0]))


@lowers(torch.sym_float)
def _size_as_float(writer: GraphWriter, node: fx.Node) -> str:
    return operand(writer, node.args[0], torch.float32)


@lowers(torch.sym_int)
def _size_as_int(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node("Cast", writer.emit(node.args[0]), to=onnx_type(torch.int64))
