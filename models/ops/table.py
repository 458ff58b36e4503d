"""What every lowering is written with: the table, and a traced node's arguments as ONNX values.

A shape may hold one symbol, the batch size.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from onnx import helper
from torch import fx

from models.graph_writer import GraphWriter, Lowering, onnx_type

aten = torch.ops.aten
OPS: Final[dict[Any, Lowering]] = {}


def lowers(*ops: Any) -> Callable[[Lowering], Lowering]:
    """Enter the function below for these aten ops."""

    def register(lowering: Lowering) -> Lowering:
        OPS.update(dict.fromkeys(ops, lowering))
        return lowering

    return register


def arguments(node: fx.Node, *defaults: Any) -> tuple[Any, ...]:
    """A node's arguments, all of them: torch leaves out the last ones that have their default."""
    return (*node.args, *defaults[len(node.args) :])


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The numpy dtype of a torch one. Raises `ConfigError` as `onnx_type` does."""
    result: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(onnx_type(dtype))
    return result


def operand(writer: GraphWriter, value: Any, dtype: torch.dtype) -> str:
    """A traced tensor, a traced size, a `Scalar` or a Python number, as an ONNX value of `dtype`."""
    if isinstance(value, fx.Node | Scalar):
        name, actual = value if isinstance(value, Scalar) else (writer.emit(value), _dtype(value.meta["val"]))
        return name if actual == dtype else writer.node("Cast", name, to=onnx_type(dtype))
    return writer.constant(np.array(value, numpy_dtype(dtype)))


def operand_dtype(node: fx.Node) -> torch.dtype:
    """What torch computes an elementwise op in: its result's dtype; for a comparison, what its operands become."""
    result: torch.dtype = node.meta["val"].dtype
    if result != torch.bool:
        return result
    values = [a.meta["val"] if isinstance(a, fx.Node) else a for a in node.args]
    dtype = _dtype(values[0])
    for value in values[1:]:  # a Python number adapts to the tensors, unless only it has a fraction
        other = _dtype(value)
        number = not isinstance(value, torch.Tensor) and dtype.is_floating_point >= other.is_floating_point
        dtype = dtype if number and dtype != torch.bool else torch.promote_types(dtype, other)
    return dtype


def _dtype(value: Any) -> torch.dtype:
    """The dtype of a traced value, a traced size or a Python number."""
    if isinstance(value, torch.Tensor):
        return value.dtype
    if isinstance(value, bool | torch.SymBool):
        return torch.bool
    return torch.float32 if isinstance(value, float | torch.SymFloat) else torch.int64


def broadcast(
    writer: GraphWriter, node: fx.Node, values: Sequence[Any], dtypes: torch.dtype | Sequence[torch.dtype]
) -> list[str]:
    """The operands of an elementwise op as ONNX values of `dtypes`.

    One that is expanded, or the same number everywhere, stays small as long as another one has the result's shape: ONNX
    broadcasts as torch does.
    """
    if isinstance(dtypes, torch.dtype):
        dtypes = [dtypes] * len(values)
    small = [_smallest(writer, value) for value in values]
    if not any(s is v and _is_tensor(v) and same_shape(v, node) for s, v in zip(small, values, strict=True)):
        small = list(values)
    return [operand(writer, value, dtype) for value, dtype in zip(small, dtypes, strict=True)]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta["val"], torch.Tensor)


def _smallest(writer: GraphWriter, value: Any) -> Any:
    """A traced tensor without its expansions; a number if it is that number everywhere."""
    if _is_tensor(value) and value.meta["val"].dim():
        number = _everywhere(writer, value)
        if number is not None:
            return number
        while value.target is aten.expand.default and value not in writer.constants:
            value = value.args[0]
        if value.target in _SCALAR_OPS and is_number(value.args[-1]) and _is_expanded(value.args[0], writer):
            inner = _smallest(writer, value.args[0])  # as in the gradient of a mean over some dimensions
            dtype = value.meta["val"].dtype
            names = [operand(writer, v, dtype) for v in (inner, *value.args[1:])]
            return Scalar(writer.node(_SCALAR_OPS[value.target], *names), dtype)
    return value


def _is_expanded(value: Any, writer: GraphWriter) -> bool:
    return _is_tensor(value) and value.target is aten.expand.default and value not in writer.constants


class Scalar(NamedTuple):
    """An ONNX value in place of a traced tensor that it broadcasts to; of shape () where that is one number."""

    name: str
    dtype: torch.dtype


_MOVES: Final = (
    aten.alias.default, aten.clone.default, aten.expand.default, aten.permute.default, aten.unsqueeze.default,
    aten.squeeze.dims, aten.view.default,
)  # fmt: skip
_SCALAR_OPS: Final = {
    aten.neg.default: "Neg", aten.mul.Tensor: "Mul", aten.mul.Scalar: "Mul", aten.div.Tensor: "Div",
    aten.div.Scalar: "Div",
}  # fmt: skip


def _everywhere(writer: GraphWriter, value: Any) -> Any:
    """What a traced value is everywhere, as a Python number, a traced scalar or a `Scalar`; None if it varies.

    So the gradient of a mean, 1 / n for each element, is computed once and not n times.
    """
    if not _is_tensor(value) or not value.meta["val"].dim():
        return value
    if value not in writer.everywhere:
        writer.everywhere[value] = _sameness(writer, value)
    return writer.everywhere[value]


def _sameness(writer: GraphWriter, node: fx.Node) -> Any:
    if node in writer.constants:
        constant = writer.constants[node].reshape(-1)
        return constant[0].item() if len(constant) and bool((constant == constant[0]).all()) else None
    if node.target in (aten.full.default, aten.full_like.default):
        return _everywhere(writer, node.args[1])
    if node.target in _MOVES:
        return _everywhere(writer, node.args[0])
    if node.target not in _SCALAR_OPS:
        return None
    operands = [_everywhere(writer, a) for a in node.args]
    if any(o is None for o in operands):
        return None
    dtype = node.meta["val"].dtype
    return Scalar(writer.node(_SCALAR_OPS[node.target], *(operand(writer, o, dtype) for o in operands)), dtype)


def dimensions(node: fx.Node, dims: Any) -> list[int]:
    """`dims` of a traced tensor as a list of numbers from 0; all of them where none are given."""
    rank = node.meta["val"].dim()
    dims = [dims] if isinstance(dims, int) else list(dims if dims else range(rank))
    return [d % rank for d in dims]


def is_number(value: Any) -> bool:
    """Whether an argument is a number: one of Python's, or a traced tensor without dimensions."""
    return not _is_tensor(value) or value.meta["val"].dim() == 0


def same_shape(a: fx.Node, b: fx.Node) -> bool:
    """Whether both are known to have one shape, symbols included."""
    # Compared as text: comparing symbols would make torch assume that they are equal.
    return [str(s) for s in a.meta["val"].shape] == [str(s) for s in b.meta["val"].shape]


def int64(writer: GraphWriter, values: Sequence[int]) -> str:
    """Known numbers as an ONNX value, shape (n,)."""
    return writer.constant(np.array(values, np.int64))


def shape(writer: GraphWriter, sizes: Sequence[Any]) -> str:
    """A shape as an ONNX value; symbols are computed from the graph's inputs."""
    if all(isinstance(s, int) for s in sizes):
        return int64(writer, sizes)
    parts = [
        writer.node("Unsqueeze", writer.emit(s), int64(writer, [0])) if isinstance(s, fx.Node) else int64(writer, [s])
        for s in sizes
    ]
    return parts[0] if len(parts) == 1 else writer.node("Concat", *parts, axis=0)
