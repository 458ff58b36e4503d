"""Shapes and sizes: views, slices, joins; their gradients."""

import numpy as np
from torch import fx

from fl_protocol.errors import ConfigError
from models.graph_writer import GraphWriter
from models.ops.table import arguments, aten, dimensions, int64, lowers, same_shape, shape


# --- sizes, the only numbers that are not known when the graph is written ---------------------------------
@lowers(aten.sym_size.int)
def _sym_size(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim = node.args
    return writer.node("Gather", writer.node("Shape", writer.emit(tensor)), writer.constant(np.array(dim)), axis=0)


@lowers(aten.sym_numel.default)
def _sym_numel(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node("Size", writer.emit(node.args[0]))


# --- shapes --------------------------------------------------------------------------------------------------
@lowers(aten.view.default)
def _view(writer: GraphWriter, node: fx.Node) -> str:
    tensor, sizes = node.args
    if same_shape(tensor, node):
        return writer.emit(tensor)
    symbols = [s for s in sizes if isinstance(s, fx.Node)]
    if len(symbols) > 1:
        raise ConfigError(f"the model reshapes to {sizes}: two free dimensions", "only the batch may be free")
    shape = [-1 if isinstance(s, fx.Node) else s for s in sizes]  # whatever the symbol is, it is what remains
    return writer.node("Reshape", writer.emit(tensor), int64(writer, shape))


@lowers(aten.permute.default)
def _permute(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dims = node.args
    if tensor.target is aten.permute.default:  # autograd likes to transpose twice
        inner = tensor.args[1]
        if [inner[d] for d in dims] == list(range(len(dims))):
            return writer.emit(tensor.args[0])
    return writer.node("Transpose", writer.emit(tensor), perm=dimensions(tensor, dims))


@lowers(aten.unsqueeze.default)
def _unsqueeze(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim = node.args
    return writer.node("Unsqueeze", writer.emit(tensor), int64(writer, dimensions(node, dim)))


@lowers(aten.expand.default)
def _expand(writer: GraphWriter, node: fx.Node) -> str:
    tensor, sizes = node.args
    return writer.node("Expand", writer.emit(tensor), shape(writer, [1 if s == -1 else s for s in sizes]))


@lowers(aten.cat.default)
def _cat(writer: GraphWriter, node: fx.Node) -> str:
    tensors, dim = arguments(node, None, 0)
    return writer.node("Concat", *(writer.emit(t) for t in tensors), axis=dimensions(node, dim)[0])


@lowers(aten.slice.Tensor)
def _slice(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim, start, end, step = arguments(node, None, None, None, None, 1)
    if same_shape(tensor, node):  # the whole of it: torch slices every dimension that is written as `:`
        return writer.emit(tensor)
    bounds = [[start or 0], [2**63 - 1 if end is None else end], dimensions(tensor, dim or 0), [step]]
    return writer.node("Slice", writer.emit(tensor), *(int64(writer, b) for b in bounds))


@lowers(aten.slice_backward.default)
def _slice_backward(writer: GraphWriter, node: fx.Node) -> str:
    """The gradient where the slice was, zeros around it."""
    gradient, sizes, dim, start, end, step = node.args
    if same_shape(gradient, node):
        return writer.emit(gradient)
    (axis,) = dimensions(node, dim)
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
    return writer.node("Pad", writer.emit(gradient), int64(writer, before + after))
