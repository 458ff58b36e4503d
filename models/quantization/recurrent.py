# mypy: allow-subclassing-any
"""GRU and LSTM, fake-quantized and int8: both matrix products in integers, the gates' functions in float.

Weights are rounded per output channel, the input over its measured range, biases outside of training, at the
accumulator's scale. What the state gives to its product, and to the next layer, needs no range: it lies between -1 and
1, and is rounded to multiples of 1 / 127. The state itself is carried from one time step to the next unrounded.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from models.quantization.activations import rounded
from models.quantization.grids import (
    INITIAL_HIGH,
    INITIAL_LOW,
    bias_codes,
    following_range,
    input_grid,
    weight_codes,
    weight_scale,
)
from models.quantization.layer import FakeQuantLayer, straight_through
from models.quantization.markers import dequantize, quantize
from models.recurrences import Product, output_gate_first, unrolled_gru, unrolled_lstm
from models.recurrent import GATES, Form, Recurrent, Unrolled, recurrence

LEVELS: Final = 127  # of the state, on each side of zero
_STATE_ZERO: Final = 128  # its zero point: uint8 codes of 1 to 255


class FakeQuantRecurrent(FakeQuantLayer, Unrolled):
    """A recurrent layer that computes in float what its int8 version will."""

    def __init__(self, layer: Recurrent, bits: int = 8) -> None:
        super().__init__()
        self.form, self.bits = layer.form, bits
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, parameter)
        self.register_buffer("input_low", torch.tensor(INITIAL_LOW))
        self.register_buffer("input_high", torch.tensor(INITIAL_HIGH))

    def taken(self, x: Tensor, number: int) -> Tensor:
        """The input rounded over its range, which training widens to the batch; that of a later layer as a state."""
        if number > 0:
            return self.straight_through(x, torch.round(x.detach() * LEVELS) / LEVELS)
        if self.training:
            low, high = following_range(x.detach(), self.input_low, self.input_high)
            self.observed = {"input_low": low, "input_high": high}
        else:
            self.observed = {}
        return self.straight_through(x, rounded(x.detach(), *self._input_grid()))

    def one(self, x: Tensor, number: int, ending: str, backwards: bool) -> tuple[Tensor, ...]:
        """With every operand rounded to its grid, straight through for the gradient."""
        of_input, of_state = self._input_grid()[0] if number == 0 else 1 / LEVELS, 1 / LEVELS
        parts = [self._rounded(side, ending, scale) for side, scale in (("ih", of_input), ("hh", of_state))]
        weights, biases = zip(*parts, strict=True)
        if self.straight_through is straight_through:
            return recurrence(self.form)(x, weights, biases, LEVELS, backwards)

        (w_input, w_state), (b_input, b_state) = ([_ordered(self.form, t) for t in both] for both in (weights, biases))

        def product(h: Tensor) -> Tensor:
            on_grid = self.straight_through(h, torch.round(h.detach() * LEVELS) / LEVELS)
            return F.linear(on_grid, w_state, b_state)

        return unrolled(self.form, F.linear(x, w_input, b_input), product, backwards)

    def codes(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Grid of the input; codes and scales of all weights and biases, their gates in the order of `recurrences`."""
        own = {name: _ordered(self.form, t) if t.dim() else t for name, t in own.items()}
        scale, zero = input_grid(own["input_low"], own["input_high"])
        stored = {"input_scale": scale, "input_zero": zero.to(torch.uint8)}
        for name in (name for name in own if name.startswith("weight")):
            of_operand = scale if name.endswith(("ih_l0", "ih_l0_reverse")) else 1 / LEVELS
            channels = weight_scale(own[name], self.bits)
            stored[f"{name}_int8"] = weight_codes(own[name], channels, self.bits).to(torch.int8)
            stored[f"{name}_scale"] = channels
            bias = name.replace("weight", "bias")
            values = own.get(bias, torch.zeros_like(channels))
            stored[f"{bias}_int32"] = bias_codes(values, of_operand * channels).to(torch.int32)
            stored[f"{bias}_scale"] = of_operand * channels
        return stored

    def int8(self) -> nn.Module:
        """The layer between dequantized integers."""
        with torch.no_grad():
            return Int8Recurrent(self.codes(self.own()), self.form)

    def _input_grid(self) -> tuple[Tensor, Tensor]:
        seen = self.observed
        return input_grid(seen.get("input_low", self.input_low), seen.get("input_high", self.input_high))

    def _rounded(self, side: str, ending: str, of_operand: Tensor | float) -> tuple[Tensor, Tensor]:
        """Weight and bias as their codes say; `of_operand` is the scale of what the weight is multiplied with."""
        weight, bias = getattr(self, f"weight_{side}_{ending}"), getattr(self, f"bias_{side}_{ending}", None)
        channels = weight_scale(weight.detach(), self.bits)
        zeros = torch.zeros_like(channels, dtype=torch.int8)
        codes = quantize(weight.detach(), channels, zeros)
        weight = self.straight_through(weight, dequantize(codes, channels, zeros))
        if bias is None:
            return weight, torch.zeros_like(channels)
        step = of_operand * channels
        return weight, bias if self.training else self.straight_through(bias, bias_codes(bias.detach(), step) * step)


class Int8Recurrent(Unrolled):
    """The same layer as ONNX writes it: each product between dequantized int8 tensors (QDQ)."""

    def __init__(self, stored: Mapping[str, Tensor], form: Form) -> None:
        super().__init__()
        self.form = form
        for name, tensor in stored.items():
            self.register_buffer(name, tensor)
            if name.endswith(("_int8", "_int32")):  # always 0, but written out: see Int8Affine
                self.register_buffer(f"{name}_zero", torch.zeros(tensor.shape[0], dtype=tensor.dtype))
        self.register_buffer("state_scale", torch.tensor(1 / LEVELS))
        self.register_buffer("state_zero", torch.tensor(_STATE_ZERO, dtype=torch.uint8))

    def taken(self, x: Tensor, number: int) -> Tensor:
        """The input on its grid."""
        return _on_grid(x, self.input_scale, self.input_zero) if number == 0 else self._state(x)

    def one(self, x: Tensor, number: int, ending: str, backwards: bool) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Both products as linear layers."""
        steps, width = x.shape[1:]
        flat = F.linear(x.reshape(-1, width), *self._stored("ih", ending))  # rank 2: onnxruntime's QGemm takes no other
        of_state = self._stored("hh", ending)
        projected = flat.reshape(-1, steps, flat.shape[1])
        return unrolled(self.form, projected, lambda h: F.linear(self._state(h), *of_state), backwards)

    def _state(self, h: Tensor) -> Tensor:
        return _on_grid(h, self.state_scale, self.state_zero)

    def _stored(self, side: str, ending: str) -> list[Tensor]:
        """A dequantized weight, and its bias."""
        names = [(f"weight_{side}_{ending}", "int8"), (f"bias_{side}_{ending}", "int32")]
        parts = [[f"{name}_{kind}", f"{name}_scale", f"{name}_{kind}_zero"] for name, kind in names]
        return [dequantize(*(getattr(self, part) for part in of_tensor)) for of_tensor in parts]


def _ordered(form: Form, stacked: Tensor) -> Tensor:
    """A weight or bias with its gates in the order of `models.recurrences`."""
    return stacked if form.gates == GATES[nn.GRU] else output_gate_first(stacked)


def unrolled(form: Form, projected: Tensor, product: Product, backwards: bool) -> tuple[Tensor, ...]:
    """One layer in one direction, of plain operations; see `models.recurrences`."""
    compute = unrolled_gru if form.gates == GATES[nn.GRU] else unrolled_lstm
    return compute(projected, product, backwards)


def _on_grid(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return dequantize(quantize(x, scale, zero), scale, zero)
