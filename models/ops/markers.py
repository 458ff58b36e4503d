"""The markers of models/quantization, which the graphs keep."""

import numpy as np
import torch
from torch import fx

from models.graph_writer import GraphWriter
from models.ops.table import lowers
from models.quantization import markers as _defined  # noqa: F401  what defines the ops named below

_markers = torch.ops.anabranch
_LARGEST = np.array(np.finfo(np.float32).max)


@lowers(_markers.quantize.default, _markers.dequantize.default)
def _quantize(writer: GraphWriter, node: fx.Node) -> str:
    op = "QuantizeLinear" if node.target is _markers.quantize.default else "DequantizeLinear"
    inputs = [writer.emit(a) for a in node.args]
    per_channel = node.args[1].meta["val"].dim() > 0
    return writer.node(op, *inputs, **({"axis": 0} if per_channel else {}))


@lowers(_markers.nonnegative.default)
def _nonnegative(writer: GraphWriter, node: fx.Node) -> str:
    return writer.emit(node.args[0])


@lowers(_markers.in_float.default)
def _in_float(writer: GraphWriter, node: fx.Node) -> str:
    """A minimum with the largest number: onnxruntime moves a QuantizeLinear before a MaxPool, but not before this."""
    return writer.node("Min", writer.emit(node.args[0]), writer.constant(_LARGEST))
