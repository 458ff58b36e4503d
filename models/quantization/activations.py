# mypy: allow-subclassing-any
"""Rounding of activations: a tensor to its grid, and the grid of a layer's output."""

import torch
from torch import Tensor

from models.quantization.grids import INITIAL_HIGH, INITIAL_LOW, RANGE_DECAY, following_range, input_grid
from models.quantization.layer import FakeQuantLayer
from models.quantization.markers import dequantize, nonnegative, quantize

_TRACE = 0.01  # of what rounding takes away, half a step: at most 0.005 steps, and in training only


def rounded(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """`x` on the grid of uint8 codes with this scale and zero point, both scalar and in float."""
    whole = zero.to(torch.uint8)
    return dequantize(quantize(x, scale, whole), scale, whole)


def dequantized(y: Tensor, scale: Tensor, zero: Tensor, *, rectified: bool) -> Tensor:
    """`y` quantized and dequantized; where a ReLU follows, it is known to have nothing left to do."""
    y = dequantize(quantize(y, scale, zero), scale, zero)
    return nonnegative(y) if rectified else y


class OutputGrid(FakeQuantLayer):
    """Rounds a layer's output, for int8 kernels compute only what is quantized on both sides.

    `rectified`: a ReLU follows. Then the grid begins at 0, where quantizing does what the ReLU would.
    `pooled`: a maximum pooling is among those that follow.
    """

    def __init__(self, rectified: bool, pooled: bool = False) -> None:
        super().__init__()
        self.rectified, self.pooled = rectified, pooled
        if not rectified:
            self.register_buffer("low", torch.tensor(INITIAL_LOW))
        self.register_buffer("high", torch.tensor(INITIAL_HIGH))

    def forward(self, x: Tensor) -> Tensor:
        """Round, straight through for the gradient."""
        x = torch.relu(x) if self.rectified else x
        low, high = None if self.rectified else self.low, self.high
        self.observed = {}
        if self.training and low is None:
            high = torch.maximum(x.detach().amax(), high * RANGE_DECAY)
            self.observed = {"high": high}
        elif self.training:
            low, high = following_range(x.detach(), low, high)
            self.observed = {"low": low, "high": high}
        values = rounded(x.detach(), *self.grid(low, high))
        if self.training and self.rectified and not self.pooled:
            # What is rounded to 0 from above is left a trace of itself: the ReLU to come would stop its gradient.
            values = torch.maximum(values, x.detach() * _TRACE)
        elif self.training:
            # So is all else: codes of two layers often add up to 0, where a residual's ReLU would stop them, and codes
            # in a window of a pooling are often equal, where it would pick any.
            values = values + (x.detach() - values) * _TRACE
        return self.straight_through(x, values)

    def grid(self, low: Tensor | None, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of a range."""
        return input_grid(torch.zeros_like(high) if low is None else low, high)
