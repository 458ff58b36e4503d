# mypy: allow-subclassing-any, allow-untyped-decorators
"""int8: fake-quantized layers to train with, true int8 layers to run, and the way from one to the other.

Weights are symmetric int8 per output channel, activations affine uint8 per tensor, biases int32 at the scale of
the accumulator (Jacob et al., CVPR 2018). Both kinds of layer take their scales and codes from the same
functions, so the fake-quantized forward pass and the int8 model differ only where float32 addition does.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fl_protocol.errors import ConfigError

# A range that a layer has not seen for a while shrinks by 1 % a step; one that it sees, it follows at once.
RANGE_DECAY = 0.99
# Before the first step. Low is exactly 0, and stays so behind a ReLU: only then can a runtime drop the ReLU, which
# saturation to a zero point of 0 does anyway, and use its int8 kernels.
INITIAL_LOW, INITIAL_HIGH = 0.0, 1.0
# Floors that keep every scale, and with it every quotient below, finite.
_SMALLEST_RANGE = 1e-4
_SMALLEST_WEIGHT = 1e-3
_BIAS_LIMIT = 2.0**30


class _StraightThrough(torch.autograd.Function):
    """Forward: the rounded value. Backward: as if nothing had been rounded (Bengio et al., 2013)."""

    @staticmethod
    def forward(_ctx: object, _exact: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(_ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, with the gradient going to `exact`."""
    result: Tensor = _StraightThrough.apply(exact, rounded)
    return result


def input_grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point, both scalar and in float, of uint8 codes that cover `low` <= 0 <= `high`."""
    scale = torch.clamp(high - low, min=_SMALLEST_RANGE) / 255
    return scale, torch.clamp(torch.round(-low / scale), 0, 255)


def weight_scale(weight: Tensor) -> Tensor:
    """Scale of each output channel, shape (out,)."""
    return torch.clamp(weight.abs().amax(1), min=_SMALLEST_WEIGHT) / 127


def input_codes(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """uint8 codes of a layer's input, in float."""
    return torch.clamp(torch.round(x / scale) + zero, 0, 255)


def weight_codes(weight: Tensor, scale: Tensor) -> Tensor:
    """int8 codes of a weight (out, in), in float; -128 is left out, so that the grid is symmetric."""
    return torch.clamp(torch.round(weight / scale.unsqueeze(1)), -127, 127)


def bias_codes(bias: Tensor, scale: Tensor) -> Tensor:
    """int32 codes of a bias (out,), in float."""
    return torch.clamp(torch.round(bias / scale), -_BIAS_LIMIT, _BIAS_LIMIT)


class FakeQuantLinear(nn.Module):
    """An `nn.Linear` that computes in float what its int8 version will; input (B, in), output (B, out).

    In training it widens its range to the batch at once, so nothing is clipped, and leaves the new range in
    `observed`; otherwise it uses the range that it is given.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        if linear.bias is None:
            raise ConfigError("a linear layer has no bias", "give it one: int8 kernels want it at the accumulator")
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("input_low", torch.tensor(INITIAL_LOW))
        self.register_buffer("input_high", torch.tensor(INITIAL_HIGH))
        self.observed: dict[str, Tensor] = {}
        self.straight_through: Callable[[Tensor, Tensor], Tensor] = straight_through

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer with every operand rounded to its grid, straight through for the gradient."""
        low, high = self._range(x.detach())
        scale, zero = input_grid(low, high)
        weight, bias = self.weight.detach(), self.bias.detach()
        per_channel = weight_scale(weight)
        accumulator = scale * per_channel
        x_rounded = (input_codes(x.detach(), scale, zero) - zero) * scale
        weight_rounded = weight_codes(weight, per_channel) * per_channel.unsqueeze(1)
        bias_rounded = bias_codes(bias, accumulator) * accumulator
        return F.linear(
            self.straight_through(x, x_rounded),
            self.straight_through(self.weight, weight_rounded),
            self.straight_through(self.bias, bias_rounded),
        )

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return self.input_low, self.input_high
        low = torch.minimum(x.amin(), self.input_low * RANGE_DECAY)
        high = torch.maximum(x.amax(), self.input_high * RANGE_DECAY)
        self.observed = {"input_low": low, "input_high": high}
        return low, high


def quantized(weight: Tensor, bias: Tensor, input_low: Tensor, input_high: Tensor) -> dict[str, Tensor]:
    """What the `Int8Linear` of a layer stores, by the names of its buffers."""
    scale, zero = input_grid(input_low, input_high)
    per_channel = weight_scale(weight)
    return {
        "input_scale": scale,
        "input_zero": zero.to(torch.uint8),
        "weight_int8": weight_codes(weight, per_channel).to(torch.int8),
        "weight_scale": per_channel,
        "bias_int32": bias_codes(bias, scale * per_channel).to(torch.int32),
        "bias_scale": scale * per_channel,
    }


class Int8Linear(nn.Module):
    """The same layer as ONNX writes it: quantize, then a linear layer between dequantized int8 tensors (QDQ)."""

    def __init__(self, layer: FakeQuantLinear) -> None:
        super().__init__()
        with torch.no_grad():
            stored = quantized(layer.weight, layer.bias, layer.input_low, layer.input_high)
            for name, tensor in stored.items():
                self.register_buffer(name, tensor)
        # Always 0, but onnxruntime 1.32 uses its int8 kernels only where every zero point is written out.
        self.register_buffer("weight_zero", torch.zeros_like(layer.bias, dtype=torch.int8))
        self.register_buffer("bias_zero", torch.zeros_like(layer.bias, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """Quantize the input, and compute between dequantized integers."""
        codes = quantize(x, self.input_scale, self.input_zero)
        return F.linear(
            dequantize(codes, self.input_scale, self.input_zero),
            dequantize(self.weight_int8, self.weight_scale, self.weight_zero),
            dequantize(self.bias_int32, self.bias_scale, self.bias_zero),
        )


@torch.library.custom_op("anabranch::quantize", mutates_args=())
def quantize(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """ONNX QuantizeLinear: uint8 codes of `x` with one scale and zero point."""
    return input_codes(x, scale, zero.to(x.dtype)).to(torch.uint8)


@torch.library.custom_op("anabranch::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """ONNX DequantizeLinear: per tensor, or, where `scale` is (n,), per index of the first dimension."""
    shape = (-1,) + (1,) * (codes.dim() - 1) if scale.dim() else ()
    return (codes.to(scale.dtype) - zero.to(scale.dtype).reshape(shape)) * scale.reshape(shape)


@quantize.register_fake
def _(x: Tensor, *_grid: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.uint8)


@dequantize.register_fake
def _(codes: Tensor, scale: Tensor, _zero: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


def fake_quantized(module: nn.Module) -> nn.Module:
    """Replace every `nn.Linear` within `module`, in place, by a `FakeQuantLinear`; parameters keep their names."""
    return _replace(module, nn.Linear, FakeQuantLinear)


def int8(module: nn.Module) -> nn.Module:
    """Replace every `FakeQuantLinear` within `module`, in place, by its `Int8Linear`."""
    return _replace(module, FakeQuantLinear, Int8Linear)


def quantized_layers(module: nn.Module) -> Iterator[tuple[str, FakeQuantLinear]]:
    """The layers that `fake_quantized` made, by name."""
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, FakeQuantLinear))


def _replace(module: nn.Module, old: type[nn.Module], new: Callable[..., nn.Module]) -> nn.Module:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, old):
                setattr(parent, name, new(child))
    return module
