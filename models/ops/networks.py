"""Matrix products, and what networks do after them."""

from torch import fx

from models.graph_writer import GraphWriter
from models.ops.table import aten, lowers, operand


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


@lowers(aten._log_softmax.default)  # noqa: SLF001
def _log_softmax(writer: GraphWriter, node: fx.Node) -> str:
    tensor, dim, _ = node.args
    return writer.node("LogSoftmax", writer.emit(tensor), axis=dim)


@lowers(aten.threshold_backward.default)
def _relu_backward(writer: GraphWriter, node: fx.Node) -> str:
    gradient, output, threshold = node.args
    dtype = node.meta["val"].dtype
    passed = writer.node("Greater", writer.emit(output), operand(writer, threshold, dtype))
    return writer.node("Where", passed, writer.emit(gradient), operand(writer, 0, dtype))
