"""GRU and LSTM, unrolled: torch's outputs and gradients, at every batch size, in few nodes; what cannot be is named."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.func import functional_call

from fl_protocol.errors import ConfigError
from fl_protocol.onnx_file import OnnxFile
from models.recurrences import gru, lstm, output_gate_first, unrolled_gru, unrolled_lstm
from models.recurrent import Recurrent, replaced
from models.to_onnx import export

KINDS = (nn.GRU, nn.LSTM)
FORMS = {
    "plain": {},
    "deep": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "both, deep": {"num_layers": 2, "bidirectional": True},
    "without bias": {"bias": False},
}
STEPS, INPUTS, HIDDEN = 5, 3, 4


def layer(kind=nn.GRU, dtype=torch.float64, **form):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(INPUTS, HIDDEN, batch_first=True, **form).to(dtype)


def numbers(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flat(results):
    """Everything that a recurrent layer returns, one tensor after the other."""
    output, state = results
    return [output, *(state if isinstance(state, tuple) else (state,))]


def loss_of(tensors):
    """A number to which every element contributes, each in its own way."""
    return sum((t * numbers(*t.shape, seed=9, dtype=t.dtype)).sum() + t.square().sum() for t in tensors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("used", ["all", "outputs", "state", "first output"])
def test_outputs_and_all_gradients_are_torchs(kind, form, used):
    """Whatever part of the result a model uses: what nobody used has no gradient to begin with."""
    theirs = layer(kind, **FORMS[form])
    ours = replaced(layer(kind, **FORMS[form]))
    assert isinstance(ours, Recurrent)
    parts = {"all": slice(None), "outputs": slice(1), "state": slice(1, None), "first output": slice(1)}[used]
    results, gradients = [], []
    for module in (theirs, ours):
        x = numbers(6, STEPS, INPUTS).requires_grad_()
        result = flat(module(x))
        results.append(result)
        taken = [result[0][:, :1]] if used == "first output" else result[parts]
        parameters = dict(module.named_parameters())
        found = torch.autograd.grad(loss_of(taken), [x, *parameters.values()])
        gradients.append(dict(zip(["x", *parameters], found, strict=True)))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("function", [gru, lstm])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("steps", [1, 4])
def test_gradients_are_finite_differences(function, backwards, steps):
    gates = 3 if function is gru else 4
    sizes = [
        (2, steps, INPUTS),
        (gates * HIDDEN, INPUTS),
        (gates * HIDDEN, HIDDEN),
        (gates * HIDDEN,),
        (gates * HIDDEN,),
    ]
    given = [numbers(*size, seed=seed).requires_grad_() for seed, size in enumerate(sizes)]
    assert torch.autograd.gradcheck(lambda x, *p: function(x, p[:2], p[2:], backwards=backwards), given)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rounded_state_has_the_gradient_of_the_product_with_what_it_was_rounded_to(kind):
    """Straight through: the state's gradient as if unrounded, the weight's with the rounded state."""
    theirs = layer(kind)
    x, levels = numbers(6, STEPS, INPUTS).requires_grad_(), 7
    parameters = list(theirs.parameters())
    ours = (gru if kind is nn.GRU else lstm)(x, parameters[:2], parameters[2:], levels)
    ordered = (lambda t: t) if kind is nn.GRU else output_gate_first
    w_input, w_state, b_input, b_state = (ordered(p) for p in parameters)

    def product(h):
        rounded = h + (torch.round(h * levels) / levels - h).detach()
        return nn.functional.linear(rounded, w_state, b_state)

    projected = nn.functional.linear(x, w_input, b_input)
    plain = (unrolled_gru if kind is nn.GRU else unrolled_lstm)(projected, product)
    torch.testing.assert_close(ours, plain)
    gradients = [torch.autograd.grad(loss_of(results), [x, *parameters]) for results in (ours, plain)]
    torch.testing.assert_close(*gradients)
    assert not torch.allclose(ours[0], theirs(x)[0], atol=1e-4), "rounding to 7 levels must show"


def compiled(kind, **form):
    """A graph of outputs, state and gradients of a loss, in ONNX."""
    module = replaced(nn.Sequential(layer(kind, torch.float32, **form)))
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def function(given):
        learning = {name: given[name].detach().requires_grad_() for name in parameters}
        results = flat(functional_call(module, learning, (given["x"],)))
        gradients = torch.autograd.grad(sum((r * r).sum() for r in results), list(learning.values()))
        named = {f"result{i}": r.detach() for i, r in enumerate(results)}
        return named | {f"{name}.gradient": g for name, g in zip(learning, gradients, strict=True)}

    return export(function, {**parameters, "x": torch.zeros(1, STEPS, INPUTS)}, {}, batched=("x",)), parameters


def expected(kind, x, **form):
    module = nn.Sequential(layer(kind, **form))
    results = flat(module(x.double()))
    gradients = torch.autograd.grad(sum((r * r).sum() for r in results), list(module.parameters()))
    return [*results, *gradients]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_onnx_computes_what_torch_does_in_float64_at_any_batch_size(kind, form):
    data, parameters = compiled(kind, **FORMS[form])
    OnnxFile.read(data)  # as a device reads it: nothing that it would refuse
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for batch in (6, 5, 1, 32):
        x = numbers(batch, STEPS, INPUTS, seed=batch, dtype=torch.float32)
        given = {**{name: p.numpy() for name, p in parameters.items()}, "x": x.numpy()}
        for ours, reference in zip(session.run(None, given), expected(kind, x, **FORMS[form]), strict=True):
            np.testing.assert_allclose(ours, reference.detach().numpy(), rtol=1e-5, atol=1e-5)


def sequential(kind):
    """How many nodes one more time step adds to a training graph, by operator."""
    counts = []
    for steps in (8, 9):
        module = replaced(nn.Sequential(layer(kind, torch.float32)))
        parameters = {name: p.detach() for name, p in module.named_parameters()}

        def function(given, module=module, parameters=parameters):
            learning = {name: given[name].detach().requires_grad_() for name in parameters}
            _, state = functional_call(module, learning, (given["x"],))
            last = state[0] if isinstance(state, tuple) else state
            return dict(zip(parameters, torch.autograd.grad((last * last).sum(), list(learning.values())), strict=True))

        renamed = {f"old.{name}": p for name, p in parameters.items()}
        data = export(
            lambda given, f=function: {
                f"{n}.g": t for n, t in f({k.removeprefix("old."): v for k, v in given.items()}).items()
            },
            {**renamed, "x": torch.zeros(1, steps, INPUTS)},
            {},
            batched=("x",),
        )
        counts.append(Counter(node.op_type for node in onnx.load_from_string(data).graph.node))
    return counts[1] - counts[0]


@pytest.mark.parametrize(("kind", "most"), [(nn.GRU, 16), (nn.LSTM, 20)])
def test_a_time_step_costs_few_nodes_and_no_product_for_the_gradient_of_a_parameter(kind, most):
    added = sequential(kind)
    assert added.total() <= most, added
    assert added["Gemm"] + added["MatMul"] <= (3 if kind is nn.GRU else 4)  # both parts forward, the state's back


@pytest.mark.parametrize(
    ("refused", "word"),
    [
        (nn.GRU(3, 4), "batch_first"),
        (nn.LSTM(3, 4, num_layers=2, dropout=0.1, batch_first=True), "nn.Dropout"),
        (nn.LSTM(3, 4, proj_size=2, batch_first=True), "proj_size"),
        (nn.RNN(3, 4, batch_first=True), "nn.GRU"),
    ],
)
def test_what_a_bundle_cannot_hold_is_refused_with_the_mend(refused, word):
    with pytest.raises(ConfigError) as error:
        replaced(nn.Sequential(refused))
    assert word in error.value.message + error.value.hint


def test_a_state_to_begin_with_and_a_wrong_shape_are_refused():
    ours = replaced(layer())
    with pytest.raises(ConfigError, match="state to begin with"):
        ours(numbers(2, STEPS, INPUTS), torch.zeros(1, 2, HIDDEN))
    with pytest.raises(ConfigError, match="input_size=3"):
        ours(numbers(2, STEPS, INPUTS + 1))
    with pytest.raises(ConfigError, match="2 dimensions"):
        ours(numbers(STEPS, INPUTS))


def test_layers_are_replaced_wherever_they_stand_and_parameters_keep_their_names():
    def module():
        return nn.ModuleDict({"a": nn.ModuleList([layer(num_layers=2)]), "b": layer(nn.LSTM, bidirectional=True)})

    ours = replaced(module())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in module().named_parameters()]
    assert not any(isinstance(part, nn.RNNBase) for part in ours.modules())
