"""Rounding by QuantizeLinear and DequantizeLinear in onnxruntime is torch's, bit for bit."""

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.quantization import dequantize, quantize
from models.quantization.activations import OutputGrid, rounded
from models.quantization.grids import folded_scale, input_grid
from models.to_onnx import export


def session(function, **tensors):
    graph = export(function, tensors, {})
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def activations():
    return session(
        lambda given: {"y": rounded(given["x"], given["scale"], given["zero"])},
        x=torch.zeros(1, 64),
        scale=torch.ones(()),
        zero=torch.zeros(()),
    )


@given(st.floats(2.0**-20, 1e3, width=32), st.integers(0, 255), st.integers(0, 10_000))
def test_activations_half_way_between_codes_included(activations, scale, zero, seed):
    scale, zero = np.float32(scale), np.float32(zero)
    rng = np.random.default_rng(seed)
    halves = (rng.integers(-300, 600, (4, 32)) + 0.5) * scale
    x = np.concatenate([halves, rng.normal(size=(4, 32)) * 100 * scale], 1).astype(np.float32)
    (ours,) = activations.run(None, {"x": x, "scale": np.asarray(scale), "zero": np.asarray(zero)})
    plain = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
    np.testing.assert_array_equal(ours, plain)

    torch.testing.assert_close(rounded(torch.tensor(x), torch.tensor(scale), torch.tensor(zero)).numpy(), ours)


@given(st.integers(0, 10_000), st.sampled_from([(4, 3), (5, 2, 3), (3, 1, 3, 3)]))
def test_weights_channel_by_channel(seed, shape):
    rng = np.random.default_rng(seed)
    weight = torch.tensor(rng.normal(size=shape), dtype=torch.float32)
    scale = weight.abs().flatten(1).amax(1) / 127
    zero = torch.zeros(shape[0], dtype=torch.int8)

    def both(given):
        codes = quantize(given["w"], given["scale"], zero)
        return {"codes": codes, "rounded": dequantize(codes, given["scale"], zero)}

    codes, values = session(both, w=weight, scale=scale).run(None, {"w": weight.numpy(), "scale": scale.numpy()})
    by_channel = scale.numpy().reshape(-1, *[1] * (len(shape) - 1))
    np.testing.assert_array_equal(codes, np.rint(weight.numpy() / by_channel))
    np.testing.assert_array_equal(values, codes * by_channel)
    assert np.abs(codes).max() == 127


@given(st.floats(-50, 50, width=32), st.booleans())
def test_a_constant_input_is_kept_to_half_a_step_whatever_its_sign(value, rectified):
    grid = OutputGrid(rectified).train()
    x = torch.full((3, 4), value)
    y = grid(x)
    wanted = torch.relu(x) if rectified else x
    low, high = grid.observed.get("low", torch.zeros(())), grid.observed["high"]
    assert low <= 0 <= high
    scale, zero = input_grid(low, high)
    assert 0 <= zero <= 255
    assert (y - wanted).abs().amax() <= scale * 1.001


@given(st.floats(0, 2.0**90, width=32), st.floats(-(2.0**90), 2.0**90, width=32), st.floats(2.0**-22, 1e3, width=32))
def test_a_folded_scale_is_positive_and_lets_the_bias_fit(channel, bias, scale):
    result = folded_scale(torch.tensor([channel]), torch.tensor([bias]), torch.tensor(scale))
    assert result > 0
    assert result >= channel
    assert abs(bias) / float(result * scale) <= 2**30 * 1.001
