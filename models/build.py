"""From a `ModelSpec` to a bundle's bytes."""

import math
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fl_protocol.bundle import INITIAL, PERSONAL, GraphName, pack_bundle
from fl_protocol.onnx_file import OnnxFile, fill_initializers
from fl_protocol.tensors import ModelLayout
from models.network import network
from models.spec import Input, ModelSpec
from models.step import Step, Tensors
from models.to_onnx import export

LARGE = 256  # elements of a stored tensor that is worth leaving out


def build(spec: ModelSpec) -> bytes:
    """Compile and pack; the same bytes at every call. Raises `ConfigError` for what cannot be compiled."""
    step = Step(spec)
    layout = step.layout
    graphs = compile_graphs(step)
    files = {f"{name}.onnx": _without_values(graph, name, layout, graphs) for name, graph in graphs.items()}
    files[INITIAL] = layout.join({name: tensor.numpy() for name, tensor in step.entries.items()}).tobytes()
    manifest: dict[str, object] = {
        "name": spec.name,
        "description": spec.description,
        "licence": spec.licence,
        "layout": layout.to_rows(),
        "fingerprint": layout.fingerprint,
        "input": {"x": _input_row(spec.x), "y": _input_row(spec.y)},
        "labels": list(spec.labels),
        "metric": spec.metric.name,
        "graphs": {name: f"{name}.onnx" for name in graphs},
        "hyper": spec.optimizer.hyper,
        "batch_size": spec.batch_size,
    }
    # Devices in the field may be older than these fields: a model that does without them leaves them out.
    if spec.metric.better != "higher":
        manifest["better"] = spec.metric.better
    if step.feeds:
        manifest["feeds"] = list(step.feeds)
    if step.personal:
        files[PERSONAL] = b"".join(tensor.numpy().astype("<f4").tobytes() for tensor in step.personal.values())
    return pack_bundle(manifest, files)


def _without_values(graph: bytes, name: GraphName, layout: ModelLayout, graphs: Mapping[GraphName, bytes]) -> bytes:
    """The graph; of one that is filled with a version before it is used, the large values that it is not used with."""
    filled = {
        "int8": [spec.name for spec in OnnxFile.read(graphs["quantize"]).outputs],
        "float": [entry.name for entry in layout.entries],
    }.get(name, [])
    stored = OnnxFile.read(graph).initializers
    large = [n for n in filled if n in stored and math.prod(stored[n].shape) >= LARGE]
    return fill_initializers(graph, {n: np.zeros(stored[n].shape, stored[n].dtype) for n in large})


def compile_graphs(step: Step, names: Sequence[GraphName] = get_args(GraphName)) -> dict[GraphName, bytes]:
    """The ONNX files of the named graphs."""
    return {name: _compile(step, name) for name in names}


def _compile(step: Step, name: GraphName) -> bytes:
    spec = step.spec
    x, y = (torch.zeros((1, *part.shape), dtype=part.dtype) for part in (spec.x, spec.y))
    match name:
        case "train":
            return export(step.train, *training_inputs(step))
        case "evaluate":
            return export(step.evaluate, {**step.forward, "x": x, "y": y}, step.constants)
        case "quantize":
            assert step.kept_float is not None  # found before the tracing begins
            return export(step.quantize, step.forward, step.constants)
        case "int8":
            return _inference(step.int8_module, x, spec, {name: f"{name}.float" for name in step.kept_float})
        case "float":
            return _inference(network(spec, quantized=False), x, spec, {})


def training_inputs(step: Step) -> tuple[Tensors, Tensors]:
    """What the training graph takes, and what it stores, each at an initial value."""
    spec = step.spec
    x, y = (torch.zeros((1, *part.shape), dtype=part.dtype) for part in (spec.x, spec.y))
    hyper = {name: torch.tensor(value) for name, value in sorted(spec.optimizer.hyper.items())}
    seed = {"seed": torch.tensor(0)} if "seed" in step.feeds else {}
    base = {f"{n}.base": p for n, p in step.parameters.items()} if "base" in step.feeds else {}
    return {**step.entries, "x": x, "y": y, **hyper, **seed, **base}, step.constants


def _inference(module: nn.Module, x: Tensor, spec: ModelSpec, renamed: Mapping[str, str]) -> bytes:
    module.eval()
    stored = {**dict(module.named_parameters()), **dict(module.named_buffers())}

    def logits(given: Tensors) -> Tensors:
        state = {name: given[renamed.get(name, name)] for name in stored}
        return {"logits": class_logits(functional_call(module, state, (given["x"],)), spec)}

    return export(logits, {"x": x}, {renamed.get(name, name): tensor for name, tensor in stored.items()})


def class_logits(output: Tensor, spec: ModelSpec) -> Tensor:
    """What a bundle's inference graphs give: one logit z for two labels becomes (0, z), whose softmax is the same."""
    if len(spec.labels) != 2 or output.shape[1:] == (2,):
        return output
    logit = output.reshape(-1, 1)
    return torch.cat([torch.zeros_like(logit), logit], 1)


def _input_row(value: Input) -> dict[str, object]:
    return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
