"""Layers that subtract a mean and divide by a deviation."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.models.ops.compare import check, check_module, check_same, num_nodes, numbers

MODULES = {
    "layer norm": (lambda: nn.LayerNorm(6), (4, 6)),
    "layer norm of two dimensions": (lambda: nn.LayerNorm((4, 6)), (4, 6)),
    "layer norm without bias": (lambda: nn.LayerNorm(6, bias=False), (4, 6)),
    "layer norm without parameters": (lambda: nn.LayerNorm(6, elementwise_affine=False), (4, 6)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 6)),
    "group norm in 2-D": (lambda: nn.GroupNorm(3, 6), (6, 4, 2)),
    "group norm of vectors": (lambda: nn.GroupNorm(2, 8), (8,)),
    "group norm without parameters": (lambda: nn.GroupNorm(2, 4, affine=False), (4, 6)),
    "instance norm": (lambda: nn.InstanceNorm1d(4, affine=True), (4, 6)),
    "batch norm, evaluating": (lambda: nn.BatchNorm1d(4).eval(), (4, 6)),
    "batch norm, evaluating, without parameters": (lambda: nn.BatchNorm2d(4, affine=False).eval(), (4, 3, 2)),
    "instance norm in 2-D": (lambda: nn.InstanceNorm2d(2), (2, 4, 3)),
    "rms norm": (lambda: nn.RMSNorm(6), (4, 6)),
}


def varied(module):
    """Parameters other than ones and zeros."""
    for i, tensor in enumerate((*module.parameters(), *module.buffers())):
        if tensor.is_floating_point():
            tensor.data = tensor.data + 0.3 * numbers(tensor.shape, seed=i).abs()
    return module


@pytest.mark.parametrize("name", MODULES)
def test_a_norm_and_its_gradient(name):
    make, shape = MODULES[name]
    check_module(varied(make()), shape)


@pytest.mark.parametrize("shape", [(5,), (5, 6), (5, 3, 2)])
def test_batch_norm_written_out(shape):
    """Mean and variance over the batch and all positions; in training, batch by batch."""

    def function(given):
        x = given["x"]
        dims = [0, *range(2, x.dim())]
        centred = x - x.mean(dims, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(dims, keepdim=True) + 1e-2)
        per_channel = (1, -1, *[1] * (x.dim() - 2))
        return centred * scale * given["gamma"].reshape(per_channel) + given["beta"].reshape(per_channel)

    check(function, {"gamma": numbers((5,), seed=1), "beta": numbers((5,), seed=2)}, shape=shape)


def test_batch_norm_by_the_batch_without_running_moments():
    def function(given):
        return F.batch_norm(given["x"], None, None, given["gamma"], given["beta"], training=True, eps=1e-2)

    check(function, {"gamma": numbers((5,), seed=1), "beta": numbers((5,), seed=2)}, shape=(5, 3, 2))


@pytest.mark.parametrize("offset", [10.0, 1000.0])
def test_a_norm_beside_a_large_mean(offset):
    """A single pass over x and x^2 would be wrong by offset^2 / 10^7."""
    exact = {"x": lambda b: offset + (numbers((b, 4, 6), seed=b) * 64).round() / 64}
    check_same(lambda given: F.layer_norm(given["x"], (6,)), exact, rtol=1e-4)
    check_same(lambda given: F.group_norm(given["x"], 2), exact, rtol=1e-4)


def test_a_layer_norm_is_one_node_and_its_gradient_few():
    """Together 16; the other six weigh the output's elements, for the test."""
    assert num_nodes(check_module(nn.LayerNorm(6), (4, 6))) <= 22
