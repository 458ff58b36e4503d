"""The ONNX file in the making: what `ops/` writes nodes with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import fx

from fl_protocol.errors import ConfigError
from models.advice import instead_of

OPSET = 17
IR_VERSION = 8  # the one that belongs to opset 17; older runtimes refuse a newer one

_ONNX_TYPES: Final = {
    torch.float32: TensorProto.FLOAT,
    torch.uint8: TensorProto.UINT8,
    torch.int8: TensorProto.INT8,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
    torch.bool: TensorProto.BOOL,
}


def onnx_type(dtype: torch.dtype) -> int:
    """The TensorProto.DataType of a torch dtype. Raises `ConfigError` for one that a bundle may not have."""
    if dtype not in _ONNX_TYPES:
        raise ConfigError(f"the model has a tensor of {dtype}", "a bundle's graphs compute in float32")
    return _ONNX_TYPES[dtype]


class GraphWriter:
    """Collects ONNX nodes; equal nodes are written once, and names are a function of the order alone."""

    def __init__(self, table: "Mapping[Any, Lowering]") -> None:
        self._table = table
        self.values: dict[fx.Node, str | tuple[str, ...]] = {}  # what each traced value is called in the ONNX graph
        self.constants: dict[fx.Node, torch.Tensor] = {}  # traced values that depend on no input
        self.everywhere: dict[fx.Node, Any] = {}  # what a traced tensor is in all places; None if it varies
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._known: dict[object, tuple[str, ...]] = {}
        self._stored: dict[fx.Node, bool] = {}

    def emit(self, node: fx.Node) -> str:
        """The ONNX name of a traced value, whose nodes are written now if they are not yet."""
        names = self.emit_all(node)
        assert isinstance(names, str), f"{node.target} has several results"
        return names

    def emit_all(self, node: fx.Node) -> str | tuple[str, ...]:
        """As `emit`; of an op with several results, the names of all."""
        if node not in self.values:
            self.values[node] = self._write(node)
        return self.values[node]

    def _write(self, node: fx.Node) -> str | tuple[str, ...]:
        if node in self.constants:
            value = self.constants[node]
            onnx_type(value.dtype)
            return self.constant(value.detach().numpy())
        if node.target not in self._table:
            raise ConfigError(f"the model uses {node.target}, which has no ONNX translation", instead_of(node.target))
        return self._table[node.target](self, node)

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Write a node of one output and return that output's name."""
        return self.nodes(op_type, 1, *inputs, **attributes)[0]

    def nodes(self, op_type: str, num_outputs: int, *inputs: str, **attributes: Any) -> tuple[str, ...]:
        """Write a node and return the names of its outputs."""
        key = (op_type, num_outputs, inputs, repr(sorted(attributes.items())))
        if key not in self._known:
            name = f"{op_type}:{len(self._nodes)}"  # no parameter of a torch module can be called so
            names = (name, *(f"{name}:{i}" for i in range(1, num_outputs)))
            self._nodes.append(helper.make_node(op_type, list(inputs), list(names), name=name, **attributes))
            self._known[key] = names
        return self._known[key]

    def constant(self, value: NDArray[Any]) -> str:
        """Store a constant, once for all who need it."""
        key = (value.dtype.name, value.shape, value.tobytes())
        if key not in self._known:
            self._known[key] = (self.store(f"constant:{len(self._initializers)}", value),)
        return self._known[key][0]

    def store(self, name: str, value: NDArray[Any]) -> str:
        """Store an initializer under its own name, as raw bytes so that `fill_initializers` can replace it."""
        self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        return name

    def is_stored(self, node: fx.Node) -> bool:
        """Whether a traced value comes from initializers alone: it is then known when a session is made."""
        if node not in self._stored:
            known = node in self.constants or self.values.get(node) in self._initializers
            self._stored[node] = known or (
                bool(node.all_input_nodes) and all(map(self.is_stored, node.all_input_nodes))
            )
        return self._stored[node]

    def rename_outputs(self, names: Sequence[str], outputs: Sequence[str]) -> None:
        """Give each computed value in `names` the name that the graph's caller knows it by."""
        computed = {name for node in self._nodes for name in node.output}
        renamed: dict[str, str] = {}
        for name, output in zip(names, outputs, strict=True):
            if name in computed and name not in renamed:
                renamed[name] = output
            else:  # an input handed through, or one value under two names
                self._nodes.append(helper.make_node("Identity", [name], [output], name=output))
        for node in self._nodes:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]

    def to_bytes(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> bytes:
        """The finished file, checked by onnx."""
        needed, nodes = {value.name for value in outputs}, []
        for node in reversed(self._nodes):
            if not needed.isdisjoint(node.output):
                needed.update(node.input)
                nodes.append(node)
        stored = [tensor for name, tensor in self._initializers.items() if name in needed]
        graph = helper.make_graph(nodes[::-1], "anabranch", list(inputs), list(outputs), stored)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="anabranch"
        )
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString(deterministic=True)
        return data


# Writes an op's nodes and returns the name of their result; of an op with several results, all their names.
Lowering = Callable[[GraphWriter, fx.Node], str | tuple[str, ...]]
