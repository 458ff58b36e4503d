"""The markers of models/quantization, which the int8 graph keeps."""

import torch
from torch import fx

from models.graph_writer import GraphWriter
from models.ops.table import lowers


@lowers(torch.ops.anabranch.quantize.default)
def _quantize(writer: GraphWriter, node: fx.Node) -> str:
    return writer.node("QuantizeLinear", *(writer.emit(a) for a in node.args))


@lowers(torch.ops.anabranch.dequantize.default)
def _dequantize(writer: GraphWriter, node: fx.Node) -> str:
    inputs = [writer.emit(a) for a in node.args]
    per_channel = node.args[1].meta["val"].dim() > 0
    return writer.node("DequantizeLinear", *inputs, **({"axis": 0} if per_channel else {}))
