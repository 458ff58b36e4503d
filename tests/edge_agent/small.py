"""A model of four tensors with everything that a bundle may ask of a trainer: its step tells what it was fed.

logits = x @ w.T + head; a step pulls `w` halfway to its base version, moves the personal `head` by `HEAD_STEP`, and
keeps `seed` modulo 1000 in `high`. `extra` nodes join the training graph.
"""

from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fl_protocol.bundle import INITIAL, PERSONAL, Bundle, pack_bundle
from fl_protocol.tensors import ModelLayout, TensorEntry

LAYOUT = ModelLayout(
    (
        TensorEntry("w", (3, 2), "parameter"),
        TensorEntry("high", (), "statistic"),
        TensorEntry("head", (3,), "personal"),
        TensorEntry("w.momentum", (3, 2), "optimizer"),
    )
)
INITIAL_VERSION = np.arange(7, dtype=np.float32)
HEAD = np.array([0, 0, 50], np.float32)  # at first every device says `c`
HEAD_STEP = np.array([10, 0, 0], np.float32)  # after six steps it says `a`


def _value(name: str, shape: list[Any], dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def _stored(name: str, values: Any, dtype: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def model(nodes: list[NodeProto], inputs: list[Any], outputs: list[Any], stored: list[TensorProto]) -> bytes:
    """An ONNX file of opset 17."""
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    return data


def small_bundle(
    *feeds: str,
    extra: tuple[NodeProto, ...] = (),
    stored: tuple[TensorProto, ...] = (),
    loss: str = "mean",
    labels: tuple[str, ...] = ("a", "b", "c"),
) -> bytes:
    """The bundle's bytes; its training graph takes what `feeds` names, and gives the value `loss` as its loss."""
    node = helper.make_node
    x, y = _value("x", ["batch", 2]), _value("y", ["batch"], TensorProto.INT64)
    state = [_value(e.name, list(e.shape)) for e in LAYOUT.entries]
    following = [_value(f"{e.name}.next", list(e.shape)) for e in LAYOUT.entries]
    forward = [node("Gemm", ["x", "w", "head"], ["logits"], transB=1)]
    fed = {"seed": _value("seed", [], TensorProto.INT64), "base": _value("w.base", [3, 2])}
    kept = [node("Mod", ["seed", "thousand"], ["rest"]), node("Cast", ["rest"], ["high.next"], to=1)]
    train = [
        *forward,
        node("Sub", ["w", "w.base" if "base" in feeds else "w.momentum"], ["off"]),
        node("Mul", ["off", "rate"], ["pull"]),
        node("Sub", ["w", "pull"], ["w.next"]),
        node("Add", ["head", "head_step"], ["head.next"]),
        node("Add", ["w.momentum", "one"], ["w.momentum.next"]),
        *(kept if "seed" in feeds else [node("Identity", ["high"], ["high.next"])]),
        node("ReduceMean", ["logits"], ["mean"], keepdims=0),
        node("ReduceMax", ["logits"], ["correct"], keepdims=0),
        *extra,
        node("Identity", [loss], ["loss"]),
    ]
    counted = [
        node("ReduceSum", ["logits"], ["loss_sum"], keepdims=0),
        node("ReduceMax", ["logits"], ["correct"], keepdims=0),
    ]
    constants = [_stored("thousand", 1000, np.int64), _stored("one", 1), _stored("head_step", HEAD_STEP), *stored]
    logits = _value("logits", ["batch", 3])
    codes = {"w_int8": np.zeros((3, 2), np.int8), "head_float": np.zeros(3, np.float32)}
    files = {
        "train.onnx": model(
            train,
            [*state, x, y, _value("rate", []), *(fed[feed] for feed in feeds)],
            [*following, _value("loss", []), _value("correct", [])],
            constants,
        ),
        "evaluate.onnx": model(
            [*forward, *counted], [*state[:3], x, y], [_value("loss_sum", []), _value("correct", [])], []
        ),
        "quantize.onnx": model(
            [node("Cast", ["w"], ["w_int8"], to=TensorProto.INT8), node("Identity", ["head"], ["head_float"])],
            state[:3],
            [_value("w_int8", [3, 2], TensorProto.INT8), _value("head_float", [3])],
            [],
        ),
        "int8.onnx": model(
            [
                node("Cast", ["w_int8"], ["w"], to=TensorProto.FLOAT),
                node("Gemm", ["x", "w", "head_float"], ["logits"], transB=1),
            ],
            [x],
            [logits],
            [numpy_helper.from_array(value, name) for name, value in codes.items()],
        ),
        "float.onnx": model(forward, [x], [logits], [_stored("w", np.zeros((3, 2))), _stored("head", HEAD)]),
        INITIAL: INITIAL_VERSION.astype("<f4").tobytes(),
        PERSONAL: HEAD.astype("<f4").tobytes(),
    }
    manifest = {
        "name": "small",
        "layout": LAYOUT.to_rows(),
        "fingerprint": LAYOUT.fingerprint,
        "input": {"x": {"shape": [2], "dtype": "float32"}, "y": {"shape": [], "dtype": "int64"}},
        "labels": list(labels),
        "metric": "accuracy",
        "graphs": {name.removesuffix(".onnx"): name for name in files if name.endswith(".onnx")},
        "hyper": {"rate": 0.5},
        "batch_size": 4,
        "feeds": list(feeds),
    }
    return pack_bundle(manifest, files)


def read_small(*feeds: str) -> Bundle:
    """The same, read."""
    return Bundle.read(small_bundle(*feeds))
