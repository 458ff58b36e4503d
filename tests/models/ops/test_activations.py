"""Activations, softmax and their gradients: ONNX against torch float64, and against finite differences."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from models.to_onnx import export
from tests.models.ops.compare import check, check_module, num_nodes, numbers

W = 0.4 * numbers((6, 6), seed=1)

ACTIVATIONS = {
    "relu": F.relu,
    "relu6": lambda x: F.relu6(8 * x),
    "hardtanh": F.hardtanh,
    "leaky relu": F.leaky_relu,
    "prelu": lambda x: F.prelu(x, x.new_full((1,), 0.2)),
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 1.3),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardswish": lambda x: F.hardswish(3 * x),
    "hardsigmoid": lambda x: F.hardsigmoid(3 * x),
    "softplus": F.softplus,
    "softplus, steep": lambda x: F.softplus(x, beta=2.5),
    "mish": F.mish,
    "softsign": F.softsign,
    "logsigmoid": F.logsigmoid,
    "glu": lambda x: F.glu(x, -1),
    "softmax": lambda x: F.softmax(x, -1),
    "softmax of the middle": lambda x: F.softmax(x, 1),
    "log softmax": lambda x: F.log_softmax(x, 1),
    "softmin": lambda x: F.softmin(x, -1),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_and_its_gradient(name):
    check(lambda given: ACTIVATIONS[name](given["x"] @ given["w"]), {"w": W})


@pytest.mark.parametrize("name", ["softplus", "logsigmoid", "sigmoid", "silu", "gelu", "tanh", "log softmax", "mish"])
@pytest.mark.parametrize("factor", [1e-4, 30.0])
def test_far_from_zero_and_near_it_nothing_overflows_or_vanishes(name, factor):
    """softplus(x) beyond 20 is x, exp of 80 is no infinity that comes back as NaN."""
    check(lambda given: ACTIVATIONS[name](factor * given["x"]), slopes=False)


@pytest.mark.parametrize(
    ("module", "most"),
    [(torch.nn.Sigmoid(), 1), (torch.nn.Hardswish(), 1), (torch.nn.Softmax(-1), 1), (torch.nn.GELU(), 5)],
)
def test_what_onnx_has_whole_takes_one_node(module, most):
    """Small networks pay for each node."""
    assert num_nodes(export(lambda given: {"out": module(given["x"])}, {"x": numbers((1, 6))}, {})) <= most


def test_an_activation_with_a_parameter_of_its_own():
    check_module(torch.nn.PReLU(4))
