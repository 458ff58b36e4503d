"""The exporter: what it compiles computes what torch computes, at every batch size; what it cannot, it names."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from fl_protocol.errors import ConfigError
from fl_protocol.onnx_file import OnnxFile
from models.losses import cross_entropy
from models.metrics import is_correct
from models.to_onnx import export

X, Y, W = torch.zeros(1, 4, 6), torch.zeros(1, dtype=torch.int64), torch.linspace(-1, 1, 18).reshape(3, 6)


def grads(given):
    """A loss through most of the table, and its gradients: the backward ops come from autograd."""
    w, b = given["w"].detach().requires_grad_(), given["b"].detach().requires_grad_()
    x = given["x"][:, 1:3].flatten(1).reshape(-1, 6)
    h = F.relu(F.linear(x, w, b)).reshape(-1, 2, 3).mean(1)
    loss = cross_entropy(h - h.amax(1, keepdim=True), given["y"]).mean()
    return dict(
        zip(("w.gradient", "b.gradient", "loss"), (*torch.autograd.grad(loss, [w, b]), loss.detach()), strict=True)
    )


def gradient_of_slices(given):
    """What a convolution over time asks for: slices that overlap, each with zeros around its gradient."""
    x = given["x"].detach().requires_grad_()
    taps = [x[:, 1:3], x[:, :2, 0:], x[:, -2:], x[:, 0:4][:, 2:99], x[:, ::2], x[:, 1::3], x[:, :, 1:6:2]]
    loss = sum((factor * tap.square()).sum() for factor, tap in enumerate(taps, 1)) + x[:, :, -1:].pow(3).sum()
    (gradient,) = torch.autograd.grad(loss, [x])
    return {"gradient": gradient}


FUNCTIONS = {
    "gradients": grads,
    "gradient of slices": gradient_of_slices,
    "correct": lambda g: {"out": is_correct(g["x"].mean(1)[:, :3], g["y"]).sum()},
    "matmul": lambda g: {"out": g["x"].flatten(0, 1) @ g["w"].t()},
    "addmm": lambda g: {"out": torch.addmm(g["b"], g["x"].flatten(0, 1), g["w"].t(), alpha=2, beta=-1)},
    "transpose": lambda g: {"out": g["x"].transpose(1, 2).reshape(-1, 2)},
    "slices": lambda g: {"out": torch.cat([g["x"][:, :-1, 1:], g["x"][:, 1:, :-1]], 2)[:, :, ::2]},
    "elementwise": lambda g: {"out": torch.log(torch.exp(-g["x"]).square() + 1) / g["x"].abs().clamp(min=0.5)},
    "add": lambda g: {"out": torch.add(g["x"], g["x"].pow(3), alpha=2) - 1},
    "clamp": lambda g: {
        "out": g["x"].clamp(-0.5, 0.5),
        "rounded": torch.round(g["x"] * 2),
        "high": g["x"].clamp(max=0),
    },
    "reductions": lambda g: {
        "out": g["x"].sum((1, 2)),
        "low": g["x"].amin(),
        "high": g["x"].amax(1),
        "all": g["x"].mean(),
    },
    "bounds": lambda g: {
        "out": torch.maximum(g["x"], g["x"].mean(1, keepdim=True)),
        "least": torch.minimum(g["b"], -g["b"]),
    },
    "promotion": lambda g: {"out": g["x"].mean(1) * g["y"].unsqueeze(1), "eq": (g["y"] == 1).to(torch.float32) / 3},
    "untouched": lambda g: {"out": g["w"], "twice": g["w"].detach()},
}


def numbers(batch):
    rng = np.random.default_rng(batch)
    x = rng.standard_normal((batch, 4, 6)).astype(np.float32)
    return {"x": x, "y": rng.integers(0, 3, batch), "b": np.array([0.1, -0.2, 0.3], np.float32)}


def compiled(function):
    return export(function, {"x": X, "y": Y, "b": torch.zeros(3)}, {"w": W})


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("batch", [1, 5, 32])
def test_a_compiled_function_computes_what_torch_computes_at_any_batch_size(name, batch):
    given = numbers(batch)
    session = onnxruntime.InferenceSession(compiled(FUNCTIONS[name]), providers=["CPUExecutionProvider"])
    expected = FUNCTIONS[name]({**{n: torch.tensor(a) for n, a in given.items()}, "w": W})
    assert [o.name for o in session.get_outputs()] == list(expected)
    for result, (output, tensor) in zip(session.run(None, given), expected.items(), strict=True):
        assert result.shape == tensor.shape, output
        np.testing.assert_allclose(result, tensor.numpy(), rtol=1e-5, atol=1e-6, err_msg=output)


def test_compiling_twice_gives_the_same_bytes():
    assert compiled(grads) == compiled(grads)


def test_nodes_are_plain_onnx_and_only_the_batch_is_free():
    data = compiled(grads)
    model = onnx.load_from_string(data)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert [spec.shape for spec in OnnxFile.read(data).inputs] == [("batch", 4, 6), ("batch",), (3,)]


def test_equal_nodes_are_written_once():
    model = onnx.load_from_string(compiled(lambda g: {"out": g["x"].exp() + g["x"].exp()}))
    assert [node.op_type for node in model.graph.node] == ["Exp", "Add"]


def test_an_op_that_has_no_translation_is_named():
    with pytest.raises(ConfigError, match=r"aten\.erfinv"):
        compiled(lambda g: {"out": torch.erfinv(g["x"])})


def test_the_gradient_of_a_part_of_the_batch_is_refused_with_a_hint():
    def function(given):
        x = given["x"].detach().requires_grad_()
        return {"gradient": torch.autograd.grad(x[1:].square().sum(), [x])[0]}

    with pytest.raises(ConfigError, match="slice another dimension"):
        compiled(function)


def test_float64_has_no_place_in_a_bundle():
    with pytest.raises(ConfigError, match="float64"):
        compiled(lambda g: {"out": g["x"].double()})


def test_an_input_that_is_not_used_is_still_an_input():
    """Every graph of a bundle takes what the format says, whether its model needs it or not."""
    session = onnxruntime.InferenceSession(compiled(lambda g: {"out": g["b"] * 2}), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["x", "y", "b"]
    assert session.run(None, numbers(3))[0].shape == (3,)
