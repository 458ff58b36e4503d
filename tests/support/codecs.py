"""Settings of every codec and coder, layouts of every shape, and vectors for them."""

import warnings

import numpy as np

from fl_protocol.compression import Compressor
from fl_protocol.tensors import ModelLayout, TensorEntry, Vector

VARIANTS = {
    "none": {"name": "none"},
    "float16": {"name": "float16"},
    "uq-0.5": {"name": "uq", "step": "0.5"},
    "uq-2": {"name": "uq", "step": "2"},
    "uq-8": {"name": "uq", "step": "8.0"},
    "uq-bits": {"name": "uq", "bits": "0.5"},
    "uq-fine": {"name": "uq", "step": "1", "fine": "16"},
    "uq-range": {"name": "uq", "step": "1", "coder": "range"},
    "uq-deflate": {"name": "uq", "step": "1", "coder": "deflate"},
    "qsgd-1": {"name": "qsgd", "bits": "1"},
    "qsgd-2": {"name": "qsgd", "bits": "2", "coder": "rice"},
    "qsgd-4": {"name": "qsgd", "bits": "4", "coder": "range"},
    "qsgd-8": {"name": "qsgd", "bits": "8"},
    "qsgd-4-nearest": {"name": "qsgd", "bits": "4", "rounding": "nearest", "coder": "deflate"},
    "ternary": {"name": "ternary", "share": "0.05"},
    "ternary-packed": {"name": "ternary", "share": "0.5", "coder": "packed"},
    "sign": {"name": "sign"},
    "topk-2": {"name": "topk", "share": "0.05", "values": "2"},
    "topk-4": {"name": "topk", "share": "0.05"},
    "topk-16": {"name": "topk", "share": "1", "values": "16", "coder": "range"},
    "threshold": {"name": "threshold", "level": "1.5", "values": "5"},
    "randomk-4": {"name": "randomk", "share": "0.3", "values": "4", "coder": "rice"},
    "randomk-unbiased": {"name": "randomk", "share": "0.3", "values": "3", "gain": "unbiased"},
    "randomk-16": {"name": "randomk", "share": "0.3"},
    "eden-1": {"name": "eden", "bits": "1"},
    "eden-2": {"name": "eden", "bits": "2", "gain": "unbiased"},
    "powersgd-1": {"name": "powersgd", "rank": "1"},
    "powersgd-4": {"name": "powersgd", "rank": "4"},
}


def layout_of(*shapes: tuple[int, ...]) -> ModelLayout:
    statistic = TensorEntry("range", (3,), "statistic")  # never part of a delta
    return ModelLayout((statistic, *(TensorEntry(f"t{i}", shape, "parameter") for i, shape in enumerate(shapes))))


MIXED = layout_of((16, 24), (24,), (), (255,), (256,), (24, 20))  # large and small, one element, both sides of 256
LAYOUTS = {
    "mixed": MIXED,
    "one element": layout_of(()),
    "all small": layout_of((5,), (7,)),
    "one large": layout_of((900,)),
}


def gaussian(layout: ModelLayout, seed: int = 0, scale: float = 1e-3) -> Vector:
    return (np.random.default_rng(seed).standard_normal(layout.num_parameters) * scale).astype(np.float32)


def heavy(layout: ModelLayout, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_t(1.5, layout.num_parameters).astype(np.float32)


def through(codec: Compressor, vector: Vector) -> Vector:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = codec.decompress(codec.compress(vector, np.random.default_rng(0)))
    assert result.dtype == np.float32
    assert result.shape == vector.shape
    assert np.isfinite(result).all()
    assert result.flags.writeable
    return result
