"""A function of torch tensors -> one plain ONNX graph (ai.onnx, opset 17, the batch dimension free).

`make_fx` traces the function, autograd included, on fake tensors whose first dimension is a symbol; the table in
`ops/` turns each aten op into ONNX nodes. An op that is not in the table raises `ConfigError` and is named.
"""

from collections.abc import Callable, Mapping, Sequence

import onnx
import torch
from onnx import helper
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from fl_protocol.bundle import BATCH
from models.decompositions import decompositions
from models.graph_writer import GraphWriter, onnx_type
from models.ops import OPS

# Any size above one will do: torch specialises 0 and 1, and gates.py tries other sizes on the result.
_TRACED_BATCH = 6

TensorFunction = Callable[[dict[str, Tensor]], dict[str, Tensor]]


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
    traced, outputs = _trace(function, named, batched)
    writer = GraphWriter(OPS)
    for node, name in zip(traced.graph.find_nodes(op="placeholder"), named, strict=True):
        writer.values[node] = name
    for name, tensor in stored.items():
        writer.store(name, tensor.detach().numpy())
    for node in traced.graph.nodes:  # sizes are written when a tensor asks for them: most are never needed
        if node.op == "call_function" and isinstance(node.meta["val"], Tensor):
            writer.emit(node)
    (result,) = traced.graph.find_nodes(op="output")
    writer.rename_outputs([writer.values[node] for node in result.args[0]], list(outputs))
    return writer.to_bytes(
        [_value(name, tensor.dtype, tensor.shape, name in batched) for name, tensor in inputs.items()],
        [_value(name, t.dtype, t.shape, t.dim() > 0 and _is_symbol(t.shape[0])) for name, t in outputs.items()],
    )


def _trace(
    function: TensorFunction, named: Mapping[str, Tensor], batched: Sequence[str]
) -> tuple[fx.GraphModule, dict[str, Tensor]]:
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    fakes, batch = [], None
    for name, tensor in named.items():
        sizes = [DimDynamic.STATIC] * tensor.dim()
        if name in batched:
            sizes[0] = DimDynamic.DYNAMIC
            tensor = tensor[:1].repeat(_TRACED_BATCH, *[1] * (tensor.dim() - 1))
        fake = mode.from_tensor(tensor.detach(), symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))
        if name in batched:
            batch = fake.shape[0] if batch is None else batch
            torch._check(fake.shape[0] == batch)  # noqa: SLF001  x and y have one batch size, not one each
        fakes.append(fake)
    outputs: dict[str, Tensor] = {}

    def flat(*tensors: Tensor) -> list[Tensor]:
        outputs.update(function(dict(zip(named, tensors, strict=True))))
        return list(outputs.values())

    # Without the python dispatcher some decompositions would bake the traced batch size in, silently.
    with mode, enable_python_dispatcher():
        traced = make_fx(flat, decomposition_table=decompositions())(*fakes)
    traced.graph.eliminate_dead_code()
    return traced, outputs


def _is_symbol(size: int | torch.SymInt) -> bool:
    return isinstance(size, torch.SymInt)


def _value(name: str, dtype: torch.dtype, shape: Sequence[int], batched: bool) -> onnx.ValueInfoProto:
    sizes = [BATCH if batched and i == 0 else int(size) for i, size in enumerate(shape)]
    return helper.make_tensor_value_info(name, onnx_type(dtype), sizes)
