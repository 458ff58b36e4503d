"""The straight-through gradient is the slope of the network in which what rounding added is held still."""

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from models.quantization import FakeQuantLayer
from tests.models.quantization.networks import NETWORKS, examples, state, trained


class Held:
    """Adds to each operand what rounding added to it the first time."""

    def __init__(self):
        self.added, self.calls = [], 0

    def __call__(self, exact, rounded):
        if self.calls == len(self.added):
            self.added.append((rounded - exact).detach())
        self.calls += 1
        return exact + self.added[self.calls - 1]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("network_name", NETWORKS)
def test_gradients_are_finite_differences_of_the_held_network(network_name, bits):
    make, shape = NETWORKS[network_name]
    network = trained(make, shape, bits, steps=5).double().train()
    x, y = examples(shape, 16, seed=1)
    x = x.double()
    start = {n: t.double() if t.is_floating_point() else t for n, t in state(network).items()}
    leaves = {n: start[n].clone().requires_grad_() for n, _ in network.named_parameters()}
    loss = F.cross_entropy(functional_call(network, {**start, **leaves}, (x,)), y)
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    held = [Held() for layer in network.modules() if isinstance(layer, FakeQuantLayer)]
    for rounding, layer in zip(held, (m for m in network.modules() if isinstance(m, FakeQuantLayer)), strict=True):
        layer.straight_through = rounding

    def value(changed):
        for rounding in held:
            rounding.calls = 0
        with torch.no_grad():
            return float(F.cross_entropy(functional_call(network, {**start, **changed}, (x,)), y))

    assert value({}) == pytest.approx(float(loss.detach()), abs=1e-12)
    middle = value({})
    rng, width = np.random.default_rng(0), 1e-7
    largest = max(float(g.abs().max()) for g in gradients.values())
    kinks = []
    for name, gradient in gradients.items():
        for _ in range(4):
            at = tuple(rng.integers(0, size) for size in gradient.shape)
            moved = start[name].clone()
            slopes = []
            for side in (-width, width):
                moved[at] = start[name][at] + side
                slopes.append((value({name: moved}) - middle) / side)
            # A ReLU or a maximum that sits exactly on its kink has two slopes; the gradient lies between them.
            kinks.append(abs(slopes[0] - slopes[1]) > 1e-3 * largest)
            assert min(slopes) - 1e-4 * largest <= float(gradient[at]) <= max(slopes) + 1e-4 * largest
    assert np.mean(kinks) <= 0.05


def test_only_the_roundings_hold_the_gradient_and_a_wrong_one_is_seen():
    """The test above would fail if rounding stopped the gradient: then it is zero, and the slope is not."""
    make, shape = NETWORKS["perceptron"]
    network = trained(make, shape, steps=5).train()
    for layer in network.modules():
        if isinstance(layer, FakeQuantLayer):
            layer.straight_through = lambda _exact, rounded: rounded
    x, y = examples(shape, 16, seed=1)
    network.zero_grad()
    F.cross_entropy(network(x), y).backward()
    assert network.get_submodule("0").weight.grad is None
