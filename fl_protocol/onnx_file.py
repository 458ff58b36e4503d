"""An ONNX file as seen from outside: what goes in, what comes out, which tensors it stores.

Walks the protobuf without onnx and onnxruntime, on data that nobody has vouched for yet. The table
`_MESSAGES` is the whole of ONNX that a bundle may use: a field that is not in it is refused, so functions,
subgraphs, sparse and external tensors cannot get in; and since no message in it contains itself, the table also
bounds the depth. What is left is tensors in, tensors out; how large they may grow between the two the file does not
tell (two concatenated with themselves forty times), so a device also bounds its memory: edge_agent/limits.py.
Field numbers are those of onnx.proto (IR version 3 and later).
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import Code, ProtocolError
from fl_protocol.onnx_ops import OPERATORS, OPSET, SIZED_BY
from fl_protocol.tensors import MAX_ELEMENTS, MAX_RANK

MAX_TEXT = 512
MAX_FIELDS = 1 << 20  # fields of one message
MAX_NODES = 1 << 16  # a recurrent network unrolled over 128 steps has some ten thousand
STANDARD_DOMAINS = ("", "ai.onnx")

# TensorProto.DataType -> numpy; strings, complex and sub-byte types have no place in a bundle.
_DTYPES: Final = {
    1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64",
}  # fmt: skip


class TensorSpec(NamedTuple):
    """Name, numpy dtype and shape of a graph's input or output; a text in the shape is a free dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Initializer(NamedTuple):
    """A tensor stored in the file; `raw` is a view of its little-endian bytes."""

    dtype: str
    shape: tuple[int, ...]
    raw: memoryview


@dataclass(frozen=True)
class OnnxFile:
    """The outside of one ONNX graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    initializers: Mapping[str, Initializer]
    num_nodes: int

    @classmethod
    def read(cls, data: bytes | bytearray) -> "OnnxFile":
        """Walk the file. Raises `ProtocolError(E_SCHEMA)` for whatever the table does not allow."""
        model = _read("model", memoryview(data))
        opsets = [(o.get("domain", ""), o.get("version", 0)) for o in model.get("opsets", [])]
        if len(opsets) != 1 or opsets[0][0] not in STANDARD_DOMAINS or opsets[0][1] != OPSET:
            raise _refused(f"an operator set other than ai.onnx {OPSET}")
        graph = model.get("graph", {})
        nodes, stored = graph.get("nodes", []), graph.get("initializers", [])
        if len(nodes) > MAX_NODES:
            raise _refused(f"more than {MAX_NODES} nodes")
        initializers = {str(tensor.get("name", "")): _initializer(tensor) for tensor in stored}
        constants = dict(initializers)
        for node in nodes:
            constants |= _check_node(node, constants)
        inputs = tuple(_spec(value) for value in graph.get("inputs", []))
        outputs = tuple(_spec(value) for value in graph.get("outputs", []))
        for value in graph.get("value_infos", []):
            _spec(value)
        results = [name for node in nodes for name in node.get("outputs", []) if name]
        _all_differ([*(str(t.get("name", "")) for t in stored), *(i.name for i in inputs), *results])
        _all_differ([o.name for o in outputs])
        return cls(inputs, outputs, initializers, len(nodes))


def fill_initializers(graph: bytes, tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Copy of an ONNX file whose initializers of the given names hold the given values.

    Raises `ProtocolError(E_SCHEMA)` where a name is unknown or dtype or shape differ.
    """
    filled = bytearray(graph)
    initializers = OnnxFile.read(filled).initializers
    for name, tensor in tensors.items():
        place = initializers.get(name)
        if place is None:
            raise ProtocolError(Code.SCHEMA, f"the graph has no initializer {name!r:.80}")
        if (place.dtype, place.shape) != (tensor.dtype.name, tensor.shape):
            raise ProtocolError(
                Code.SCHEMA,
                f"initializer {name} is {place.dtype}{list(place.shape)}, not {tensor.dtype}{list(tensor.shape)}",
            )
        # The length is unchanged, so the new bytes simply go where the old ones were.
        place.raw[:] = tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()
    return bytes(filled)


def _check_node(node: Mapping[str, Any], constants: Mapping[str, Initializer]) -> dict[str, Initializer]:
    """Hold a node to the operators that there are, and to sizes that are written down; the tensor that it stores."""
    domain, op_type = node.get("domain", ""), node.get("op_type", "?")
    if domain not in STANDARD_DOMAINS:
        raise _refused(f"the operator {domain}.{op_type}, which is not ai.onnx")
    if op_type not in OPERATORS:
        raise _refused(f"the operator {op_type}")
    inputs, at = node.get("inputs", []), SIZED_BY.get(op_type)
    size = constants.get(inputs[at]) if at is not None and at < len(inputs) else None
    if size is not None and size.dtype == "int64":
        _bounded(tuple(np.frombuffer(size.raw, "<i8").tolist()))
    tensors = [_initializer(a["tensor"]) for a in node.get("attributes", []) if "tensor" in a]
    return dict(zip(node.get("outputs", []), tensors, strict=False)) if op_type == "Constant" else {}


def _all_differ(names: Sequence[str]) -> None:
    ((name, count),) = Counter(names).most_common(1) or [("", 0)]
    if count > 1:
        raise _refused(f"the name {name!r:.80} twice")


def _spec(value: Mapping[str, Any]) -> TensorSpec:
    tensor = value.get("type", {}).get("tensor", {})
    dtype = _DTYPES.get(tensor.get("elem_type", 0))
    if dtype is None or "shape" not in tensor:
        raise _refused(f"the value {value.get('name', '?')!r:.80} without a plain type and shape")
    shape = tuple(d["param"] if "param" in d else d.get("value", -1) for d in tensor["shape"].get("dims", []))
    _bounded(tuple(d for d in shape if isinstance(d, int)))
    return TensorSpec(value.get("name", ""), dtype, shape)


def _initializer(tensor: Mapping[str, Any]) -> Initializer:
    name, dtype = tensor.get("name", ""), _DTYPES.get(tensor.get("data_type", 0))
    shape = tuple(tensor.get("dims", []))
    if dtype is None:
        raise _refused(f"the tensor {name!r:.80} of data type {tensor.get('data_type')}")
    size = _bounded(shape) * np.dtype(dtype).itemsize
    raw = tensor.get("raw_data", memoryview(b""))
    if len(raw) != size:
        raise _refused(f"the tensor {name!r:.80}, shape {shape}, with {len(raw)} raw bytes in place of {size}")
    return Initializer(dtype, shape, raw)


def _bounded(shape: tuple[int, ...]) -> int:
    if len(shape) > MAX_RANK or any(not 0 <= d <= MAX_ELEMENTS for d in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise _refused(f"the shape {shape!r:.200}")
    return math.prod(shape)


def _refused(what: str) -> ProtocolError:
    return ProtocolError(Code.SCHEMA, f"an ONNX file of a bundle may not contain {what}")


class _Field(NamedTuple):
    name: str
    kind: str  # varint, text, bytes, varints (packed or one by one), skip, or the name of a message
    repeated: bool = False


_MESSAGES: Final[dict[str, dict[int, _Field]]] = {
    "model": {
        1: _Field("ir_version", "varint"),
        2: _Field("producer_name", "text"),
        3: _Field("producer_version", "text"),
        4: _Field("domain", "text"),
        5: _Field("model_version", "varint"),
        6: _Field("doc_string", "skip"),
        7: _Field("graph", "graph"),
        8: _Field("opsets", "opset", repeated=True),
        14: _Field("metadata", "skip", repeated=True),
    },
    "opset": {1: _Field("domain", "text"), 2: _Field("version", "varint")},
    "graph": {
        1: _Field("nodes", "node", repeated=True),
        2: _Field("name", "text"),
        5: _Field("initializers", "tensor", repeated=True),
        10: _Field("doc_string", "skip"),
        11: _Field("inputs", "value", repeated=True),
        12: _Field("outputs", "value", repeated=True),
        13: _Field("value_infos", "value", repeated=True),
        16: _Field("metadata", "skip", repeated=True),
    },
    "node": {
        1: _Field("inputs", "text", repeated=True),
        2: _Field("outputs", "text", repeated=True),
        3: _Field("name", "text"),
        4: _Field("op_type", "text"),
        5: _Field("attributes", "attribute", repeated=True),
        6: _Field("doc_string", "skip"),
        7: _Field("domain", "text"),
        9: _Field("metadata", "skip", repeated=True),
    },
    "attribute": {
        1: _Field("name", "text"),
        2: _Field("float", "skip"),
        3: _Field("int", "skip"),
        4: _Field("string", "skip"),
        5: _Field("tensor", "tensor"),
        7: _Field("floats", "skip", repeated=True),
        8: _Field("ints", "skip", repeated=True),
        9: _Field("strings", "skip", repeated=True),
        13: _Field("doc_string", "skip"),
        20: _Field("type", "varint"),
    },
    "tensor": {
        1: _Field("dims", "varints", repeated=True),
        2: _Field("data_type", "varint"),
        8: _Field("name", "text"),
        9: _Field("raw_data", "bytes"),
        12: _Field("doc_string", "skip"),
    },
    "value": {1: _Field("name", "text"), 2: _Field("type", "type"), 3: _Field("doc_string", "skip")},
    "type": {1: _Field("tensor", "tensor_type"), 6: _Field("denotation", "text")},
    "tensor_type": {1: _Field("elem_type", "varint"), 2: _Field("shape", "shape")},
    "shape": {1: _Field("dims", "dim", repeated=True)},
    "dim": {1: _Field("value", "varint"), 2: _Field("param", "text"), 3: _Field("denotation", "text")},
}


def _read(message: str, data: memoryview) -> dict[str, Any]:
    fields = _MESSAGES[message]
    found: dict[str, Any] = {}
    for number, wire in _wire_fields(data):
        field = fields.get(number)
        if field is None:
            raise _refused(f"the field {number} of an ONNX {message}")
        values = _values(field.kind, wire)
        if field.repeated:
            found.setdefault(field.name, []).extend(values)
        elif field.name in found:  # protobuf would merge the two; nobody honest writes that
            raise _refused(f"{field.name} of an ONNX {message} twice")
        else:
            (found[field.name],) = values
    return found


def _values(kind: str, wire: int | memoryview) -> list[Any]:
    if kind == "skip":
        return [None]
    if kind == "varints" and isinstance(wire, memoryview):
        return list(_varints(wire))
    if kind in ("varint", "varints"):
        if isinstance(wire, int):
            return [wire]
    elif isinstance(wire, memoryview):
        if kind == "bytes":
            return [wire]
        if kind != "text":
            return [_read(kind, wire)]
        if len(wire) <= MAX_TEXT:
            try:
                return [str(wire, "utf-8")]
            except UnicodeDecodeError:
                pass
    raise _refused(f"a malformed {kind}")


def _wire_fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an int for a varint, a view for everything else."""
    at, seen = 0, 0
    while at < len(data):
        seen += 1
        if seen > MAX_FIELDS:
            raise _refused(f"more than {MAX_FIELDS} fields in one message")
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire_type == 2:
            length, at = _varint(data, at)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise _refused(f"the protobuf wire type {wire_type}")
        if not 0 <= length <= len(data) - at:
            raise _refused("a field longer than its message (is the file truncated?)")
        yield number, data[at : at + length]
        at += length


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The signed 64-bit number at `at`, and where the next one starts."""
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            value &= (1 << 64) - 1
            return value - (1 << 64) if value >> 63 else value, at + i + 1
    raise _refused("a broken varint (is the file truncated?)")
