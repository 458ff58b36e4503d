# mypy: allow-untyped-decorators
"""ONNX's QuantizeLinear and DequantizeLinear as ops of torch, which the exporter writes as such.

Without them a traced rounding would be six elementwise nodes, and no runtime would find its int8 kernels.
"""

import torch
from torch import Tensor

from models.quantization.grids import per_channel


@torch.library.custom_op("anabranch::quantize", mutates_args=())
def quantize(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """ONNX QuantizeLinear: codes of `x` in the dtype of `zero`, uint8 or int8.

    One scale and zero point for all, or, where they are (n,), one per index of the first dimension. No gradient.
    """
    limits = torch.iinfo(zero.dtype)
    if scale.dim():
        scale, zero = per_channel(scale, x.dim()), per_channel(zero, x.dim())
    return torch.clamp(torch.round(x / scale) + zero.to(x.dtype), limits.min, limits.max).to(zero.dtype)


@torch.library.custom_op("anabranch::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """ONNX DequantizeLinear: per tensor, or, where `scale` is (n,), per index of the first dimension. No gradient."""
    if scale.dim():
        scale, zero = per_channel(scale, codes.dim()), per_channel(zero, codes.dim())
    return (codes.to(scale.dtype) - zero.to(scale.dtype)) * scale


@quantize.register_fake
def _(x: Tensor, _scale: Tensor, zero: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=zero.dtype)


@dequantize.register_fake
def _(codes: Tensor, scale: Tensor, _zero: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


@torch.library.custom_op("anabranch::in_float", mutates_args=())
def in_float(x: Tensor) -> Tensor:
    """`x`, computed in float: what quantizes it is not to be moved before whatever made it."""
    return x.clone()


@torch.library.custom_op("anabranch::nonnegative", mutates_args=())
def nonnegative(x: Tensor) -> Tensor:
    """`x`, of which we know that nothing in it is below zero; the exporter leaves out a ReLU that follows."""
    return x.clone()


@in_float.register_fake
@nonnegative.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)
