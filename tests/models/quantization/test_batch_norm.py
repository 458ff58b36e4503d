"""Our BatchNorm is torch's: outputs, gradients and running moments, in training and outside, for inputs of any rank."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.func import functional_call

from fl_protocol.errors import ConfigError
from models.quantization.batch_norm import BatchNorm, replaced
from models.to_onnx import export

SHAPES = {"2-D": (5,), "3-D": (5, 7), "4-D": (5, 4, 3)}


def pair(shape, dtype=torch.float64, **settings):
    """torch's layer and ours, of the same random values."""
    theirs = (nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d)(shape[0], **settings)
    generator = torch.Generator().manual_seed(1)
    for tensor in (*theirs.parameters(), theirs.running_mean, theirs.running_var):
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * 2 - 0.5)
    theirs.running_var.abs_()
    theirs = theirs.to(dtype)
    return theirs, BatchNorm(copy.deepcopy(theirs))


def batch(shape, size=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return (torch.randn(size, *shape, generator=generator, dtype=dtype) * 3 + 20).requires_grad_()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("settings", [{}, {"affine": False, "momentum": 0.3, "eps": 1e-2}], ids=["plain", "other"])
def test_training_is_torchs_in_output_gradients_and_running_moments(shape, settings):
    theirs, ours = pair(shape, **settings)
    x = batch(shape)
    slope = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    outputs = [layer(x) for layer in (theirs, ours)]
    gradients = [
        torch.autograd.grad((y * slope).sum(), [x, *layer.parameters()])
        for y, layer in zip(outputs, (theirs, ours), strict=True)
    ]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-9)
    assert set(ours.observed) == {"running_mean", "running_var"}
    for name, value in ours.observed.items():
        torch.testing.assert_close(value, getattr(theirs, name), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_outside_of_training_the_running_moments_are_used_and_nothing_is_observed(shape):
    theirs, ours = (layer.eval() for layer in pair(shape))
    torch.testing.assert_close(ours(batch(shape)), theirs(batch(shape)), rtol=1e-10, atol=1e-10)
    assert ours.observed == {}


# Of inputs (B, C), torch refuses a batch of one: a test of its own says what ours does.
@pytest.mark.parametrize(
    ("shape", "size"), [(s, n) for s in SHAPES.values() for n in (32, 5, 1) if n > 1 or len(s) > 1]
)
def test_in_a_graph_float32_keeps_its_precision_at_every_batch_size(shape, size):
    """Against torch in float64, on values far from zero, where E[x^2] - E[x]^2 would have lost half of its digits."""
    _, ours = pair(shape, torch.float32)
    theirs, _ = pair(shape)

    def step(given):
        tensors = {name: given[name].detach().requires_grad_() for name in ("x", "weight", "bias")}
        y = functional_call(ours, {n: tensors[n] for n in ("weight", "bias")}, (tensors["x"],))
        gradients = torch.autograd.grad((y * y * y).sum(), list(tensors.values()))
        return {"output": y.detach(), **dict(zip(["gx", "gw", "gb"], gradients, strict=True)), **ours.observed}

    parameters = {name: p.detach() for name, p in ours.named_parameters()}
    graph = export(step, {"x": batch(shape, 1, torch.float32).detach(), **parameters}, {})
    x = batch(shape, size, torch.float32)
    given = {"x": x.detach().numpy(), **{name: p.numpy() for name, p in parameters.items()}}
    results = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, given)
    exact = x.detach().double().requires_grad_()
    y = theirs(exact)
    gradients = torch.autograd.grad((y * y * y).sum(), [exact, theirs.weight, theirs.bias])
    wanted = [y.detach(), *gradients, theirs.running_mean, theirs.running_var]
    for result, reference in zip(results, wanted, strict=True):
        np.testing.assert_allclose(result, reference.numpy(), rtol=0, atol=3e-5 * max(1, reference.abs().max()))


def test_one_value_a_channel_has_variance_zero_and_stays_finite():
    _, ours = pair((5,), torch.float32)
    y = ours(batch((5,), 1, torch.float32))
    torch.testing.assert_close(y[0], ours.bias)
    assert all(value.isfinite().all() for value in ours.observed.values())


@pytest.mark.parametrize("settings", [{"track_running_stats": False}, {"momentum": None}])
def test_a_norm_without_moments_that_follow_is_refused_by_name(settings):
    with pytest.raises(ConfigError, match=r"'norm'.*momentum"):
        replaced(nn.ModuleDict({"norm": nn.BatchNorm1d(3, **settings)}))


def test_replacing_keeps_the_names_of_parameters_and_moments():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    names = {*dict(module.named_parameters()), "1.running_mean", "1.running_var"}
    replaced(module)
    assert {*dict(module.named_parameters()), *dict(module.named_buffers())} == names
