"""GRU and LSTM with integer products: fake-quantized and int8 agree, and the state is rounded to a grid of its own."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.func import functional_call

from fl_protocol.bundle import fill_initializers
from models.quantization import fake_quantized, int8, int8_codes, measuring_layers
from models.quantization.layer import straight_through
from models.quantization.recurrent import LEVELS, FakeQuantRecurrent, Int8Recurrent
from models.recurrent import replaced
from models.to_onnx import export

KINDS = (nn.GRU, nn.LSTM)
FORMS = {
    "plain": {},
    "deep": {"num_layers": 2},
    "both, deep": {"num_layers": 2, "bidirectional": True},
    "without bias": {"bias": False},
}
STEPS, INPUTS, HIDDEN = 7, 5, 8


def fake(kind=nn.GRU, bits=8, **form):
    """A fake-quantized layer in a module, whose range has seen `numbers()`; in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = fake_quantized(replaced(nn.Sequential(kind(INPUTS, HIDDEN, batch_first=True, **form))), bits)
    module.train()(numbers())
    for _, layer in measuring_layers(module):
        for name, value in layer.observed.items():
            setattr(layer, name, value)
    return module.eval()


def numbers(batch=6, seed=1):
    return torch.randn(batch, STEPS, INPUTS, generator=torch.Generator().manual_seed(seed))


def state_of(module):
    return {n: t.detach() for n, t in (*module.named_parameters(), *module.named_buffers())}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_the_int8_layer_computes_what_the_fake_quantized_one_does(kind, form):
    module = fake(kind, **FORMS[form])
    with torch.no_grad():
        x = [numbers(seed=seed) for seed in range(1, 4)]
        expected = [module(each)[0] for each in x]
        assert isinstance(int8(module)[0], Int8Recurrent)
        for each, output in zip(x, expected, strict=True):
            torch.testing.assert_close(module(each)[0], output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_codes_are_what_the_int8_layer_stores(kind, form):
    module = fake(kind, **FORMS[form])
    codes = int8_codes(module, state_of(module))
    stored = dict(int8(module).named_buffers())
    assert {n for n in stored if not n.endswith("_zero") or n.endswith("input_zero")} == {*codes, "0.state_scale"}
    for name, tensor in codes.items():
        assert tensor.dtype == stored[name].dtype, name
        assert torch.equal(tensor, stored[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_four_bits_leave_fifteen_codes_of_a_weight(kind):
    codes = int8_codes(module := fake(kind, bits=4), state_of(module))
    for name in ("weight_ih_l0", "weight_hh_l0"):
        assert set(codes[f"0.{name}_int8"].unique().tolist()) <= set(range(-7, 8))
        assert codes[f"0.{name}_int8"].abs().amax(1).eq(7).all(), "each channel uses its whole grid"


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_input_has_a_measured_range(kind):
    """The state lies between -1 and 1 whatever happens: its grid is fixed, also where it is the next layer's input."""
    ((_, layer),) = measuring_layers(fake(kind, num_layers=2))
    layer.train()(3 * numbers())
    assert layer.observed == {"input_low": 3 * numbers().amin(), "input_high": 3 * numbers().amax()}
    layer.eval()(numbers())
    assert layer.observed == {}


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_moves_by_half_a_step_of_its_grid_at_most(kind):
    module = fake(kind)
    moved = []
    module[0].straight_through = lambda exact, rounded: moved.append((exact, rounded)) or rounded
    module(numbers())
    states = [(exact, rounded) for exact, rounded in moved if exact.shape == (6, HIDDEN)]
    assert len(states) == STEPS
    for exact, rounded in states:
        assert (exact - rounded).abs().amax() <= 0.501 / LEVELS
        torch.testing.assert_close(rounded * LEVELS, torch.round(rounded * LEVELS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_the_written_backward_pass_is_autograds_through_straight_through_roundings(kind, form):
    module = fake(kind, **FORMS[form]).double().train()
    assert isinstance(module[0], FakeQuantRecurrent)
    slope, found = numbers().double()[:, :, :1], []
    for rounding in (straight_through, lambda exact, rounded: exact + (rounded - exact).detach()):
        module[0].straight_through = rounding
        output = module(numbers().double())[0]
        found.append([output, *torch.autograd.grad((output * slope).sum(), list(module.parameters()))])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_training_graph_computes_what_torch_does_at_any_batch_size(kind, form):
    module = fake(kind, **FORMS[form]).train()
    names, state = [n for n, _ in module.named_parameters()], state_of(module)

    def function(given):
        module.train()
        learning = {name: given[name].detach().requires_grad_() for name in names}
        output = functional_call(module, {**given, **learning}, (given["x"],))[0]
        gradients = torch.autograd.grad(output.square().sum(), list(learning.values()))
        named = {f"{name}.gradient": g for name, g in zip(names, gradients, strict=True)}
        return {"output": output.detach(), **named, **{f"{n}.next": t for n, t in module[0].observed.items()}}

    data = export(function, {**state, "x": numbers(1)}, {}, batched=("x",))
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for batch in (6, 5, 1, 32):
        given = {**state, "x": numbers(batch, seed=batch)}
        ours = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        for (name, reference), result in zip(function(given).items(), ours, strict=True):
            np.testing.assert_allclose(result, reference.numpy(), rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_computes_both_products_in_integers(kind, tmp_path):
    """One QGemm for the input of all time steps and one for each state; and their result is the fake-quantized one."""
    module = fake(kind)
    with torch.no_grad():
        expected = module(numbers())[0].numpy()
    codes = {name: tensor.numpy() for name, tensor in int8_codes(module, state_of(module)).items()}
    int8(module)
    blank = {n: torch.ones_like(b) if n in codes else b for n, b in module.named_buffers()}  # which `codes` fill
    data = export(
        lambda g: {"output": functional_call(module, g, (g["x"],))[0]}, {"x": numbers(1)}, blank, batched=("x",)
    )
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(fill_initializers(data, codes), options, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": numbers().numpy()})[0], expected, atol=1e-5)
    operators = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert operators.count("QGemm") == 1 + STEPS
    assert not {"Gemm", "MatMul", "FusedGemm"} & set(operators)
