"""A bundle is believed only as far as it was checked: every rule of the format, and one broken bundle for each."""

import json
import zlib
from pathlib import Path

import msgpack
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from fl_protocol import bundle as bundle_module
from fl_protocol.bundle import (
    INITIAL,
    MAGIC,
    MAX_BUNDLE_BYTES,
    PERSONAL,
    PLAIN_MAGIC,
    Bundle,
    fill_initializers,
    pack_bundle,
)
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.onnx_file import OnnxFile
from fl_protocol.tensors import ModelLayout, TensorEntry

ROOT = Path(__file__).parents[2]
LAYOUT = ModelLayout(
    (
        TensorEntry("w", (3, 2), "parameter"),
        TensorEntry("high", (), "statistic"),
        TensorEntry("w.momentum", (3, 2), "optimizer"),
    )
)
W = np.arange(6, dtype=np.float32).reshape(3, 2)


def value(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes, inputs, outputs, initializers=(), opset=""):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(opset, 17)], ir_version=8)


def small_models():
    """The five graphs of the smallest model there is: logits = x @ w.T, and a step that halves w."""
    x, y = value("x", ["batch", 2]), value("y", ["batch"], TensorProto.INT64)
    state = [value("w", [3, 2]), value("high", []), value("w.momentum", [3, 2])]
    next_state = [value("w.next", [3, 2]), value("high.next", []), value("w.momentum.next", [3, 2])]
    logits = value("logits", ["batch", 3])
    node = helper.make_node
    total = [node("ReduceSum", ["w"], ["s"], keepdims=0)]

    def metrics(loss):
        return [node("Identity", ["s"], [loss]), node("Identity", ["s"], ["correct"])]

    copies = [node("Identity", ["high"], ["high.next"]), node("Identity", ["w.momentum"], ["w.momentum.next"])]
    return {
        "train": model(
            [node("Mul", ["w", "rate"], ["w.next"]), *copies, *total, *metrics("loss")],
            [*state, x, y, value("rate", [])],
            [*next_state, value("loss", []), value("correct", [])],
        ),
        "evaluate": model(
            [*total, *metrics("loss_sum")],
            [*state[:2], x, y],
            [value("loss_sum", []), value("correct", [])],
        ),
        "quantize": model(
            [node("Cast", ["w"], ["w_int8"], to=TensorProto.INT8)],
            state[:2],
            [value("w_int8", [3, 2], TensorProto.INT8)],
        ),
        "int8": model(
            [node("Cast", ["w_int8"], ["f"], to=TensorProto.FLOAT), node("Gemm", ["x", "f"], ["logits"], transB=1)],
            [x],
            [logits],
            [numpy_helper.from_array(W.astype(np.int8), "w_int8")],
        ),
        "float": model(
            [node("Gemm", ["x", "w"], ["logits"], transB=1)], [x], [logits], [numpy_helper.from_array(W, "w")]
        ),
    }


def manifest(**changed):
    return {
        "name": "small",
        "description": "x @ w.T",
        "layout": LAYOUT.to_rows(),
        "fingerprint": LAYOUT.fingerprint,
        "input": {"x": {"shape": [2], "dtype": "float32"}, "y": {"shape": [], "dtype": "int64"}},
        "labels": ["a", "b", "c"],
        "metric": "accuracy",
        "graphs": {name: f"{name}.onnx" for name in small_models()},
        "hyper": {"rate": 0.5},
        "batch_size": 4,
    } | changed


def small_files(models=None, initial=None):
    models = models or small_models()
    files = {f"{name}.onnx": proto.SerializeToString() for name, proto in models.items()}
    initial = np.arange(7, dtype="<f4") if initial is None else initial
    return {**files, INITIAL: initial.tobytes()}


def small_bundle():
    return pack_bundle(manifest(), small_files())


def refusal(data, **kwargs):
    with pytest.raises(ProtocolError) as caught:
        Bundle.read(data, **kwargs)
    return caught.value


def refusal_of(models):
    return refusal(pack_bundle(manifest(), small_files(models)))


def test_what_is_packed_is_read_back():
    read = Bundle.read(small_bundle())
    assert read.layout == LAYOUT
    assert (read.name, read.x_shape, read.x_dtype, read.y_shape, read.y_dtype) == (
        "small",
        (2,),
        "float32",
        (),
        "int64",
    )
    assert (read.labels, read.metric, read.hyper, read.batch_size) == (("a", "b", "c"), "accuracy", {"rate": 0.5}, 4)
    assert read.initial.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert read.graph("train") == small_files()["train.onnx"]


def test_a_bundle_is_addressed_by_its_content_and_not_by_the_order_of_its_keys():
    backwards = dict(reversed(manifest().items())), dict(reversed(small_files().items()))
    assert pack_bundle(*backwards) == small_bundle()


def test_the_expected_hash_is_held():
    data = small_bundle()
    assert Bundle.read(data, Bundle.read(data).sha256).name == "small"
    assert refusal(data, expected_sha256="0" * 64).code == Code.SHA


def test_every_truncation_is_refused():
    data = small_bundle()
    for length in range(len(data)):
        refusal(data[:length])


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(data):
    refusal(data)
    refusal(MAGIC + data)


@settings(max_examples=200)
@given(st.data())
def test_a_graph_with_a_flipped_byte_is_refused_or_still_what_it_must_be(data):
    """Nothing but `ProtocolError` comes out of the protobuf walker, whatever is in the file."""
    files = small_files()
    name = data.draw(st.sampled_from(sorted(set(files) - {INITIAL})))
    at = data.draw(st.integers(0, len(files[name]) - 1))
    broken = bytearray(files[name])
    broken[at] ^= data.draw(st.integers(1, 255))
    try:
        read = Bundle.read(pack_bundle(manifest(), {**files, name: bytes(broken)}))
    except ProtocolError:
        return
    assert OnnxFile.read(read.graph("train")).outputs[0].name == "w.next"


def test_a_bundle_above_the_limit_is_refused_unread(monkeypatch):
    data = small_bundle()
    monkeypatch.setattr(bundle_module, "MAX_BUNDLE_BYTES", len(data) - 1)
    assert refusal(data).code == Code.SIZE


def repacked(change):
    """The small bundle after `change` was done to what it unpacks to: (manifest, files)."""
    content = msgpack.unpackb(zlib.decompress(small_bundle()[len(MAGIC) :]))
    fields = json.loads(content["manifest"])
    change(fields, content["files"])
    content["manifest"] = json.dumps(fields).encode()
    return MAGIC + zlib.compress(msgpack.packb(content))


def change_nothing(fields, files):
    pass


def change_bytes_of_a_file(fields, files):
    files["float.onnx"] = files["float.onnx"][:-1] + b"\x00"


def lengthen_a_file(fields, files):
    files["float.onnx"] += b"\x00"


def drop_a_file(fields, files):
    del files["int8.onnx"]


def add_a_file(fields, files):
    files["setup.py"] = b"import os"


def drop_a_graph(fields, files):
    del fields["graphs"]["int8"]


def add_a_graph(fields, files):
    fields["graphs"]["extra"] = "float.onnx"


def another_schema(fields, files):
    fields["v"] = 2


def another_fingerprint(fields, files):
    fields["fingerprint"] = "0" * 32


def a_path_for_a_name(fields, files):
    fields["graphs"]["float"] = "../float.onnx"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (change_bytes_of_a_file, Code.SHA),
        (lengthen_a_file, Code.SIZE),
        (drop_a_file, Code.SCHEMA),
        (add_a_file, Code.SCHEMA),
        (drop_a_graph, Code.SCHEMA),
        (add_a_graph, Code.SCHEMA),
        (another_schema, Code.SCHEMA),
        (another_fingerprint, Code.FINGERPRINT),
        (a_path_for_a_name, Code.SCHEMA),
    ],
)
def test_a_manifest_that_does_not_fit_its_files_is_refused(change, code):
    assert Bundle.read(repacked(change_nothing)).name == "small"
    assert refusal(repacked(change)).code == code


@pytest.mark.parametrize("field", sorted(set(manifest()) - {"description"}))
def test_every_field_of_the_manifest_is_needed(field):
    fields = manifest()
    del fields[field]
    assert refusal(pack_bundle(fields, small_files())).code == Code.SCHEMA


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_an_initial_version_that_is_not_finite_is_refused(wrong):
    assert refusal(pack_bundle(manifest(), small_files(initial=np.full(7, wrong, "<f4")))).code == Code.NAN


def test_an_initial_version_of_another_length_is_refused():
    assert refusal(pack_bundle(manifest(), small_files(initial=np.zeros(8, "<f4")))).code == Code.SIZE


def test_an_operator_of_another_domain_is_refused():
    models = small_models()
    models["train"].graph.node[0].domain = "com.example"
    models["train"].graph.node[0].op_type = "Shell"
    assert "com.example.Shell" in refusal_of(models).message


def test_another_operator_set_is_refused():
    models = small_models()
    models["float"].opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert "ai.onnx" in refusal_of(models).message


def test_a_tensor_stored_in_another_file_is_refused():
    models = small_models()
    stored = models["float"].graph.initializer[0]
    stored.ClearField("raw_data")
    stored.data_location = TensorProto.EXTERNAL
    stored.external_data.add(key="location", value="/etc/passwd")
    assert refusal_of(models).code == Code.SCHEMA


def test_functions_are_refused():
    models = small_models()
    nodes = [helper.make_node("Identity", ["a"], ["b"])]
    models["float"].functions.append(
        helper.make_function("", "f", ["a"], ["b"], nodes, opset_imports=[helper.make_opsetid("", 17)])
    )
    assert "field 25 of an ONNX model" in refusal_of(models).message


def test_subgraphs_are_refused():
    models = small_models()
    body = helper.make_graph([], "body", [], [])
    branch = helper.make_node("If", ["c"], ["d"], then_branch=body, else_branch=body)
    models["float"].graph.node.append(branch)
    assert "field 6 of an ONNX attribute" in refusal_of(models).message


def test_a_graph_given_twice_is_refused():
    """protobuf would merge the two, and see another graph than we checked."""
    data = small_models()["float"].SerializeToString()
    with pytest.raises(ProtocolError, match="twice"):
        OnnxFile.read(data + data)


@pytest.mark.parametrize("name", list(small_models()))
def test_a_graph_with_one_more_input_is_refused(name):
    models = small_models()
    models[name].graph.input.append(value("more", [1]))
    assert name in refusal_of(models).message


@pytest.mark.parametrize("name", list(small_models()))
@pytest.mark.parametrize("field", ["input", "output"])
def test_a_graph_whose_values_have_another_type_is_refused(name, field):
    models = small_models()
    getattr(models[name].graph, field)[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    assert refusal_of(models).code == Code.SCHEMA


@pytest.mark.parametrize("name", ["train", "evaluate", "int8", "float"])
def test_a_batch_of_one_fixed_size_is_refused(name):
    models = small_models()
    for x in models[name].graph.input:
        if x.name == "x":
            x.type.tensor_type.shape.dim[0].dim_value = 32
    assert "[32, 2]" in refusal_of(models).message


def test_outputs_are_held_to_their_order():
    models = small_models()
    outputs = models["train"].graph.output
    outputs.insert(0, outputs.pop(2))
    assert "w.momentum.next" in refusal_of(models).message


def test_the_int8_graph_stores_what_quantize_gives():
    models = small_models()
    models["int8"].graph.initializer[0].CopyFrom(numpy_helper.from_array(W.T.astype(np.int8), "w_int8"))
    assert "w_int8" in refusal_of(models).message


def test_the_float_graph_stores_every_parameter():
    models = small_models()
    models["float"].graph.initializer[0].name = "v"
    assert "'w' float32[3, 2]" in refusal_of(models).message


def test_a_billion_elements_are_refused_before_they_are_allocated():
    models = small_models()
    models["float"].graph.initializer[0].dims[0] = 1 << 40
    assert refusal_of(models).code == Code.SCHEMA
    models = small_models()
    models["float"].graph.value_info.append(value("big", [1 << 20, 1 << 20]))
    assert refusal_of(models).code == Code.SCHEMA


# --- what an old bundle does not have ------------------------------------------------------------------------
def test_a_bundle_without_the_optional_fields_is_a_plain_one():
    read = Bundle.read(small_bundle())
    assert (read.better, read.feeds, read.personal.shape, read.personal_tensors) == ("higher", (), (0,), {})
    assert [e.name for e in read.float_entries] == ["w"]


def feeding(*feeds):
    """The small model with a training graph that takes the feeds."""
    models = small_models()
    inputs = {"seed": value("seed", [], TensorProto.INT64), "base": value("w.base", [3, 2])}
    models["train"].graph.input.extend(inputs[feed] for feed in feeds)
    return small_files(models)


@pytest.mark.parametrize("feeds", [[], ["seed"], ["base"], ["seed", "base"]])
@pytest.mark.parametrize("taken", [[], ["seed"], ["base"], ["seed", "base"]])
def test_the_training_graph_takes_the_feeds_of_the_manifest_and_no_others(feeds, taken):
    data = pack_bundle(manifest(feeds=feeds, better="lower"), feeding(*taken))
    if feeds == taken:
        assert (Bundle.read(data).feeds, Bundle.read(data).better) == (tuple(feeds), "lower")
    else:
        assert refusal(data).code == Code.SCHEMA


@pytest.mark.parametrize("wrong", [{"feeds": ["clock"]}, {"feeds": ["seed", "seed"]}, {"better": "larger"}])
def test_a_feed_or_a_direction_that_nobody_knows_is_refused(wrong):
    assert refusal(pack_bundle(manifest(**wrong), feeding("seed"))).code == Code.SCHEMA


def personal_bundle(personal=None):
    """The small model with a bias that stays on the device: `logits = x @ w.T + head`."""
    models, head = small_models(), value("head", [3])
    node = helper.make_node
    for name in ("train", "evaluate", "quantize"):
        models[name].graph.input.append(head)
    models["train"].graph.node.append(node("Identity", ["head"], ["head.next"]))
    models["train"].graph.output.insert(2, value("head.next", [3]))
    models["quantize"].graph.node.append(node("Identity", ["head"], ["head_float"]))
    models["quantize"].graph.output.append(value("head_float", [3]))
    for name, stored in (("int8", "head_float"), ("float", "head")):
        models[name].graph.node[-1].input.append(stored)
        models[name].graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), stored))
    layout = ModelLayout((*LAYOUT.entries[:2], TensorEntry("head", (3,), "personal"), LAYOUT.entries[2]))
    files = small_files(models) | ({} if personal is None else {PERSONAL: np.array(personal, "<f4").tobytes()})
    return pack_bundle(manifest(layout=layout.to_rows(), fingerprint=layout.fingerprint), files)


def test_personal_entries_start_where_the_bundle_says_and_else_at_zero():
    """They are inputs of `quantize` and stored in the float graph, as parameters are."""
    read = Bundle.read(personal_bundle([1, 2, 3]))
    assert read.personal_tensors["head"].tolist() == read.personal.tolist() == [1, 2, 3]
    assert [e.name for e in read.float_entries] == ["w", "head"]
    assert Bundle.read(personal_bundle()).personal.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("personal", "code"), [([1, 2], Code.SIZE), ([1, 2, 3, 4], Code.SIZE), ([0, np.nan, 0], Code.NAN)]
)
def test_personal_values_of_another_length_or_not_finite_are_refused(personal, code):
    error = refusal(personal_bundle(personal))
    assert (error.code, PERSONAL in error.message) == (code, True)


def test_personal_values_that_the_layout_does_not_have_are_refused():
    assert refusal(pack_bundle(manifest(), {**small_files(), PERSONAL: bytes(4)})).code == Code.SIZE


def test_filled_initializers_are_what_the_runtime_computes_with():
    graph = small_files()["float.onnx"]
    filled = fill_initializers(graph, {"w": -W})
    x = np.array([[1, 2]], np.float32)
    for data, w in ((graph, W), (filled, -W)):
        (logits,) = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})
        np.testing.assert_array_equal(logits, x @ w.T)


@given(arrays(np.float32, (3, 2), elements=st.floats(width=32)), arrays(np.int8, (3, 2)))
def test_filling_changes_the_named_tensors_and_nothing_else(w, codes):
    files = small_files()
    for name, key, tensor in (("float", "w", w), ("int8", "w_int8", codes)):
        original, filled = (
            onnx.load_from_string(g)
            for g in (files[f"{name}.onnx"], fill_initializers(files[f"{name}.onnx"], {key: tensor}))
        )
        np.testing.assert_array_equal(numpy_helper.to_array(filled.graph.initializer[0]), tensor)
        filled.graph.initializer[0].raw_data = original.graph.initializer[0].raw_data
        assert filled == original


@pytest.mark.parametrize("tensors", [{"v": W}, {"w": W.T}, {"w": W.astype(np.float64)}, {"w": W.astype(">f4").T}])
def test_an_initializer_is_filled_only_with_its_own_kind(tensors):
    with pytest.raises(ProtocolError):
        fill_initializers(small_files()["float.onnx"], tensors)


def test_the_shipped_bundle_is_read():
    read = Bundle.read((ROOT / "anabranch" / "data" / "fan_vibration.bundle").read_bytes())
    assert read.name == "fan_vibration"
    assert read.initial.shape == (read.layout.size,)
    assert not read.initial.flags.writeable


def test_a_bundle_of_the_first_format_is_read() -> None:
    """Some are in the field: the same content, not deflated."""
    plain = PLAIN_MAGIC + zlib.decompress(small_bundle()[len(MAGIC) :])
    assert Bundle.read(plain).layout == Bundle.read(small_bundle()).layout


def test_a_bundle_that_unpacks_to_too_much_is_refused_before_it_does() -> None:
    """A bomb of 64 KiB is not given 64 MiB and more."""
    bomb = MAGIC + zlib.compress(bytes(MAX_BUNDLE_BYTES + 1000), 9)
    assert refusal(bomb).code == Code.SIZE
    refusal(small_bundle()[:-3])
    refusal(small_bundle() + b"x")
