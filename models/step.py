"""A model's five graphs, each as a function of named tensors: what `to_onnx.export` compiles.

A function here takes the entries of the model's layout, the examples and the hyperparameters by name, and
returns its results by name. Nothing is stored in between: the device holds the state.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fl_protocol.bundle import Feed
from fl_protocol.errors import ConfigError, ProtocolError
from fl_protocol.tensors import ModelLayout, Role, TensorEntry
from models.dropout import Dropout
from models.network import build_module, network, probe, training_mode
from models.quantization import below, int8, int8_codes, measuring_layers
from models.spec import ModelSpec

__all__ = ["Step", "Tensors", "build_module"]

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """The functions of one model. `quantized=False` leaves fake-quantization out: a yardstick for the gates.

    Raises `ConfigError` on first use for a spec that does not fit its module.
    """

    spec: ModelSpec
    quantized: bool = True

    @cached_property
    def module(self) -> nn.Module:
        """The network that trains."""
        return network(self.spec, quantized=self.quantized)

    @cached_property
    def trained(self) -> Tensors:
        """Initial values of what learns, on the gateway or on the device alone."""
        frozen = self.spec.frozen
        return {n: p.detach() for n, p in self.module.named_parameters() if p.requires_grad and not below(n, frozen)}

    @cached_property
    def measured(self) -> Tensors:
        """Initial values of what is measured in a training forward: activation ranges, running moments."""
        probe(self.module, self.spec, list(self.trained))
        buffers = dict(self.module.named_buffers())
        return {
            f"{n}.{key}": buffers[f"{n}.{key}"] for n, layer in measuring_layers(self.module) for key in layer.observed
        }

    @cached_property
    def constants(self) -> Tensors:
        """What never changes: frozen parameters, and buffers that nothing measures."""
        state = {n: t.detach() for n, t in (*self.module.named_parameters(), *self.module.named_buffers())}
        changing = {*self.trained, *self.measured, *self._seeds}
        return {name: tensor for name, tensor in state.items() if name not in changing}

    @property
    def parameters(self) -> Tensors:
        """What learns and is sent."""
        return self._sent(self.trained)

    @property
    def statistics(self) -> Tensors:
        """What is measured and sent."""
        return self._sent(self.measured)

    @property
    def personal(self) -> Tensors:
        """What learns or is measured, and never leaves the device."""
        return {n: t for n, t in (self.trained | self.measured).items() if below(n, self.spec.personal)}

    @property
    def forward(self) -> Tensors:
        """All that a forward pass takes of the layout, at its initial values."""
        return {**self.parameters, **self.statistics, **self.personal}

    @property
    def entries(self) -> Tensors:
        """Every entry of the layout at its initial value."""
        return {**self.forward, **self.spec.optimizer.entries(self.trained)}

    @cached_property
    def layout(self) -> ModelLayout:
        """Parameters, statistics, personal entries, optimizer state. Raises `ConfigError` for names that clash."""
        roles: dict[Role, Tensors] = {
            "parameter": self.parameters,
            "statistic": self.statistics,
            "personal": self.personal,
            "optimizer": self.spec.optimizer.entries(self.trained),
        }
        rows = [TensorEntry(name, tuple(t.shape), role) for role, part in roles.items() for name, t in part.items()]
        try:
            return ModelLayout(tuple(rows))
        except ProtocolError as error:
            raise ConfigError(f"{self.spec.name}: {error.message}", "see the module's named_parameters()") from None

    @property
    def feeds(self) -> tuple[Feed, ...]:
        """What the training graph takes beside entries, examples and hyperparameters."""
        return (*(("seed",) if self._seeds else ()), *self.spec.optimizer.feeds)

    def train(self, given: Tensors) -> Tensors:
        """One step of the optimizer on the mean loss of a batch; what is measured follows the batch."""
        trained = {name: given[name].detach().requires_grad_() for name in self.trained}
        training_mode(self.module, self.spec.frozen)
        seeds = dict.fromkeys(self._seeds, given["seed"]) if self._seeds else {}
        output = self._forward({**given, **trained, **seeds})
        loss = self.spec.loss(output, given["y"]).mean()
        gradients = torch.autograd.grad(loss, list(trained.values()))
        following = self.spec.optimizer.step(
            {name: p.detach() for name, p in trained.items()}, dict(zip(trained, gradients, strict=True)), given
        )
        for name, layer in measuring_layers(self.module):
            following |= {f"{name}.{key}": tensor for key, tensor in layer.observed.items()}
        correct = self.spec.metric.score(output.detach(), given["y"]).sum()
        results = {f"{entry.name}.next": following[entry.name] for entry in self.layout.entries}
        return {**results, "loss": loss.detach(), "correct": correct}

    def evaluate(self, given: Tensors) -> Tensors:
        """Summed loss and summed metric of a batch, with the statistics as they stand."""
        output = self.logits(given)
        return {
            "loss_sum": self.spec.loss(output, given["y"]).sum(),
            "correct": self.spec.metric.score(output, given["y"]).sum(),
        }

    def logits(self, given: Tensors) -> Tensor:
        """The fake-quantized network's output as its module gives it, one row an example."""
        self.module.eval()
        return self._forward(given)

    def quantize(self, given: Tensors) -> Tensors:
        """What the int8 model stores, from parameters, statistics, personal entries and constants.

        What is called there as the entry that it comes from (an embedding, a layer in `keep_float`) is `NAME.float`.
        """
        codes = int8_codes(self.module, given)
        return {
            f"{name}.float" if name in self.kept_float else name: tensor
            for name, tensor in codes.items()
            if name not in self.constants or name in self.kept_float
        }

    @cached_property
    def int8_module(self) -> nn.Module:
        """The true int8 network at the initial version."""
        return int8(network(self.spec, quantized=True))

    @cached_property
    def kept_float(self) -> tuple[str, ...]:
        """What the int8 network stores in float under the name that it has in this one; not what never changes."""
        given = self.constants | self.forward
        codes = int8_codes(self.module, given)
        return tuple(n for n, t in codes.items() if n in self.forward or (n in given and t is not given[n]))

    @cached_property
    def _seeds(self) -> tuple[str, ...]:
        """Buffers through which the layers that drop something out get their seed."""
        training_mode(self.module, self.spec.frozen)
        layers = self.module.named_modules()
        return tuple(f"{n}.seed" for n, d in layers if isinstance(d, Dropout) and d.training and d.rate > 0)

    def _sent(self, tensors: Tensors) -> Tensors:
        return {name: tensor for name, tensor in tensors.items() if not below(name, self.spec.personal)}

    def _forward(self, given: Tensors) -> Tensor:
        state = {name: given[name] for name in (*self.trained, *self.measured, *self.constants)}
        state |= {name: given[name] for name in self._seeds if name in given}
        output: Tensor = functional_call(self.module, state, (given["x"],))
        return output
