"""Graphs and bundles that somebody might send to do harm, each made from one that is in order."""

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fl_protocol.bundle import MAGIC, MAX_BUNDLE_BYTES, PERSONAL

Change = Callable[[onnx.ModelProto], object]


def plain_graph() -> onnx.ModelProto:
    """y = x + w, with nothing wrong with it."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "y"))
    w = numpy_helper.from_array(np.ones(2, np.float32), "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def initializer(name: str, dims: tuple[int, ...], raw: bytes, data_type: int = TensorProto.FLOAT) -> TensorProto:
    """A stored tensor that says what it likes of itself."""
    return TensorProto(name=name, dims=dims, raw_data=raw, data_type=data_type)


def _node(*arguments: Any, **attributes: Any) -> Change:
    return lambda model: model.graph.node.append(helper.make_node(*arguments, **attributes))


def _stored(tensor: TensorProto) -> Change:
    return lambda model: model.graph.initializer.append(tensor)


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


def _external_entry(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="/dev/zero")


def _nested(depth: int) -> Change:
    """A branch within a branch within a branch ..."""
    body = helper.make_graph([], "body", [], [])
    for _ in range(depth):
        body = helper.make_graph(
            [helper.make_node("If", ["c"], ["d"], then_branch=body, else_branch=body)], "b", [], []
        )
    return _node("If", ["c"], ["d"], then_branch=body, else_branch=body)


def _function(model: onnx.ModelProto) -> None:
    nodes, opset = [helper.make_node("Identity", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("", "f", ["a"], ["b"], nodes, opset_imports=opset))


def _sparse(model: onnx.ModelProto) -> None:
    values, indices = initializer("s", (1,), bytes(4)), initializer("i", (1,), bytes(8), TensorProto.INT64)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 40]))


def _sized(op_type: str, size: list[int], *inputs: str) -> Change:
    """An operator whose result has a size that is written down."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(size, np.int64), "size"))
        model.graph.node.append(helper.make_node(op_type, [*inputs, "size"], ["large"]))

    return change


def _constant_size(model: onnx.ModelProto) -> None:
    size = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64))
    model.graph.node.append(helper.make_node("Constant", [], ["size"], value=size))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["large"]))


def _value_of(type_proto: onnx.TypeProto) -> Change:
    return lambda model: model.graph.value_info.append(helper.make_value_info("v", type_proto))


def _opset(version: int, domain: str = "", *, added: bool = False) -> Change:
    def change(model: onnx.ModelProto) -> None:
        if not added:
            del model.opset_import[:]
        model.opset_import.append(helper.make_opsetid(domain, version))

    return change


_FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
_BIG = [1 << 20, 1 << 20]
HOSTILE: Mapping[str, tuple[Change, str]] = {  # name -> (what is done to the plain graph, what the refusal says)
    "custom domain": (_node("Shell", ["x"], ["z"], domain="com.example"), "com.example.Shell"),
    "contributed operators": (_node("FusedGemm", ["x"], ["z"], domain="com.microsoft"), "com.microsoft.FusedGemm"),
    "custom operator set": (_opset(1, "com.example", added=True), "operator set"),
    "newer operator set": (_opset(21), "operator set other than ai.onnx 17"),
    "no operator set": (lambda model: model.ClearField("opset_import"), "operator set"),
    "unknown operator": (_node("Shell", ["x"], ["z"]), "the operator Shell"),
    "random numbers": (_node("RandomNormal", [], ["z"], shape=[4]), "the operator RandomNormal"),
    "a size that depends on values": (_node("NonZero", ["x"], ["z"]), "the operator NonZero"),
    "a sequence operator": (_node("SequenceConstruct", ["x"], ["z"]), "the operator SequenceConstruct"),
    "data in another file": (_external, "field 13 of an ONNX tensor"),
    "data in a device": (_external_entry, "field 13 of an ONNX tensor"),
    "a branch": (_nested(0), "field 6 of an ONNX attribute"),
    "branches within branches": (_nested(7), "field 6 of an ONNX attribute"),
    "a loop": (_node("Loop", ["n"], ["z"], body=helper.make_graph([], "b", [], [])), "field 6 of an ONNX attribute"),
    "many graphs": (
        _node("Add", ["x"], ["z"], g=[helper.make_graph([], "b", [], [])]),
        "field 11 of an ONNX attribute",
    ),
    "a function": (_function, "field 25 of an ONNX model"),
    "a sparse tensor": (_sparse, "field 15 of an ONNX graph"),
    "a sequence": (_value_of(helper.make_sequence_type_proto(_FLOATS)), "field 4 of an ONNX type"),
    "an optional": (_value_of(helper.make_optional_type_proto(_FLOATS)), "field 9 of an ONNX type"),
    "strings": (_stored(initializer("s", (0,), b"", TensorProto.STRING)), "data type 8"),
    "a billion elements": (_stored(initializer("s", (1 << 30,), b"")), "the shape (1073741824,)"),
    "dimensions that overflow": (_stored(initializer("s", (1 << 32, 1 << 32), b"")), "the shape"),
    "a negative dimension": (_stored(initializer("s", (-4, -1), bytes(16))), "the shape (-4, -1)"),
    "too many dimensions": (_stored(initializer("s", (1,) * 9, bytes(4))), "the shape"),
    "fewer bytes than elements": (_stored(initializer("s", (3,), bytes(4))), "4 raw bytes in place of 12"),
    "a large value": (_value_of(helper.make_tensor_type_proto(TensorProto.FLOAT, _BIG)), "the shape"),
    "expanded to a billion": (_sized("Expand", [1 << 15, 1 << 15], "x"), "the shape (32768, 32768)"),
    "filled to a billion": (_sized("ConstantOfShape", _BIG), "the shape (1048576, 1048576)"),
    "tiled to a billion": (_sized("Tile", _BIG, "x"), "the shape (1048576, 1048576)"),
    "filled to a constant's billion": (_constant_size, "the shape (1048576, 1048576)"),
    "two initializers of one name": (_stored(initializer("w", (2,), bytes(8))), "the name 'w' twice"),
    "an initializer named like an input": (_stored(initializer("x", (2,), bytes(8))), "the name 'x' twice"),
    "two results of one name": (_node("Add", ["x", "w"], ["y"]), "the name 'y' twice"),
    "two inputs of one name": (lambda model: model.graph.input.append(model.graph.input[0]), "the name 'x' twice"),
    "two outputs of one name": (lambda model: model.graph.output.append(model.graph.output[0]), "the name 'y' twice"),
}


def with_graph(bundle: bytes, change: Change, name: str = "train.onnx") -> bytes:
    """The bundle with one of its graphs changed; every hash in it is right again."""
    return _repacked(bundle, lambda _, files: _change_graph(files, name, change))


def with_manifest(bundle: bytes, **fields: object) -> bytes:
    """The bundle with other words in its manifest."""
    return _repacked(bundle, lambda manifest, _: manifest.update(fields))


def with_personal(bundle: bytes, size: int) -> bytes:
    """The bundle with personal values that its layout has no room for."""
    return _repacked(bundle, lambda _, files: files.update({PERSONAL: bytes(size)}))


def with_wrong_hash(bundle: bytes) -> bytes:
    """The bundle with a byte of a file changed, and its manifest as it was."""
    content = msgpack.unpackb(zlib.decompress(bundle[len(MAGIC) :]))
    first = content["files"]["train.onnx"]
    content["files"]["train.onnx"] = first[:-1] + bytes([first[-1] ^ 1])
    return MAGIC + zlib.compress(msgpack.packb(content))


def oversized(bundle: bytes) -> bytes:
    """The bundle, and more behind it than anybody reads."""
    return bundle + bytes(MAX_BUNDLE_BYTES)


def _change_graph(files: dict[str, bytes], name: str, change: Change) -> None:
    model = onnx.load_from_string(files[name])
    change(model)
    files[name] = model.SerializeToString()


def _repacked(bundle: bytes, change: Callable[[dict[str, Any], dict[str, bytes]], object]) -> bytes:
    content = msgpack.unpackb(zlib.decompress(bundle[len(MAGIC) :]))
    manifest, files = json.loads(content["manifest"]), content["files"]
    change(manifest, files)
    manifest["files"] = {n: {"sha256": hashlib.sha256(b).hexdigest(), "size": len(b)} for n, b in files.items()}
    return MAGIC + zlib.compress(msgpack.packb({"files": files, "manifest": json.dumps(manifest).encode()}))
