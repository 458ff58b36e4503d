# mypy: allow-subclassing-any, allow-untyped-calls
"""`nn.GRU` and `nn.LSTM`, replaced by layers that unroll time and compute the same in fewer operations.

An author writes torch's layers; `replaced` puts these in their place, with the same parameters under the same names.
They take and return what torch's do, but for a state to begin with, which is always zero here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from fl_protocol.errors import ConfigError
from models.recurrences import gru, lstm

State = Any  # h_n of a GRU, (h_n, c_n) of an LSTM: tensors (layers * directions, B, H)
GATES: Final = {nn.GRU: 3, nn.LSTM: 4}


@dataclass(frozen=True)
class Form:
    """What a recurrent layer is, apart from its parameters."""

    gates: int  # 3: a GRU, 4: an LSTM
    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool

    @classmethod
    def of(cls, layer: nn.RNNBase) -> "Form":
        """The form of torch's layer. Raises `ConfigError` for what a bundle cannot hold."""
        refused = _refused(layer)
        if refused:
            raise ConfigError(f"the model has an nn.{type(layer).__name__} with {refused[0]}", refused[1])
        sizes = layer.input_size, layer.hidden_size, layer.num_layers
        return cls(GATES[type(layer)], *sizes, layer.bidirectional)

    def directions(self, number: int) -> list[tuple[str, bool]]:
        """Of one of its layers: how the names of its parameters end, and whether it runs from the last step on."""
        forwards, backwards = (f"l{number}", False), (f"l{number}_reverse", True)
        return [forwards, backwards] if self.bidirectional else [forwards]


class Unrolled(nn.Module):
    """Layers and directions of a recurrent layer, whatever it computes with: float, fake-quantized or int8.

    A batch of sequences (B, T, I) -> all outputs of the last layer (B, T, directions * H) and the last state. T is
    fixed when a graph is traced.
    """

    form: Form

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run over all time steps. Raises `ConfigError` for a state to begin with, and for other shapes."""
        if state is not None:
            raise ConfigError("the model gives a recurrent layer a state to begin with", "give none: it is zero")
        if x.dim() != 3 or x.shape[2] != self.form.input_size:
            raise ConfigError(
                f"a recurrent layer with input_size={self.form.input_size} was given {x.dim()} dimensions, "
                f"{x.shape[-1]} values in the last",
                "give it (batch, time, input_size)",
            )
        last: list[tuple[Tensor, ...]] = []
        for number in range(self.form.num_layers):
            x, outputs = self.taken(x, number), []
            for ending, backwards in self.form.directions(number):
                output, *states = self.one(x, number, ending, backwards)
                outputs.append(output)
                last.append(tuple(states))
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
        h, *c = (torch.stack(states) for states in zip(*last, strict=True))
        return x, (h, *c) if c else h

    def taken(self, x: Tensor, number: int) -> Tensor:  # noqa: ARG002  what it means differs
        """A layer's input as it takes it."""
        return x

    def one(self, x: Tensor, number: int, ending: str, backwards: bool) -> tuple[Tensor, ...]:
        """One layer in one direction: outputs (B, T, H), and the last of each part of the state, (B, H)."""
        raise NotImplementedError


class Recurrent(Unrolled):
    """`nn.GRU` and `nn.LSTM` in float."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.form = Form.of(layer)
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, parameter)

    def one(self, x: Tensor, number: int, ending: str, backwards: bool) -> tuple[Tensor, ...]:  # noqa: ARG002
        """With the layer's own parameters."""
        weights = [getattr(self, f"weight_{side}_{ending}") for side in ("ih", "hh")]
        biases = [getattr(self, f"bias_{side}_{ending}", torch.zeros_like(weights[0][:, 0])) for side in ("ih", "hh")]
        return recurrence(self.form)(x, weights, biases, backwards=backwards)


def recurrence(form: Form) -> Callable[..., tuple[Tensor, ...]]:
    """The function of one layer in one direction: `gru` or `lstm`."""
    return gru if form.gates == GATES[nn.GRU] else lstm


def replaced(module: nn.Module) -> nn.Module:
    """Replace every `nn.GRU` and `nn.LSTM` within `module`, in place; parameters keep their names.

    Returns the module, or what replaces it. Raises `ConfigError` for layers that a bundle cannot hold.
    """
    if isinstance(module, nn.RNNBase):
        return Recurrent(module)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.RNNBase):
            module.set_submodule(name, Recurrent(layer))
    return module


def _refused(layer: nn.RNNBase) -> tuple[str, str] | None:
    """What it has that a bundle cannot hold, and the mend."""
    if type(layer) not in GATES:
        return "no translation", "use nn.GRU or nn.LSTM"
    if not layer.batch_first:
        return "batch_first=False", "set batch_first=True: the batch must be the first dimension"
    if layer.dropout:
        return f"dropout={layer.dropout}", "write a layer for each of num_layers, and nn.Dropout between them"
    if layer.proj_size:
        return f"proj_size={layer.proj_size}", "leave it out, and put an nn.Linear behind the layer"
    return None
