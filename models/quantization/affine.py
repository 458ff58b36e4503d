# mypy: allow-subclassing-any
"""Layers of one weight and one bias (linear, convolution), fake-quantized and int8; batch normalisation folded in."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fl_protocol.errors import ConfigError
from models.quantization.activations import OutputGrid, dequantized, rounded
from models.quantization.batch_norm import BatchNorm, affine
from models.quantization.dataflow import NOWHERE, Place, rounds_input
from models.quantization.grids import (
    INITIAL_HIGH,
    INITIAL_LOW,
    RANGE_DECAY,
    bias_codes,
    folded_scale,
    following_range,
    input_grid,
    per_channel,
    weight_scale,
)
from models.quantization.layer import FakeQuantLayer
from models.quantization.markers import dequantize, in_float, quantize

Compute = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (x, weight, bias) -> output


def compute(layer: nn.Module) -> Compute:
    """What an `nn.Linear`, `nn.Conv1d` or `nn.Conv2d` does with its weight and bias. Raises `ConfigError`."""
    if isinstance(layer, nn.Linear):
        return F.linear
    if layer.padding_mode != "zeros":
        raise ConfigError(f"a convolution pads with {layer.padding_mode!r}", "padding_mode='zeros', or keep_float")
    function = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
    settings = ("stride", "padding", "dilation", "groups")
    return partial(function, **{name: getattr(layer, name) for name in settings})


class FakeQuantAffine(FakeQuantLayer):
    """An `nn.Linear`, `nn.Conv1d` or `nn.Conv2d` that computes in float what its int8 version will.

    In training it widens its range to the batch at once, so nothing is clipped, and leaves the new range in
    `observed`; otherwise it uses the range that it is given. The bias is rounded outside of training only: its step is
    that of the accumulator, far below anything that training could feel.

    Where a BatchNorm follows (`norm`), the int8 layer has it folded in. In training there is nothing to fold: scaling
    a channel of the weight scales that channel's grid and leaves its codes as they are. Once the BatchNorm goes by its
    running moments, this layer computes both and the BatchNorm, a `FoldedBatchNorm`, hands its result through.
    """

    def __init__(self, layer: nn.Module, bits: int = 8, place: Place = NOWHERE) -> None:
        super().__init__()
        self.bits, self.place = bits, place
        self.compute = compute(layer)
        self.rounds_input = rounds_input(layer)
        self.weight = layer.weight
        self.register_parameter("bias", layer.bias)
        if self.rounds_input:
            self.register_buffer("input_low", torch.tensor(INITIAL_LOW))
            self.register_buffer("input_high", torch.tensor(INITIAL_HIGH))
        self.output = OutputGrid(place.rectified, place.output_pooled) if place.rounds_output else None
        self._norm: tuple[BatchNorm, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer with every operand rounded to its grid, straight through for the gradient.

        Raises `ConfigError` where the BatchNorm's channels are not this layer's.
        """
        if self._norm and self.compute is F.linear and x.dim() != 2:
            raise ConfigError(
                f"a linear layer of {x.dim()} dimensions stands before the BatchNorm {self.place.norm!r}",
                "name the linear layer in keep_float, or give the BatchNorm (B, channels)",
            )
        scale = torch.ones((), dtype=x.dtype)
        if self.rounds_input:
            scale, zero = input_grid(*self._range(x.detach()))
            x = self.straight_through(x, rounded(x.detach(), scale, zero))
        if self._norm and self._norm[0].training:  # which takes a bias away again
            return self.compute(x, self._rounded(self.weight, weight_scale(self.weight.detach(), self.bits)), self.bias)
        weight, bias, channels = self._folded(self.own(), scale)
        if bias is not None and not self.training and self.rounds_input:
            step = scale * channels
            bias = self.straight_through(bias, bias_codes(bias.detach(), step) * step)
        y = self.compute(x, self._rounded(weight, channels), bias)
        return y if self.output is None or self._norm else self.output(y)

    def codes(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Grid of the input; codes and scales of weight and, if there is one, bias; grid of the output.

        A layer that takes its input unrounded stores its rounded weight and its bias in float.
        """
        stored: dict[str, Tensor] = {}
        scale = torch.ones(())
        if self.rounds_input:
            scale, zero = input_grid(self._low(own["input_low"]), own["input_high"])
            stored |= {"input_scale": scale, "input_zero": zero.to(torch.uint8)}
        weight, bias, channels = self._folded(own, scale)
        codes = quantize(weight, channels, torch.zeros(channels.shape, dtype=torch.int8))
        if not self.rounds_input:
            stored["weight_float"] = codes.to(weight.dtype) * per_channel(channels, weight.dim())
            stored |= {} if bias is None else {"bias_float": bias}
        else:
            stored |= {"weight_int8": codes, "weight_scale": channels}
            if bias is not None:
                stored["bias_int32"] = bias_codes(bias, scale * channels).to(torch.int32)
                stored["bias_scale"] = scale * channels
        if self.output is not None:
            output_scale, output_zero = self.output.grid(own.get("output.low"), own["output.high"])
            stored |= {"output_scale": output_scale, "output_zero": output_zero.to(torch.uint8)}
        return stored

    def int8(self) -> nn.Module:
        """The layer between dequantized integers."""
        with torch.no_grad():
            return Int8Affine(self.codes(self.own()), self.compute, self.place)

    def fold(self, norm: BatchNorm) -> None:
        """From now on the output goes through `norm`, the module at the place's name, and nowhere else."""
        self._norm = (norm,)  # in a tuple, for it is a part of the author's module and not of this layer

    def own(self) -> dict[str, Tensor]:
        """The layer's parameters and statistics, and those of its BatchNorm as `norm.NAME`."""
        own = super().own()
        for norm in self._norm:
            own |= {f"norm.{name}": t for name, t in (*norm.named_parameters(), *norm.named_buffers())}
        return own

    def names(self, name: str) -> dict[str, str]:
        """Full names of what `own` holds, of the layer called `name`."""
        of_norm = {key: key.removeprefix("norm.") for key in self.own() if key.startswith("norm.")}
        return super().names(name) | {key: f"{self.place.norm}.{short}" for key, short in of_norm.items()}

    def _folded(self, own: Mapping[str, Tensor], scale: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Weight and bias with the BatchNorm in them, and the scale of each channel of the weight."""
        weight, bias = own["weight"], own.get("bias")
        channels = weight_scale(weight.detach(), self.bits)
        if not self._norm:
            return weight, bias, channels
        moments = (own["norm.running_mean"], own["norm.running_var"])
        factor, shift = affine(own.get("norm.weight"), own.get("norm.bias"), *moments, self._norm[0].eps)
        folded = shift if bias is None else shift + factor * bias
        channels = folded_scale(channels * factor.detach().abs(), folded.detach(), scale)
        return weight * per_channel(factor, weight.dim()), folded, channels

    def _rounded(self, weight: Tensor, channels: Tensor) -> Tensor:
        zeros = torch.zeros(channels.shape, dtype=torch.int8)
        codes = quantize(weight.detach(), channels, zeros)
        return self.straight_through(weight, dequantize(codes, channels, zeros))

    def _low(self, low: Tensor) -> Tensor:
        """Where the input's grid begins: at 0, which is a constant of the graphs then, for what is never below it."""
        return torch.zeros((), dtype=low.dtype) if self.place.positive else low

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.observed = {}
        low, high = self._low(self.input_low), self.input_high
        if not self.training:
            return low, high
        if self.place.positive:
            high = torch.maximum(x.amax(), high * RANGE_DECAY)
            self.observed = {"input_low": self.input_low, "input_high": high}
            return low, high
        low, high = following_range(x, low, high)
        self.observed = {"input_low": low, "input_high": high}
        return low, high


class Int8Affine(nn.Module):
    """The same layer as ONNX writes it: quantize, then compute between dequantized int8 tensors (QDQ)."""

    def __init__(self, stored: Mapping[str, Tensor], compute: Compute, place: Place) -> None:
        super().__init__()
        self.compute, self.place = compute, place
        self.has_bias = "bias_int32" in stored or "bias_float" in stored
        for name, tensor in stored.items():
            self.register_buffer(name, tensor)
        # Always 0, but onnxruntime 1.32 uses its int8 kernels only where every zero point is written out.
        if "weight_int8" in stored:
            self.register_buffer("weight_zero", torch.zeros_like(self.weight_scale, dtype=torch.int8))
            if self.has_bias:
                self.register_buffer("bias_zero", torch.zeros_like(self.bias_int32))

    def forward(self, x: Tensor) -> Tensor:
        """Quantize the input, compute between dequantized integers, and quantize the output if it has a grid."""
        if not hasattr(self, "weight_int8"):
            y = self.compute(x, self.weight_float, self.bias_float if self.has_bias else None)
        else:
            if self.place.pooled:  # pooling bytes between float and int8 convolutions is slow (docs/quantization.md)
                x = in_float(x)
            codes = quantize(x, self.input_scale, self.input_zero)
            x = dequantize(codes, self.input_scale, self.input_zero)
            weight = dequantize(self.weight_int8, self.weight_scale, self.weight_zero)
            bias = dequantize(self.bias_int32, self.bias_scale, self.bias_zero) if self.has_bias else None
            y = self.compute(x, weight, bias)
        if not hasattr(self, "output_scale"):
            return y
        return dequantized(y, self.output_scale, self.output_zero, rectified=self.place.rectified)


class FoldedBatchNorm(BatchNorm, FakeQuantLayer):
    """A BatchNorm that the layer before it, `before`, has folded in; it normalises by the batch's moments only."""

    def __init__(self, norm: BatchNorm, before: FakeQuantAffine) -> None:
        FakeQuantLayer.__init__(self)
        BatchNorm.__init__(self, norm)
        self._before = (before,)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise in training; then round for what follows."""
        self.observed = {}
        y = super().forward(x) if self.training else x
        output = self._before[0].output
        return y if output is None else output(y)

    def codes(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        """Nothing: the layer before has it all."""
        return {}

    def int8(self) -> nn.Module:
        """Nothing: the layer before has it all."""
        return nn.Identity()
