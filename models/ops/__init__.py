"""The table: aten op -> plain ONNX nodes of opset 17. One function an op, one file a family."""

from models.ops import convolution, elementwise, indexing, markers, networks, pooling, reductions, shapes
from models.ops.table import OPS

__all__ = ["OPS", "convolution", "elementwise", "indexing", "markers", "networks", "pooling", "reductions", "shapes"]
