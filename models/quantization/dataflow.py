# mypy: allow-subclassing-any
"""Where each layer stands in its network: what comes before it and what follows, by the flow of data."""

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812

from fl_protocol.errors import ConfigError
from models.quantization.batch_norm import BatchNorm
from models.quantization.layer import FakeQuantLayer

_FEWEST_CHANNELS = 4
_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d)
# ReLU, and what changes neither the order of values nor their grid: rounding before it or after it is the same.
_RELU: Final = {nn.ReLU, F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_"}
_MAX_POOLS: Final = {nn.MaxPool1d, nn.MaxPool2d, F.max_pool1d, F.max_pool2d}
_SAME_VALUES: Final = {
    *_MAX_POOLS,
    *(nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Unflatten),
    *(F.dropout, torch.flatten, torch.reshape, torch.permute, torch.transpose),
    *(torch.squeeze, torch.unsqueeze, "view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze"),
    *("contiguous",),
}
# What keeps values at or above zero that were so.
_KEEPS_SIGN: Final = {
    *_SAME_VALUES,
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d),
    *(nn.AdaptiveMaxPool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d),
    *(torch.mean, "mean", torch.sum, "sum", "amax", torch.amax, operator.getitem),
}
_NOT_NEGATIVE: Final = {*_RELU, nn.ReLU6, F.relu6, nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid"}


@dataclass(frozen=True)
class Place:
    """Where a layer stands.

    `norm`: name of the BatchNorm that takes its output and is alone in doing so, or "".
    `rectified`: a ReLU comes right after it (and after the BatchNorm), and nothing else takes its output.
    `rounds_output`: what follows does not round it again, so that it takes a grid of its own to compute in int8.
    `positive`: its input is never below zero.
    `pooled`: its input comes from a convolution that computes in float, through a maximum pooling.
    `output_pooled`: a maximum pooling is among those that take its output (after BatchNorm and ReLU).
    """

    norm: str = ""
    rectified: bool = False
    rounds_output: bool = False
    positive: bool = False
    pooled: bool = False
    output_pooled: bool = False


def rounds_input(layer: nn.Module) -> bool:
    """Whether a quantized layer takes its input in integers: all do but a convolution over planes of few channels.

    On those onnxruntime's int8 kernel is slower than the float one (docs/quantization.md); they come first in a
    network, where pictures have one channel or three.
    """
    return not (isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.in_channels < _FEWEST_CHANNELS)


NOWHERE: Final = Place()  # where nothing is known of what comes before and after


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Layers without parts are taken whole, the author's own as well as torch's."""
        return (
            not list(module.children()) or isinstance(module, BatchNorm) or bool(super().is_leaf_module(module, name))
        )


def places(module: nn.Module, quantized: Iterator[str] | tuple[str, ...]) -> dict[str, Place]:
    """The place of each layer named in `quantized`.

    Found by torch's symbolic trace. Of a module that it cannot follow (control flow that depends on values or sizes)
    nothing is known: its layers still get int8 versions, though slower ones.
    Raises `ConfigError` for a layer that is used twice, whose two inputs would have to share one range.
    """
    names = tuple(quantized)
    try:
        graph = _Tracer().trace(module)
    except Exception:  # whatever the author's code raises when it is fed with proxies
        return dict.fromkeys(names, NOWHERE)
    layers = dict(module.named_modules())
    calls = {node.target: node for node in graph.nodes if node.op == "call_module"}
    used = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for name in names:
        if used[name] > 1:
            raise ConfigError(
                f"the layer {name!r} is used {used[name]} times", "build one layer for each, or keep_float"
            )
    return {n: _place(calls[n], layers, set(names), used) if n in calls else NOWHERE for n in names}


def _place(node: fx.Node, layers: dict[str, nn.Module], quantized: set[str], used: Counter[str]) -> Place:
    layer = layers[node.target]
    positive, pooled = (find(node.args[0] if node.args else None, layers) for find in (_positive, _pooled))
    norm, rectified = "", False
    after = _sole_user(node)
    if (
        after is not None
        and after.op == "call_module"
        and _folds(layer, layers[after.target])
        and used[after.target] == 1
    ):
        norm, node = after.target, after
        after = _sole_user(node)
    if after is not None and _kind(after, layers) in _RELU:
        rectified, node = True, after
        after = _sole_user(node)
    output_pooled = any(_kind(user, layers) in _MAX_POOLS for user in node.users)
    while after is not None and _kind(after, layers) in _SAME_VALUES:
        after = _sole_user(after)
    rounded = after is not None and (after.op == "output" or _rounds(after, layers, quantized))
    rounds_output = isinstance(layer, _CONVOLUTIONS) and not rounded
    return Place(norm, rectified, rounds_output, positive, pooled, output_pooled)


def _folds(layer: nn.Module, norm: nn.Module) -> bool:
    channels = layer.out_channels if isinstance(layer, _CONVOLUTIONS) else getattr(layer, "out_features", None)
    return isinstance(norm, BatchNorm) and norm.num_features == channels


def _rounds(node: fx.Node, layers: dict[str, nn.Module], quantized: set[str]) -> bool:
    """Whether a layer rounds what it takes: those to be quantized (but see `rounds_input`), and those that are."""
    if node.op != "call_module":
        return False
    layer = layers[node.target]
    return isinstance(layer, FakeQuantLayer) or (node.target in quantized and rounds_input(layer))


def _positive(node: object, layers: dict[str, nn.Module]) -> bool:
    while isinstance(node, fx.Node):
        kind = _kind(node, layers)
        if kind in _NOT_NEGATIVE:
            return True
        if kind not in _KEEPS_SIGN:
            return False
        node = node.args[0] if node.args else None
    return False


def _pooled(node: object, layers: dict[str, nn.Module]) -> bool:
    pooled = False
    while isinstance(node, fx.Node):
        kind = _kind(node, layers)
        pooled = pooled or kind in _MAX_POOLS
        if node.op == "call_module" and not rounds_input(layers[node.target]):
            return pooled
        if kind not in _SAME_VALUES | _RELU and kind is not BatchNorm:
            return False
        node = node.args[0] if node.args else None
    return False


def _sole_user(node: fx.Node) -> fx.Node | None:
    """What takes a value, if that is one node that takes it as its first argument and nothing else asks for it."""
    users = list(node.users)
    return users[0] if len(users) == 1 and list(users[0].all_input_nodes) == [node] else None


def _kind(node: fx.Node, layers: dict[str, nn.Module]) -> object:
    """What a node does, as the sets above have it: a function, a method's name, or the class of a layer."""
    if node.op != "call_module":
        return node.target
    known = _KEEPS_SIGN | _NOT_NEGATIVE
    return next((kind for kind in type(layers[node.target]).__mro__ if kind in known), type(layers[node.target]))
