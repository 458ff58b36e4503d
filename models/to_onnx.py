"""A function of torch tensors -> one plain ONNX graph (ai.onnx, opset 17, the batch dimension free).

`tracing.trace` takes the function apart into aten ops, autograd included; the table in `ops/` turns each into ONNX
nodes. An op that is not in the table raises `ConfigError`, which names it, its layer, and what to use instead.
"""

from collections.abc import Mapping, Sequence

import onnx
import torch
from onnx import helper
from torch import Tensor

from fl_protocol.bundle import BATCH
from fl_protocol.errors import ConfigError
from models.graph_writer import GraphWriter, onnx_type
from models.ops import OPS
from models.origins import Origins
from models.tracing import TensorFunction, trace


def export(
    function: TensorFunction,
    inputs: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
    batched: Sequence[str] = ("x", "y"),
) -> bytes:
    """Compile `function`, which maps named tensors to named tensors, into the bytes of an ONNX file.

    `inputs` become the graph's inputs and `stored` its initializers, under their names; of those in `batched` the
    first dimension is free. The outputs have the names and the order of the function's result.
    Raises `ConfigError` for what cannot be compiled.
    """
    named = {**inputs, **stored}
    traced = trace(function, named, batched, OPS)
    writer = GraphWriter(OPS)
    for node, name in zip(traced.graph.find_nodes(op="placeholder"), named, strict=True):
        writer.values[node] = name
    for name, tensor in stored.items():
        writer.store(name, tensor.detach().numpy())
    for node, tensor in traced.constants.items():
        writer.constants[node] = tensor
    for node in traced.graph.nodes:  # sizes are written when a tensor asks for them: most are never needed
        if node.op == "call_function" and isinstance(node.meta["val"], Tensor | tuple | list):
            try:
                writer.emit_all(node)
            except ConfigError as error:
                raise ConfigError(f"{error.message}, {Origins.of(node)}", error.hint) from None
    (result,) = traced.graph.find_nodes(op="output")
    writer.rename_outputs([writer.emit(node) for node in result.args[0]], list(traced.outputs))
    return writer.to_bytes(
        [_value(name, tensor.dtype, tensor.shape, name in batched) for name, tensor in inputs.items()],
        [_value(name, t.dtype, t.shape, t.dim() > 0 and _is_symbol(t.shape[0])) for name, t in traced.outputs.items()],
    )


def _is_symbol(size: int | torch.SymInt) -> bool:
    return isinstance(size, torch.SymInt)


def _value(name: str, dtype: torch.dtype, shape: Sequence[int], batched: bool) -> onnx.ValueInfoProto:
    sizes = [BATCH if batched and i == 0 else int(size) for i, size in enumerate(shape)]
    return helper.make_tensor_value_info(name, onnx_type(dtype), sizes)
