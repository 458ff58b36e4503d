# mypy: allow-subclassing-any
"""The same networks trained by torch's own means: its fake quantization, its layers, its optimizers.

What is fake-quantized is what the workshop fake-quantizes: each layer's input per tensor with a moving range, its
weight per output channel, and its output where an int8 kernel wants that. torch's fused observer does each in one
operation. Two differences favour torch: its GRU and LSTM are one kernel, whose state is not rounded, and the metric is
not computed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from torch.func import functional_call

from models.network import build_module, network, training_mode
from models.optimizers import Adam, Optimizer
from models.quantization import below
from models.quantization.affine import FakeQuantAffine
from models.quantization.recurrent import FakeQuantRecurrent
from models.spec import ModelSpec

Turn = Callable[[], object]  # one step from the state that the last one left


class NativeQuantization(nn.Module):
    """A layer whose parameters, input and output go through torch's fake quantization."""

    def __init__(self, layer: nn.Module, bits: int, *, rounds_input: bool, rounds_output: bool) -> None:
        super().__init__()
        self.layer = layer
        self.input = _per_tensor() if rounds_input else None
        self.output = _per_tensor() if rounds_output else None
        names = [name for name, _ in layer.named_parameters() if name.startswith("weight")]
        self.weights = nn.ModuleDict({name: _per_channel(bits) for name in names})

    def forward(self, x: Tensor) -> Any:
        """The layer's own forward on rounded operands."""
        x = x if self.input is None else self.input(x)
        rounded = {name: fake(self.layer.get_parameter(name)) for name, fake in self.weights.items()}
        y = functional_call(self.layer, rounded, (x,))
        return y if self.output is None else self.output(y)


def native_module(spec: ModelSpec, *, quantized: bool) -> nn.Module:
    """The author's module, in training mode; fake-quantized by torch where the workshop's version is by us."""
    module = build_module(spec)
    if quantized:
        places = dict(network(spec, quantized=True).named_modules())
        for name, ours in places.items():
            if isinstance(ours, FakeQuantAffine):
                layer, rounds_output = module.get_submodule(name), ours.output is not None
                native = NativeQuantization(
                    layer, spec.bits, rounds_input=ours.rounds_input, rounds_output=rounds_output
                )
                module.set_submodule(name, native)
            elif isinstance(ours, FakeQuantRecurrent):
                layer = module.get_submodule(name)
                native = NativeQuantization(layer, spec.bits, rounds_input=True, rounds_output=False)
                module.set_submodule(name, native)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and not below(name.replace(".layer.", "."), spec.frozen))
    training_mode(module, spec.frozen)
    return module


def torch_step(spec: ModelSpec, module: nn.Module, x: Any, y: Any) -> Turn:
    """A step of eager torch as one writes it by hand: forward, backward, the spec's optimizer."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = _optimizer(spec.optimizer, learning)
    base = [parameter.detach().clone() for parameter in learning]
    inputs, targets = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(y))
    proximal, clip_norm = spec.optimizer.proximal, spec.optimizer.clip_norm

    def turn() -> None:
        optimizer.zero_grad()
        spec.loss(module(inputs), targets).mean().backward()
        if proximal is not None:
            for parameter, start in zip(learning, base, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - start, alpha=proximal)
        if clip_norm:
            nn.utils.clip_grad_norm_(learning, clip_norm)
        optimizer.step()

    return turn


def _optimizer(optimizer: Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    hyper = optimizer.hyper
    if isinstance(optimizer, Adam):
        return torch.optim.AdamW(
            parameters,
            hyper["learning_rate"],
            (hyper["beta1"], hyper["beta2"]),
            hyper["epsilon"],
            weight_decay=hyper["weight_decay"],
        )
    return torch.optim.SGD(parameters, hyper["learning_rate"], hyper["momentum"], weight_decay=hyper["weight_decay"])


def _per_tensor() -> nn.Module:
    return FusedMovingAvgObsFakeQuantize(
        observer=MovingAverageMinMaxObserver,
        quant_min=0,
        quant_max=255,
        dtype=torch.quint8,
        qscheme=torch.per_tensor_affine,
    )


def _per_channel(bits: int) -> nn.Module:
    largest = 2 ** (bits - 1) - 1
    return FusedMovingAvgObsFakeQuantize(
        observer=MovingAveragePerChannelMinMaxObserver,
        quant_min=-largest,
        quant_max=largest,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )
