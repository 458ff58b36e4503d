"""A model's five graphs, each as a function of named tensors: what `to_onnx.export` compiles.

A function here takes the entries of the model's layout, the examples and the hyperparameters by name, and
returns its results by name. Nothing is stored in between: the device holds the state.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fl_protocol.tensors import ModelLayout, TensorEntry
from models.quantization import fake_quantized, quantized, quantized_layers
from models.spec import ModelSpec

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """The functions of one model. `quantized=False` leaves fake-quantization out: a yardstick for the gates."""

    spec: ModelSpec
    quantized: bool = True

    @cached_property
    def module(self) -> nn.Module:
        """The network that trains."""
        module = build_module(self.spec)
        return fake_quantized(module) if self.quantized else module

    @cached_property
    def parameters(self) -> Tensors:
        """Initial values of what learns."""
        return {name: p.detach() for name, p in self.module.named_parameters()}

    @cached_property
    def statistics(self) -> Tensors:
        """Initial values of what is measured: the activation ranges."""
        layers = quantized_layers(self.module)
        return {f"{name}.{key}": b for name, layer in layers for key, b in layer.named_buffers()}

    @cached_property
    def constants(self) -> Tensors:
        """The module's own buffers, which never change."""
        return {name: b for name, b in self.module.named_buffers() if name not in self.statistics}

    @cached_property
    def layout(self) -> ModelLayout:
        """Parameters, then activation ranges, then a momentum for each parameter."""
        rows = [TensorEntry(name, tuple(t.shape), "parameter") for name, t in self.parameters.items()]
        rows += [TensorEntry(name, tuple(t.shape), "statistic") for name, t in self.statistics.items()]
        rows += [TensorEntry(f"{name}.momentum", tuple(t.shape), "optimizer") for name, t in self.parameters.items()]
        return ModelLayout(tuple(rows))

    @property
    def entries(self) -> Tensors:
        """Every entry of the layout at its initial value."""
        momenta = {f"{name}.momentum": torch.zeros_like(p) for name, p in self.parameters.items()}
        return {**self.parameters, **self.statistics, **momenta}

    def train(self, given: Tensors) -> Tensors:
        """One step of SGD with momentum and weight decay on the mean loss of a batch; ranges follow the batch."""
        parameters = {name: given[name].detach().requires_grad_() for name in self.parameters}
        self.module.train()
        logits = self._forward({**given, **parameters})
        loss = self.spec.loss(logits, given["y"]).mean()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        following: Tensors = {}
        momenta: Tensors = {}
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            decayed = gradient + given["weight_decay"] * parameter.detach()
            momenta[f"{name}.momentum.next"] = given["momentum"] * given[f"{name}.momentum"] + decayed
            following[f"{name}.next"] = parameter.detach() - given["learning_rate"] * momenta[f"{name}.momentum.next"]
        for name, layer in quantized_layers(self.module):
            following |= {f"{name}.{key}.next": t for key, t in layer.observed.items()}
        correct = self.spec.correct(logits.detach(), given["y"]).sum()
        return {**following, **momenta, "loss": loss.detach(), "correct": correct}

    def evaluate(self, given: Tensors) -> Tensors:
        """Summed loss and summed metric of a batch, with the ranges as they stand."""
        logits = self.logits(given)
        return {
            "loss_sum": self.spec.loss(logits, given["y"]).sum(),
            "correct": self.spec.correct(logits, given["y"]).sum(),
        }

    def logits(self, given: Tensors) -> Tensor:
        """The fake-quantized network's output, shape (B, classes)."""
        self.module.eval()
        return self._forward(given)

    def quantize(self, given: Tensors) -> Tensors:
        """What the int8 model stores, from parameters and ranges."""
        stored: Tensors = {}
        for name, _ in quantized_layers(self.module):
            of_layer = {key: given[f"{name}.{key}"] for key in ("weight", "bias", "input_low", "input_high")}
            stored |= {f"{name}.{key}": t for key, t in quantized(**of_layer).items()}
        return stored

    def _forward(self, given: Tensors) -> Tensor:
        state = {name: given[name] for name in (*self.parameters, *self.statistics, *self.constants)}
        logits: Tensor = functional_call(self.module, state, (given["x"],))
        return logits


def build_module(spec: ModelSpec) -> nn.Module:
    """The author's network with its initial parameters, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return spec.module()
