"""A released version handed out: an int8 ONNX model, a float one, and a page that says what they are."""

import hashlib
import json
from pathlib import Path

import numpy as np

from broker_aggregator.evaluation import open_session
from broker_aggregator.events import Release
from fl_protocol.bundle import Bundle
from fl_protocol.durable import write_durably
from fl_protocol.onnx_file import fill_initializers
from fl_protocol.tensors import Vector


def int8_model(bundle: Bundle, vector: Vector) -> bytes:
    """The version as a true int8 ONNX model, made without torch: `quantize` fills the `int8` graph's initializers."""
    session = open_session(bundle.graph("quantize"))
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    tensors = bundle.tensors(vector)
    feed = {name: tensor for name, tensor in tensors.items() if name in wanted}
    return fill_initializers(bundle.graph("int8"), dict(zip(names, session.run(names, feed), strict=True)))


def float_model(bundle: Bundle, vector: Vector) -> bytes:
    """The version as a plain float32 ONNX model."""
    tensors = bundle.tensors(vector)
    stored = {e.name: np.ascontiguousarray(tensors[e.name]) for e in bundle.float_entries}
    return fill_initializers(bundle.graph("float"), stored)


def export_version(bundle: Bundle, release: Release, value: float | None, folder: Path) -> dict[str, Path]:
    """Write `int8.onnx`, `float.onnx` and `model.json` into `folder`; raises unless onnxruntime loads them."""
    files = {"int8": int8_model(bundle, release.vector), "float": float_model(bundle, release.vector)}
    page = {
        "model": bundle.name,
        "task": release.task,
        "version": release.version,
        "parameters_sha256": release.sha256,
        "bundle_sha256": bundle.sha256,
        "input": {"name": "x", "shape": ["batch", *bundle.x_shape], "dtype": bundle.x_dtype},
        "labels": bundle.labels,
        bundle.metric: value,
        "files": {f"{k}.onnx": {"sha256": hashlib.sha256(v).hexdigest(), "bytes": len(v)} for k, v in files.items()},
    }
    written = {}
    for name, data in files.items():
        open_session(data)
        written[name] = folder / f"{name}.onnx"
        write_durably(written[name], data)
    written["model"] = folder / "model.json"
    write_durably(written["model"], json.dumps(page, indent=2).encode() + b"\n")
    return written
