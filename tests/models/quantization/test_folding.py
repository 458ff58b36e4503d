"""Batch normalisation folded into int8 layers: exact but for rounding, and only where it may be."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fl_protocol.errors import ConfigError
from models.quantization import FakeQuantAffine, fake_quantized, int8, int8_codes
from models.quantization.affine import FoldedBatchNorm
from models.quantization.batch_norm import BatchNorm, affine
from tests.models.quantization.networks import NETWORKS, Residual, examples, state, trained

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), lambda: nn.BatchNorm1d(4), (6,)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), lambda: nn.BatchNorm1d(4, affine=False), (6,)),
    "1-D": (lambda: nn.Conv1d(6, 4, 3, groups=2), lambda: nn.BatchNorm1d(4), (6, 9)),
    "2-D": (lambda: nn.Conv2d(4, 4, 3, padding=1), lambda: nn.BatchNorm2d(4), (4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), lambda: nn.BatchNorm2d(4), (4, 5, 5)),
    "one channel": (lambda: nn.Conv2d(1, 4, 3), lambda: nn.BatchNorm2d(4), (1, 5, 5)),
}


def random_pair(name, seed):
    """A layer and its BatchNorm of random values, in float64; factors of both signs."""
    make, norm, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(seed)
    pair = nn.Sequential(make(), norm()).double().eval()
    for tensor in (*pair.parameters(), pair[1].running_mean, pair[1].running_var):
        tensor.data.copy_(torch.randn(tensor.shape, generator=generator))
    pair[1].running_var.data.abs_().add_(0.1)
    x = torch.rand(7, *shape, generator=generator, dtype=torch.float64)
    return pair, x


@given(st.sampled_from(sorted(LAYERS)), st.integers(0, 10_000))
def test_the_folded_layer_computes_what_both_did_within_the_roundings_of_its_operands(name, seed):
    """In float64 and with an input on the grid, all that is left is half a step of each weight and of the bias."""
    pair, x = random_pair(name, seed)
    fake = fake_quantized(copy.deepcopy(pair)).double()
    if "0.input_high" in dict(fake.named_buffers()):
        x = (x * 255).round() / 255  # the grid of the range 0 .. 1, where it begins
    codes = int8_codes(fake, state(fake))
    with torch.no_grad():
        difference = (int8(fake)(x) - pair(x)).abs().transpose(0, 1).flatten(1).amax(1)  # by channel
    steps = codes.get("0.weight_scale")
    factor = pair[1].running_var.add(pair[1].eps).rsqrt()
    factor = factor if pair[1].weight is None else factor * pair[1].weight.detach().abs()
    steps = steps if steps is not None else factor * pair[0].weight.detach().abs().flatten(1).amax(1) / 127
    terms = pair[0].weight[0].numel()
    assert (difference <= 0.51 * steps * (terms + 1 / 255) + 1e-9).all()


@given(st.integers(0, 10_000))
def test_factor_and_shift_are_batch_normalisation_exactly(seed):
    pair, _ = random_pair("2-D", seed)
    norm = pair[1]
    y = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    factor, shift = affine(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    folded = y * factor.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1)
    torch.testing.assert_close(folded, norm(y), rtol=1e-12, atol=1e-12)


@given(st.sampled_from(sorted(set(LAYERS) - {"one channel"})), st.integers(0, 10_000))
def test_folding_leaves_the_codes_as_training_rounds_them_but_for_the_sign(name, seed):
    pair, _ = random_pair(name, seed)
    fake = fake_quantized(pair.float())
    codes = int8_codes(fake, state(fake))["0.weight_int8"].int()
    weight = fake.get_submodule("0").weight.detach()
    scale = weight.abs().flatten(1).amax(1).clamp(min=1e-3) / 127
    unfolded = torch.round(weight / scale.reshape(-1, *[1] * (weight.dim() - 1))).int()
    gamma = fake.get_submodule("1").weight
    sign = torch.ones(4) if gamma is None else torch.sign(gamma.detach())
    difference = codes - unfolded * sign.reshape(-1, *[1] * (weight.dim() - 1)).int()
    assert difference.abs().amax() <= 1  # where a quotient lies half way between two codes
    assert (difference != 0).sum() <= 1


def test_a_dead_channel_gives_its_shift_and_keeps_every_code_within_its_limits():
    pair, x = random_pair("2-D", 0)
    pair = pair.float()
    pair[1].weight.data[:] = torch.tensor([0.0, 1e-30, -1e-12, 1.0])
    pair[1].bias.data[:] = torch.tensor([0.5, -2.0, 30.0, 0.0])
    fake = fake_quantized(pair)
    codes = int8_codes(fake, state(fake))
    assert (codes["0.weight_scale"] > 0).all()
    assert codes["0.bias_int32"].abs().amax() <= 2**30
    y = int8(fake)(x.float())
    for channel, shift in enumerate([0.5, -2.0, 30.0]):
        torch.testing.assert_close(y[:, channel], torch.full_like(y[:, channel], shift), rtol=1e-5, atol=1e-5)


def test_a_running_variance_that_updates_pushed_below_zero_gives_finite_codes():
    pair, _ = random_pair("linear", 0)
    pair[1].running_var.data.fill_(-0.3)
    fake = fake_quantized(pair.float())
    assert all(t.float().isfinite().all() for t in int8_codes(fake, state(fake)).values())


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_is_the_int8_network_bit_for_bit_in_torch(name):
    make, shape = NETWORKS[name]
    network = trained(make, shape)
    x, _ = examples(shape, 50, seed=3)
    with torch.no_grad():
        fake = network(x)
        torch.testing.assert_close(int8(network)(x), fake, rtol=1e-6, atol=1e-6)


class Shared(nn.Module):
    """The norm's input goes elsewhere as well, so that the layer before it cannot swallow the norm."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        h = self.layer(x)
        return self.norm(h) + h


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


class Winding(nn.Module):
    """What torch's symbolic trace cannot follow."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.layer(x)) if x.shape[1] == 4 else x


@pytest.mark.parametrize("make", [Shared, Winding])
def test_a_norm_that_may_not_be_folded_stays_and_computes_in_float(make):
    network = fake_quantized(make()).train()
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    network(x)
    norm = network.norm
    assert type(norm) is BatchNorm
    assert set(norm.observed) == {"running_mean", "running_var"}
    network.eval()
    fake = network(x)
    codes = int8_codes(network, state(network))
    assert {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"} <= set(codes)
    torch.testing.assert_close(int8(network)(x), fake)


def test_a_layer_used_twice_is_refused_by_name():
    with pytest.raises(ConfigError, match="'layer' is used 2 times"):
        fake_quantized(Twice())


def test_a_linear_layer_over_a_sequence_does_not_take_the_norm_of_another_dimension():
    network = fake_quantized(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))).train()
    with pytest.raises(ConfigError, match="keep_float"):
        network(torch.zeros(2, 4, 4))


def test_padding_that_is_not_zero_is_refused():
    with pytest.raises(ConfigError, match="'reflect'"):
        fake_quantized(nn.Sequential(nn.Conv1d(4, 4, 3, padding=1, padding_mode="reflect")))


def test_places_in_a_network_with_a_sum():
    """Who rounds what: one grid for the stem, whose output goes two ways, and one for what enters the sum."""
    network = fake_quantized(Residual())
    layers = {n: layer for n, layer in network.named_modules() if isinstance(layer, FakeQuantAffine)}
    assert [name for name, layer in layers.items() if layer.output is not None] == ["stem", "deep", "pointwise"]
    assert [name for name, layer in layers.items() if layer.place.positive] == [
        *("deep", "depthwise", "pointwise", "classify")
    ]
    assert [name for name, layer in layers.items() if not layer.rounds_input] == ["stem"]
    assert sum(isinstance(module, FoldedBatchNorm) for module in network.modules()) == 3
