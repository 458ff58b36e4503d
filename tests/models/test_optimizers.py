"""Optimizers of the training graph against torch.optim in float64, step by step."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.errors import ConfigError
from models.optimizers import Adam, Sgd

rates, decays, seeds = st.floats(1e-4, 0.5), st.sampled_from([0.0, 1e-3, 0.1]), st.integers(0, 2**32 - 1)
SHAPES = {"a": (2, 3), "b": (3,)}


def normal(rng, scale=1.0):
    return {name: torch.tensor(rng.standard_normal(shape) * scale) for name, shape in SHAPES.items()}


def run(optimizer, seed, steps=4, dtype=torch.float64):
    """Our steps on drawn gradients: the parameters after each."""
    rng = np.random.default_rng(seed)
    parameters = {name: p.to(dtype) for name, p in normal(rng).items()}
    base = {f"{name}.base": p for name, p in parameters.items()}
    hyper = {name: torch.tensor(value, dtype=dtype) for name, value in optimizer.hyper.items()}
    state = {name: t.to(dtype) for name, t in optimizer.entries(parameters).items()}
    history = []
    for _ in range(steps):
        gradients = {name: g.to(dtype) for name, g in normal(rng, 3.0).items()}
        following = optimizer.step(parameters, gradients, {**hyper, **base, **state})
        assert list(following) == [*parameters, *state]
        parameters, state = ({name: following[name] for name in part} for part in (parameters, state))
        history.append(parameters)
    return history


def run_torch(make, seed, steps=4, proximal=0.0, clip_norm=0.0):
    """The same with a torch optimizer: the proximal term as part of the gradient, torch's own clipping."""
    rng = np.random.default_rng(seed)
    leaves = {name: p.requires_grad_() for name, p in normal(rng).items()}
    base = {name: p.detach().clone() for name, p in leaves.items()}
    optimizer = make(list(leaves.values()))
    history = []
    for _ in range(steps):
        gradients = normal(rng, 3.0)
        for name, leaf in leaves.items():
            leaf.grad = gradients[name] + proximal * (leaf.detach() - base[name])
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(leaves.values(), clip_norm)
        optimizer.step()
        history.append({name: leaf.detach().clone() for name, leaf in leaves.items()})
    return history


def assert_same(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        for name in a:
            torch.testing.assert_close(a[name], b[name], **(tolerance or {"rtol": 1e-10, "atol": 1e-12}))


@given(seeds, rates, st.sampled_from([0.0, 0.5, 0.9]), decays)
def test_sgd_is_torchs(seed, rate, momentum, decay):
    ours = run(Sgd(learning_rate=rate, momentum=momentum, weight_decay=decay), seed)
    theirs = run_torch(lambda p: torch.optim.SGD(p, rate, momentum, weight_decay=decay), seed)
    assert_same(ours, theirs)


@given(seeds, rates, st.sampled_from([0.0, 0.9]), st.sampled_from([0.9, 0.999]), decays)
def test_adam_is_torchs_adamw(seed, rate, beta1, beta2, decay):
    """Decoupled decay; the bias correction counts the steps in an entry of the layout."""
    ours = run(Adam(learning_rate=rate, beta1=beta1, beta2=beta2, weight_decay=decay), seed)
    theirs = run_torch(lambda p: torch.optim.AdamW(p, rate, (beta1, beta2), weight_decay=decay), seed)
    assert_same(ours, theirs)


@given(seeds, st.floats(0.01, 2), st.sampled_from([0.0, 0.5, 4.0, 1000.0]))
def test_the_proximal_term_pulls_to_the_base_and_all_gradients_are_clipped_together(seed, proximal, clip_norm):
    ours = run(Sgd(learning_rate=0.1, proximal=proximal, clip_norm=clip_norm), seed)
    theirs = run_torch(lambda p: torch.optim.SGD(p, 0.1, 0.9), seed, proximal=proximal, clip_norm=clip_norm)
    assert_same(ours, theirs)


def test_adam_stays_precise_in_float32():
    """1 - 0.999 ** steps would lose four of its seven digits to cancellation."""
    optimizer = Adam(learning_rate=1e-2)
    exact = Adam(learning_rate=float(np.float32(1e-2)), beta1=float(np.float32(0.9)), beta2=float(np.float32(0.999)))
    ours, reference = run(optimizer, 0, steps=50, dtype=torch.float32), run(exact, 0, steps=50)
    assert_same([{n: p.double() for n, p in step.items()} for step in ours], reference, rtol=0, atol=1e-6)


def test_a_parameter_without_a_base_feels_no_pull():
    """Personal parameters have no base version."""
    optimizer = Sgd(learning_rate=1.0, momentum=0.0, proximal=1.0)
    tensors = {"a": torch.ones(2)}
    state = optimizer.entries(tensors) | {name: torch.tensor(v) for name, v in optimizer.hyper.items()}
    assert optimizer.step(tensors, {"a": torch.zeros(2)}, state)["a"].tolist() == [1, 1]
    assert optimizer.step(tensors, {"a": torch.zeros(2)}, {**state, "a.base": torch.zeros(2)})["a"].tolist() == [0, 0]


@pytest.mark.parametrize("optimizer", [Sgd(learning_rate=0.1), Adam()])
def test_options_that_are_left_out_are_no_hyperparameters(optimizer):
    assert not {"proximal", "clip_norm"} & set(optimizer.hyper)
    assert optimizer.feeds == ()


def test_the_proximal_term_asks_for_the_base_version():
    assert Sgd(learning_rate=0.1, proximal=0.0).feeds == ("base",)


@pytest.mark.parametrize("optimizer", [Sgd(learning_rate=0.1), Adam(weight_decay=0.1)])
def test_under_bare_hyperparameters_one_entry_is_the_gradient(optimizer):
    parameters, gradients = {"a": torch.ones(3)}, {"a": torch.tensor([1.0, -2, 3])}
    hyper = {name: torch.tensor(value) for name, value in (optimizer.hyper | dict(optimizer.bare)).items()}
    state = {name: torch.full_like(t, 0.5) for name, t in optimizer.entries(parameters).items()}
    following = optimizer.step(parameters, gradients, {**hyper, **state})
    assert following[f"a.{optimizer.gradient_entry}"].tolist() == gradients["a"].tolist()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Sgd(learning_rate=-0.1), "learning_rate"),
        (lambda: Sgd(learning_rate=float("nan")), "learning_rate"),
        (lambda: Adam(beta2=1.0), "beta2"),
        (lambda: Sgd(learning_rate=0.1, clip_norm=-1.0), "clip_norm"),
    ],
)
def test_an_option_that_is_none_is_refused_by_name(make, named):
    with pytest.raises(ConfigError, match=named):
        make()
