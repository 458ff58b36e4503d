"""Shapes and sizes: views, slices, joins; their gradients."""

import operator
from typing import Any

import numpy as np
from torch import fx

from fl_protocol.errors import ConfigError
from models.graph_writer import GraphWriter
from models.ops.reductions import REDUCTIONS, reduction
from models.ops.table import arguments, aten, dimensions, int64, lowers, operand, same_shape, shape


# --- sizes, the only numbers that are not known when the graph is written ---------------------------------
@lowers(aten.sym_size.int)
def _sym_size(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim = node.args
    return writer.node("Gather", writer.node("Shape", writer.emit(tensor)), writer.constant(np.array(dim)), axis=0)


@lowers(aten.sym_numel.default)
def _sym_numel(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node("Size", writer.emit(node.args[0]))


# --- the same elements in another shape ----------------------------------------------------------------------
_RESHAPES = (
    aten.view.default,
    aten._unsafe_view.default,  # noqa: SLF001
    aten.unsqueeze.default,
    aten.squeeze.dims,
    aten.squeeze.dim,
    aten.squeeze.default,
)


@lowers(*_RESHAPES)
def _reshape(writer: GraphWriter, node: fx.Node) -> str:
    return _reshaped(writer, node)


def _reshaped(writer: GraphWriter, node: fx.Node) -> str:
    """One Reshape, of the first tensor of a chain of views."""
    base = _unshaped(writer, node.args[0])
    if same_shape(base, node):
        return writer.emit(base)
    if base.target in REDUCTIONS and len(base.users) == 1 and base not in writer.constants:
        tensor, dims, keep = arguments(base, None, None, False)
        reduced = dimensions(tensor, dims)
        rest = [str(s) for axis, s in enumerate(tensor.meta["val"].shape) if axis not in reduced]
        if keep and rest == [str(s) for s in node.meta["val"].shape]:  # autograd keeps them, only to drop them here
            return reduction(writer, base, keep=False)
    sizes = node.meta["val"].shape
    unknown = [i for i, s in enumerate(sizes) if not isinstance(s, int)]
    if len(unknown) > 1:
        raise ConfigError(
            f"the model reshapes to {tuple(sizes)}: two free dimensions",
            "only the batch may be free: is the batch first, is `batch_first=True` set?",
        )
    known = [-1 if i in unknown else int(s) for i, s in enumerate(sizes)]  # whatever the symbol is, it is what remains
    return writer.node("Reshape", writer.emit(base), int64(writer, known))


def _unshaped(writer: GraphWriter, node: fx.Node) -> fx.Node:
    while node not in writer.constants and (node.target in _RESHAPES or _moves_nothing(node)):
        node = node.args[0]
    return node


def _moves_nothing(node: fx.Node) -> bool:
    """Whether a permutation moves only dimensions of size 1: the elements stay where they are."""
    if node.target is not aten.permute.default:
        return False
    tensor, dims = node.args
    sizes = tensor.meta["val"].shape
    moved = [d for d in dimensions(tensor, dims) if not (isinstance(sizes[d], int) and sizes[d] == 1)]
    return moved == sorted(moved)


@lowers(aten.permute.default)
def _permute(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dims = node.args
    dims = dimensions(tensor, dims)
    while tensor.target is aten.permute.default and tensor not in writer.constants:  # autograd likes to do it twice
        inner = dimensions(tensor.args[0], tensor.args[1])
        tensor, dims = tensor.args[0], [inner[d] for d in dims]
    if dims == list(range(len(dims))):
        return writer.emit(tensor)
    if _moves_nothing(node):
        return _reshaped(writer, node)
    return writer.node("Transpose", writer.emit(tensor), perm=dims)


@lowers(aten.expand.default)
def _expand(writer: GraphWriter, node: fx.Node) -> str:
    tensor, sizes = node.args
    if same_shape(tensor, node):
        return writer.emit(tensor)
    return writer.node("Expand", writer.emit(tensor), shape(writer, [1 if s == -1 else s for s in sizes]))


@lowers(aten.repeat.default)
def _repeat(writer: GraphWriter, node: fx.Node) -> str:
    tensor, repeats = node.args
    name = writer.emit(tensor)
    missing = len(repeats) - tensor.meta["val"].dim()
    if missing:
        name = writer.node("Unsqueeze", name, int64(writer, range(missing)))
    return writer.node("Tile", name, shape(writer, repeats))


# --- joins and parts -------------------------------------------------------------------------------------------
@lowers(aten.cat.default)
def _cat(writer: GraphWriter, node: fx.Node) -> str:
    tensors, dim = arguments(node, None, 0)
    dtype = node.meta["val"].dtype
    parts = [operand(writer, t, dtype) for t in tensors]
    return parts[0] if len(parts) == 1 else writer.node("Concat", *parts, axis=dimensions(node, dim)[0])


@lowers(operator.getitem)
def _one_of(writer: GraphWriter, node: fx.Node) -> str:
    several, index = node.args
    return writer.emit_all(several)[index]


@lowers(aten.split_with_sizes.default)
def _split(writer: GraphWriter, node: fx.Node) -> str | tuple[str, ...]:
    tensor, sizes, dim = arguments(node, None, None, 0)
    if len(sizes) == 1:
        return (writer.emit(tensor),)
    inputs = writer.emit(tensor), int64(writer, sizes)
    return writer.nodes("Split", len(sizes), *inputs, axis=dimensions(tensor, dim)[0])


@lowers(aten.select.int)
def _select(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim, index = node.args
    (axis,) = dimensions(tensor, dim)
    return writer.node("Gather", writer.emit(tensor), writer.constant(np.array(index)), axis=axis)


@lowers(aten.slice.Tensor)
def _slice(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim, start, end, step = arguments(node, None, 0, None, None, 1)
    if same_shape(tensor, node):  # the whole of it: torch slices every dimension that is written as `:`
        return writer.emit(tensor)
    bounds = [[start or 0], [2**63 - 1 if end is None else end], dimensions(tensor, dim), [step]]
    return writer.node("Slice", writer.emit(tensor), *(shape(writer, b) for b in bounds))


@lowers(aten.flip.default)
def _flip(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dims = node.args
    dims = dimensions(tensor, dims)
    bounds = ([-1] * len(dims), [-(2**63)] * len(dims), dims, [-1] * len(dims))
    return writer.node("Slice", writer.emit(tensor), *(int64(writer, b) for b in bounds))


# --- their gradients -------------------------------------------------------------------------------------------
@lowers(aten.constant_pad_nd.default)
def _pad(writer: GraphWriter, node: fx.Node) -> str:
    """torch lists the last dimension first, each with what comes before and after; less than 0 cuts off."""
    tensor, pads, value = arguments(node, None, None, 0)
    rank = tensor.meta["val"].dim()
    before, after = [0] * rank, [0] * rank
    for i in range(len(pads) // 2):
        before[rank - 1 - i], after[rank - 1 - i] = pads[2 * i], pads[2 * i + 1]
    return _padded(writer, writer.emit(tensor), before, after, operand(writer, value, node.meta["val"].dtype))


def _padded(writer: GraphWriter, name: str, before: list[int], after: list[int], *value: str) -> str:
    return writer.node("Pad", name, int64(writer, before + after), *value) if any(before + after) else name


@lowers(aten.slice_backward.default)
def _slice_backward(writer: GraphWriter, node: fx.Node) -> str:
    """The gradient where the slice was, zeros around it and, with a step, between."""
    gradient, sizes, dim, start, end, step = node.args
    if same_shape(gradient, node):
        return writer.emit(gradient)
    (axis,) = dimensions(node, dim)
    size, rank = _known_size(node, axis, sizes), node.meta["val"].dim()
    start, end, _ = slice(start, end).indices(size)
    name = writer.emit(gradient)
    if step != 1:  # each element becomes a row that it leads, and the rows are laid end to end
        count = gradient.meta["val"].shape[axis]
        name = writer.node("Unsqueeze", name, int64(writer, [axis + 1]))
        after = [0] * (rank + 1)
        after[axis + 1] = step - 1
        name = _padded(writer, name, [0] * (rank + 1), after)
        name = _joined(writer, name, node, axis, count * step)
        end = start + count * step
    before, after = [0] * rank, [0] * rank
    before[axis], after[axis] = start, size - end
    return _padded(writer, name, before, after)


def _joined(writer: GraphWriter, name: str, node: fx.Node, axis: int, size: int) -> str:
    sizes = [s if isinstance(s, int) else -1 for s in node.meta["val"].shape]
    sizes[axis] = size
    return writer.node("Reshape", name, int64(writer, sizes))


@lowers(aten.select_backward.default)
def _select_backward(writer: GraphWriter, node: fx.Node) -> str:
    gradient, sizes, dim, index = node.args
    (axis,) = dimensions(node, dim)
    size, rank = _known_size(node, axis, sizes), node.meta["val"].dim()
    before, after = [0] * rank, [0] * rank
    before[axis], after[axis] = index % size, size - 1 - index % size
    return _padded(writer, writer.node("Unsqueeze", writer.emit(gradient), int64(writer, [axis])), before, after)


def _known_size(node: fx.Node, axis: int, sizes: Any) -> int:
    if not isinstance(sizes[axis], int):
        raise ConfigError(
            f"the model takes a part of the batch ({node.target}), and needs its gradient",
            "every example of a batch counts: slice another dimension than the first",
        )
    size: int = sizes[axis]
    return size
