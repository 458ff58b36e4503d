"""What every lowering is written with: the table, and a traced node's arguments as ONNX values.

A shape may hold one symbol, the batch size.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

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
    """A traced tensor, a traced size or a Python number, as an ONNX value of `dtype`."""
    if isinstance(value, fx.Node):
        name = writer.emit(value)
        actual = value.meta["val"].dtype if isinstance(value.meta["val"], torch.Tensor) else torch.int64
        return name if actual == dtype else writer.node("Cast", name, to=onnx_type(dtype))
    return writer.constant(np.array(value, numpy_dtype(dtype)))


def operand_dtype(node: fx.Node) -> torch.dtype:
    """What torch computes a binary op in: its tensors' common dtype (a Python number adapts to them)."""
    tensors = [a.meta["val"] for a in node.args if isinstance(a, fx.Node) and isinstance(a.meta["val"], torch.Tensor)]
    dtype: torch.dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    result: torch.dtype = node.meta["val"].dtype
    return dtype if result == torch.bool else result


def dimensions(node: fx.Node, dims: Any) -> list[int]:
    """`dims` of a traced tensor as a list of numbers from 0; all of them where none are given."""
    rank = node.meta["val"].dim()
    dims = [dims] if isinstance(dims, int) else list(dims if dims else range(rank))
    return [d % rank for d in dims]


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
