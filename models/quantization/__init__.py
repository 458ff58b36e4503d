"""int8: fake-quantized layers to train with, true int8 layers to run, and the way from one to the other."""

from models.quantization.affine import FakeQuantAffine, Int8Affine
from models.quantization.grids import (
    INITIAL_HIGH,
    INITIAL_LOW,
    RANGE_DECAY,
    bias_codes,
    following_range,
    input_codes,
    input_grid,
    largest_code,
    per_channel,
    weight_codes,
    weight_scale,
)
from models.quantization.layer import FakeQuantLayer, straight_through
from models.quantization.markers import dequantize, quantize
from models.quantization.replacing import QUANTIZED, below, fake_quantized, int8, int8_codes, measuring_layers

__all__ = [
    "INITIAL_HIGH",
    "INITIAL_LOW",
    "QUANTIZED",
    "RANGE_DECAY",
    "FakeQuantAffine",
    "FakeQuantLayer",
    "Int8Affine",
    "below",
    "bias_codes",
    "dequantize",
    "fake_quantized",
    "following_range",
    "input_codes",
    "input_grid",
    "int8",
    "int8_codes",
    "largest_code",
    "measuring_layers",
    "per_channel",
    "quantize",
    "straight_through",
    "weight_codes",
    "weight_scale",
]
