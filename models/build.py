"""From a `ModelSpec` to a bundle's bytes."""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fl_protocol.bundle import INITIAL, GraphName, pack_bundle
from models.quantization import int8
from models.spec import Input, ModelSpec
from models.step import Step, Tensors, build_module
from models.to_onnx import export


def build(spec: ModelSpec) -> bytes:
    """Compile and pack; the same bytes at every call. Raises `ConfigError` for what cannot be compiled."""
    step = Step(spec)
    layout = step.layout
    graphs = compile_graphs(step)
    files = {f"{name}.onnx": graph for name, graph in graphs.items()}
    initial = layout.join({name: tensor.numpy() for name, tensor in step.entries.items()})
    manifest = {
        "name": spec.name,
        "description": spec.description,
        "licence": spec.licence,
        "layout": layout.to_rows(),
        "fingerprint": layout.fingerprint,
        "input": {"x": _input_row(spec.x), "y": _input_row(spec.y)},
        "labels": list(spec.labels),
        "metric": spec.metric,
        "graphs": {name: f"{name}.onnx" for name in graphs},
        "hyper": dict(spec.hyper),
        "batch_size": spec.batch_size,
    }
    return pack_bundle(manifest, {**files, INITIAL: initial.astype("<f4").tobytes()})


def compile_graphs(step: Step, names: Sequence[GraphName] = get_args(GraphName)) -> dict[GraphName, bytes]:
    """The ONNX files of the named graphs."""
    return {name: _compile(step, name) for name in names}


def _compile(step: Step, name: GraphName) -> bytes:
    spec = step.spec
    forward = {**step.parameters, **step.statistics}
    x, y = (torch.zeros((1, *part.shape), dtype=part.dtype) for part in (spec.x, spec.y))
    match name:
        case "train":
            hyper = {name: torch.tensor(value) for name, value in sorted(spec.hyper.items())}
            return export(step.train, {**step.entries, "x": x, "y": y, **hyper}, step.constants)
        case "evaluate":
            return export(step.evaluate, {**forward, "x": x, "y": y}, step.constants)
        case "quantize":
            return export(step.quantize, forward, {})
        case "int8":
            return _inference(int8(Step(spec).module), x)  # a module of its own: the layers are replaced in place
        case "float":
            return _inference(build_module(spec), x)


def _inference(module: nn.Module, x: Tensor) -> bytes:
    module.eval()

    def logits(given: Tensors) -> Tensors:
        stored = {name: tensor for name, tensor in given.items() if name != "x"}
        return {"logits": functional_call(module, stored, (given["x"],))}

    return export(logits, {"x": x}, {**dict(module.named_parameters()), **dict(module.named_buffers())})


def _input_row(value: Input) -> dict[str, object]:
    return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
