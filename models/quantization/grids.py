"""Where the grids lie: scales, zero points and codes, each a function of tensors.

Activations are affine uint8 per tensor, weights symmetric int8 (or int4, in the same bytes) per output channel, biases
int32 at the scale of the accumulator (Jacob et al., CVPR 2018). Fake-quantized layers, int8 layers and the quantize
graph take their codes from these functions and from no other.
"""

import torch
from torch import Tensor

from fl_protocol.errors import ConfigError

# A range that a layer has not seen for a while shrinks by 1 % a step; one that it sees, it follows at once.
RANGE_DECAY = 0.99
# Before the first step. Low is exactly 0, and stays so behind a ReLU: only then can a runtime drop the ReLU, which
# saturation to a zero point of 0 does anyway, and use its int8 kernels.
INITIAL_LOW, INITIAL_HIGH = 0.0, 1.0
BITS = (8, 4)
# Floors that keep every scale, and with it every quotient below, finite.
_SMALLEST_RANGE = 1e-4
_SMALLEST_WEIGHT = 1e-3
_SMALLEST_SCALE = 1e-12
_BIAS_LIMIT = 2.0**30


def largest_code(bits: int) -> int:
    """Largest code of a weight: 127 or 7; -128 and -8 are left out, so that the grid is symmetric.

    Raises `ConfigError` for other widths.
    """
    if bits not in BITS:
        raise ConfigError(f"weights of {bits} bits", f"one of: {', '.join(str(b) for b in BITS)}")
    return int(2 ** (bits - 1)) - 1


def input_grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point, both scalar and in float, of uint8 codes that cover `low` <= 0 <= `high`."""
    scale = torch.clamp(high - low, min=_SMALLEST_RANGE) / 255
    return scale, torch.clamp(torch.round(-low / scale), 0, 255)


def input_codes(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """uint8 codes of a layer's input, in float."""
    return torch.clamp(torch.round(x / scale) + zero, 0, 255)


def following_range(x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The range after seeing the batch `x`: widened to it at once, else a little narrower than before."""
    return torch.minimum(x.amin(), low * RANGE_DECAY), torch.maximum(x.amax(), high * RANGE_DECAY)


def per_channel(values: Tensor, rank: int) -> Tensor:
    """`values` (n,) shaped to multiply a tensor of that rank along its first dimension."""
    return values.reshape(-1, *[1] * (rank - 1))


def weight_scale(weight: Tensor, bits: int = 8) -> Tensor:
    """Scale of each output channel of a weight (out, ...), shape (out,)."""
    return torch.clamp(weight.abs().flatten(1).amax(1), min=_SMALLEST_WEIGHT) / largest_code(bits)


def weight_codes(weight: Tensor, scale: Tensor, bits: int = 8) -> Tensor:
    """Codes of a weight (out, ...), in float."""
    limit = largest_code(bits)
    return torch.clamp(torch.round(weight / per_channel(scale, weight.dim())), -limit, limit)


def folded_scale(channels: Tensor, bias: Tensor, input_scale: Tensor) -> Tensor:
    """Scale of each output channel once a factor is folded in, shape (out,).

    It is that of the scaled weight, whose codes then are the unscaled weight's, unless the channel is (nearly) dead:
    then it is what the codes of the bias need to stay below their limit.
    """
    needed = bias.abs() / (input_scale * _BIAS_LIMIT)
    return torch.clamp(torch.maximum(channels, needed), min=_SMALLEST_SCALE)


def bias_codes(bias: Tensor, scale: Tensor) -> Tensor:
    """int32 codes of a bias (out,), in float."""
    return torch.clamp(torch.round(bias / scale), -_BIAS_LIMIT, _BIAS_LIMIT)
