"""Dropout: the share, the independence and the bits of its masks."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from fl_protocol.errors import ConfigError
from models.dropout import Dropout, replaced
from models.to_onnx import export
from tests.models.ops.compare import BATCHES, check_gradient, numbers, session

# |z| of a fair draw is beyond this about once in ten million; seeds are fixed, so a test either passes always or never.
UNLIKELY = 5.3


def kept(rate, seed, shape, layer=0):
    """A mask, 1.0 where an element stays."""
    module = Dropout(rate, layer)
    return (functional_call(module, {"seed": torch.tensor(seed)}, (torch.ones(shape),)) != 0).double()


def z_of_correlation(a, b):
    a, b = a.flatten() - a.mean(), b.flatten() - b.mean()
    return float((a * b).sum() / torch.sqrt((a * a).sum() * (b * b).sum())) * len(a) ** 0.5


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
def test_the_share_that_is_dropped_is_the_rate(rate):
    masks = torch.stack([kept(rate, seed, (32, 64)) for seed in range(200)])
    z = float(masks.mean() - (1 - rate)) / (rate * (1 - rate) / masks.numel()) ** 0.5
    assert abs(z) < UNLIKELY
    for dims in ((0, 1), (0, 2)):  # of every column, and of every row
        count = masks.shape[0] * masks.shape[dims[1]]
        z = (masks.mean(dims) - (1 - rate)) / (rate * (1 - rate) / count) ** 0.5
        assert float(z.abs().max()) < UNLIKELY


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_masks_of_steps_and_of_layers_are_independent(rate):
    """Neighbouring seeds and layers too, and seeds that differ in one bit."""
    masks = {
        (seed, layer): kept(rate, seed, (64, 512), layer) for seed in (0, 1, 2, 2**40, 2**62) for layer in range(3)
    }
    keys = list(masks)
    for i, a in enumerate(keys):
        for b in keys[:i]:
            assert abs(z_of_correlation(masks[a], masks[b])) < UNLIKELY, (a, b)


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_elements_of_one_mask_are_independent(rate):
    """Pairs at many distances; and the four corners of rectangles, since rows and columns share their numbers."""
    mask = torch.cat([kept(rate, seed, (64, 128)).unsqueeze(0) for seed in range(40)])
    centred = mask - mask.mean()
    for rows in (0, 1, 2, 5):
        for columns in (1, 2, 3, 7, 64):
            a, b = centred[:, rows:, columns:], centred[:, : 64 - rows, : 128 - columns]
            assert abs(z_of_correlation(a, b)) < UNLIKELY, (rows, columns)
            if rows:
                c, d = centred[:, rows:, : 128 - columns], centred[:, : 64 - rows, columns:]
                assert abs(z_of_correlation(a * b, c * d)) < UNLIKELY, (rows, columns)
    for steps in ((1, 2), (1, 2, 3), (2, 5, 9)):  # runs in a row: what a polynomial of low degree would show
        products = centred[:, :, :-16].clone()
        for step in steps:
            products = products * centred[:, :, step : step + 112]
        z = float(products.mean() / products.std()) * products.numel() ** 0.5
        assert abs(z) < UNLIKELY, steps


def test_numbers_are_uniform():
    """Chi-square over 64 equal parts: 63 degrees of freedom, beyond 133 once in a million."""
    module = Dropout(0.5)
    module.calls = 1
    drawn = torch.cat([functional_uniform(module, seed) for seed in range(50)])
    counts = torch.bincount((drawn * 64) // (2**31 - 1), minlength=64).double()
    expected = len(drawn) / 64
    assert float(((counts - expected) ** 2 / expected).sum()) < 133
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < 2**31 - 1


def functional_uniform(module, seed):
    module.seed = torch.tensor(seed)
    return module._uniform(32, 64).flatten()


class Network(nn.Module):
    """Dropout of vectors, of channels, and one layer used twice."""

    def __init__(self):
        super().__init__()
        self.hidden, self.drop = nn.Linear(6, 6), nn.Dropout(0.3)
        self.by_channel = nn.Dropout1d(0.5)

    def forward(self, x):
        h = self.drop(torch.relu(self.drop(self.hidden(x))))
        return self.by_channel(h) + x


def trained(module, given):
    """Output and gradient by x."""
    x = given["x"].detach().requires_grad_()
    state = {name: given["seed"] for name, _ in module.named_buffers()}
    out = functional_call(module, state, (x,))
    return {"out": out.detach(), "gradient": torch.autograd.grad(out.square().sum(), [x])[0]}


@pytest.mark.parametrize("seed", [0, 1, -5, 2**31 - 1, 2**63 - 1, -(2**63)])
def test_torch_and_onnx_drop_the_same_elements_whatever_the_seed_and_the_batch_size(seed):
    module = replaced(Network()).train()
    module.hidden.weight.data, module.hidden.bias.data = torch.eye(6), torch.ones(6)  # exact: what is 0 was dropped
    given = {"x": numbers((1, 4, 6)), "seed": torch.tensor(0)}
    runtime = session(export(lambda g: trained(module, g), given, {}))
    for batch in BATCHES:
        given = {"x": numbers((batch, 4, 6), seed=batch), "seed": torch.tensor(seed)}
        expected = trained(module, given)
        for result, tensor in zip(
            runtime.run(None, {n: t.numpy() for n, t in given.items()}), expected.values(), strict=True
        ):
            np.testing.assert_allclose(result, tensor.numpy(), rtol=1e-6, atol=1e-6)
            assert ((result == 0) == (tensor.numpy() == 0)).all()


def test_a_seed_gives_one_mask_and_another_seed_another():
    assert torch.equal(kept(0.5, 7, (32, 64)), kept(0.5, 7, (32, 64)))
    assert not torch.equal(kept(0.5, 7, (32, 64)), kept(0.5, 8, (32, 64)))


def test_these_are_the_bits():
    """Held, so that no later change gives a device another mask than torch has."""
    module = Dropout(0.5, layer=3)
    module.calls, module.seed = 1, torch.tensor(12345)
    key = 12345 * 1_664_525_013 + 12345 * 1_220_703_125 + 3 * 1_013_904_223
    u = [pow(key + n, 5, 2**31 - 1) for n in range(5)]  # Python's integers have no largest
    assert module._uniform(2, 3).tolist() == [[u[3 + i] * u[j] % (2**31 - 1) for j in range(3)] for i in range(2)]


def test_a_layer_that_is_used_twice_has_two_masks_and_the_next_forward_pass_the_first_again():
    module = replaced(nn.Sequential(nn.Dropout(0.5)))
    twice = nn.Sequential(module[0], module[0])
    x = torch.ones(64, 64)
    assert torch.equal(module(x), module(x))
    module[0].calls = 0
    share = float((twice(x) != 0).double().mean())
    assert abs(share - 0.25) < 0.03  # and not a half


def test_scaling_keeps_the_mean_and_the_gradient_is_the_mask():
    module = Dropout(0.25)
    x = torch.ones(64, 256)
    out = module(x)
    assert set(out.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert abs(float(out.mean()) - 1) < 0.02
    function = lambda given: functional_call(Dropout(0.25), {"seed": torch.tensor(3)}, (given["x"],))  # noqa: E731
    check_gradient(function, {"x": numbers((4, 6))}, ("x",), samples=24)


def test_evaluation_and_a_rate_of_zero_change_nothing_and_a_rate_of_one_leaves_nothing():
    x = numbers((4, 6))
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    assert not Dropout(1.0).train()(x).any()


def test_channels_are_dropped_whole():
    out = replaced(nn.Sequential(nn.Dropout2d(0.5))).train()(torch.ones(64, 8, 3, 3))
    of_channel = out.flatten(2)
    assert (of_channel == of_channel[:, :, :1]).all()
    assert 0 < float((of_channel[:, :, 0] == 0).double().mean()) < 1


def test_every_dropout_is_replaced_with_a_number_of_its_own():
    module = replaced(
        nn.Sequential(nn.Dropout(0.1), nn.Sequential(nn.Dropout2d(0.2), nn.Linear(2, 2)), nn.Dropout(0.3))
    )
    layers = [layer for layer in module.modules() if isinstance(layer, Dropout)]
    assert sorted(layer.layer for layer in layers) == [0, 1, 2]
    assert {layer.rate for layer in layers} == {0.1, 0.2, 0.3}
    assert not any(isinstance(layer, nn.Dropout) for layer in module.modules())


def test_a_kind_of_dropout_that_there_is_none_for_is_named():
    with pytest.raises(ConfigError, match=r"1 is a AlphaDropout"):
        replaced(nn.Sequential(nn.Linear(2, 2), nn.AlphaDropout(0.5)))
