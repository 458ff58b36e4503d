"""Fake-quantized and int8 layers: what rounding may change, where gradients go, and that the two layers agree."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import nn

from models.quantization import (
    INITIAL_HIGH,
    RANGE_DECAY,
    FakeQuantAffine,
    fake_quantized,
    input_codes,
    input_grid,
    int8,
    weight_codes,
    weight_scale,
)

values = st.floats(-100, 100, width=32)


def layer(inputs=6, outputs=4, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FakeQuantAffine(nn.Linear(inputs, outputs))


@given(arrays(np.float32, array_shapes(max_dims=2), elements=values))
def test_a_value_within_the_range_moves_by_half_a_step_at_most(x):
    x = torch.from_numpy(x)
    scale, zero = input_grid(x.amin().clamp(max=0), x.amax().clamp(min=0))
    codes = input_codes(x, scale, zero)
    assert 0 <= codes.amin() <= codes.amax() <= 255
    # Half a step, and another half where rounding the zero point moved the ends of the range.
    assert ((codes - zero) * scale - x).abs().amax() <= scale * 1.001


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2), elements=values))
def test_zero_is_always_exactly_zero(x):
    x = torch.from_numpy(x)
    scale, zero = input_grid(x.amin().clamp(max=0), x.amax().clamp(min=0))
    assert (input_codes(torch.zeros(3), scale, zero) - zero).abs().amax() == 0
    assert weight_codes(torch.zeros_like(x), weight_scale(x)).abs().amax() == 0


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2), elements=values))
def test_weights_are_rounded_channel_by_channel_on_a_symmetric_grid(w):
    w = torch.from_numpy(w)
    scale = weight_scale(w)
    codes = weight_codes(w, scale)
    assert codes.abs().amax() <= 127
    assert ((codes * scale.unsqueeze(1) - w).abs() <= scale.unsqueeze(1) * 0.501).all()


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.floats(-(2.0**100), 2.0**100, width=32))
def test_whatever_ranges_a_gateway_averaged_the_codes_stay_codes(low, high):
    own = {"weight": torch.ones(2, 3), "bias": torch.full((2,), 1e30)}
    stored = layer().codes({**own, "input_low": torch.tensor(low), "input_high": torch.tensor(high)})
    assert stored["input_scale"] > 0
    assert 0 <= stored["input_zero"] <= 255
    assert stored["bias_int32"].abs().amax() <= 2**30


def test_gradients_pass_as_if_nothing_had_been_rounded():
    fake = layer().train()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    slope = torch.arange(20.0).reshape(5, 4)
    (x_gradient, bias_gradient) = torch.autograd.grad((fake(x) * slope).sum(), [x, fake.bias])
    rounded = fake.codes(fake.own())
    weight = rounded["weight_int8"] * rounded["weight_scale"].unsqueeze(1)
    torch.testing.assert_close(x_gradient, slope @ weight)
    torch.testing.assert_close(bias_gradient, slope.sum(0))


def test_a_range_widens_at_once_and_shrinks_slowly():
    fake = layer().train()
    fake(torch.tensor([[-2.0, 0, 0, 0, 0, 8]]))
    assert fake.observed == {"input_low": torch.tensor(-2.0), "input_high": torch.tensor(8.0)}
    fake(torch.zeros(1, 6))
    assert fake.observed["input_high"] == pytest.approx(INITIAL_HIGH * RANGE_DECAY)


def test_behind_a_relu_the_zero_point_is_zero_and_stays_so():
    """Only then does the runtime drop the ReLU and compute in integers; decay must not leave a trace below zero."""
    fake = layer().train()
    for seed in range(3):
        fake(torch.rand(5, 6, generator=torch.Generator().manual_seed(seed)))
        fake.input_low, fake.input_high = fake.observed["input_low"], fake.observed["input_high"]
    assert fake.input_low == 0
    assert input_grid(fake.input_low, fake.input_high)[1] == 0


def test_evaluation_uses_the_ranges_that_it_is_given_and_clips():
    fake = layer().eval()
    inside, outside = fake(torch.full((1, 6), INITIAL_HIGH)), fake(torch.full((1, 6), 50.0))
    torch.testing.assert_close(inside, outside)


@given(st.integers(0, 1000))
def test_the_int8_layer_computes_what_the_fake_quantized_one_does(seed):
    fake = layer(seed=seed).eval()
    x = torch.rand(7, 6, generator=torch.Generator().manual_seed(seed)) * 1.2 - 0.1
    with torch.no_grad():
        torch.testing.assert_close(fake.int8()(x), fake(x), rtol=1e-5, atol=1e-6)


def test_layers_are_replaced_wherever_they_stand_and_parameters_keep_their_names():
    def module():
        return nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))

    before = [name for name, _ in module().named_parameters()]
    fake = fake_quantized(module())
    assert [name for name, _ in fake.named_parameters()] == before
    assert not list(int8(fake).parameters())


def test_a_layer_without_bias_stays_without_one():
    fake = FakeQuantAffine(nn.Linear(3, 4, bias=False)).eval()
    assert not [name for name in fake.codes(fake.own()) if "bias" in name]
    x = torch.rand(5, 2, 3)
    torch.testing.assert_close(fake.int8()(x), fake(x))
