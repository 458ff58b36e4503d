"""Server optimizers equal a reference written from their papers, parameter by parameter in float64."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_aggregator.aggregation.recipes import OPTIMIZERS, make_server_optimizer
from broker_aggregator.server_optimizer import SGD
from fl_protocol.errors import ConfigError
from tests.broker_aggregator.aggregation.references import optimized
from tests.broker_aggregator.aggregation.sets import PLAN


def made(rate="0.1", momentum="0.0", **settings):
    return make_server_optimizer(
        replace(PLAN, server_learning_rate=rate, server_momentum=momentum, optimizer=settings or None)
    )


def applied(optimizer, params, steps, staleness=0):
    state = optimizer.init(len(params))
    for step in steps:
        params, state = optimizer.apply(params, step, state, staleness)
    return params


def walk(seed, count=6, size=5):
    """Parameters and steps, one coordinate always zero."""
    rng = np.random.default_rng(seed)
    steps = (rng.normal(size=(count, size)) * 0.3).astype(np.float32)
    steps[:, 0] = 0
    return rng.normal(size=size).astype(np.float32), steps


@given(st.integers(0, 2**32 - 1), st.sampled_from(["adagrad", "adam", "yogi", "fadas"]))
def test_the_adaptive_ones(seed, name):
    """FedAdagrad, FedAdam, FedYogi, and FADAS on fresh buffers, with settings of their own."""
    params, steps = walk(seed)
    betas = {} if name == "adagrad" else {"beta2": "0.95"}
    found = applied(made(name=name, beta1="0.8", epsilon="0.01", **betas), params, steps)
    expected = optimized(name, params, steps, 0.1, 0.8, 0.95, 0.01)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "beta2", "epsilon"), [("adam", 0.99, 1e-3), ("yogi", 0.99, 1e-3), ("fadas", 0.99, 1e-4)]
)
def test_the_defaults(name, beta2, epsilon):
    """Betas 0.9 and 0.99."""
    params, steps = walk(1)
    expected = optimized(name, params, steps, 0.1, 0.9, beta2, epsilon)
    np.testing.assert_allclose(applied(made(name=name), params, steps), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("staleness", [0, 4, 5, 8, 40])
def test_fadas_moves_less_for_very_stale_buffers(staleness):
    """Above a delay of 4 the rate is at most 1 / the largest staleness: 0.15 of age 5 stays, of age 8 is 0.125."""
    params, steps = walk(2)
    found = applied(made("0.15", name="fadas"), params, steps, staleness)
    expected = optimized("fadas", params, steps, 0.15, 0.9, 0.99, 1e-4, 4, staleness)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_server_momentum_by_hand():
    """m1 = 1, m2 = .5 * 1 + 1 = 1.5; w = 0 + 2 * 1 + 2 * 1.5 = 5. The arguments stay as they are."""
    optimizer = SGD(learning_rate=2, momentum=0.5)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    params, state = optimizer.apply(zero, one, optimizer.init(1))
    params, state = optimizer.apply(params, one, state)
    assert params.tolist() == [5]
    assert state["momentum"].tolist() == [1.5]
    assert (one.tolist(), zero.tolist()) == ([1], [0])


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.99))
def test_momentum_is_the_sum_of_faded_steps(seed, beta):
    """w_t = w_0 + rate sum_s sum_{r <= s} beta^(s - r) step_r."""
    params, steps = walk(seed)
    expected = params.astype(np.float64)
    for s in range(len(steps)):
        for r in range(s + 1):
            expected = expected + 0.1 * beta ** (s - r) * steps[r]
    np.testing.assert_allclose(applied(made(momentum=f"{beta:.12f}"), params, steps), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_arguments_are_not_written_to(name):
    """Parameters, step and state are read-only here; what comes out is float32."""
    params, steps = walk(3)
    optimizer = made(name=name, momentum="0.9") if name == "sgd" else made(name=name)
    state = optimizer.init(len(params))
    for step in steps:
        for value in (params, step, *state.values()):
            value.setflags(write=False)
        params, state = optimizer.apply(params, step, state, 3)
        assert params.dtype == np.float32
        assert all(value.dtype == np.float32 for value in state.values())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "lamb"}, "one of sgd, adam"),
        ({"name": "adam", "beta1": "1.0"}, "beta1 is a number from 0"),
        ({"name": "adagrad", "beta2": "0.9"}, "has no parameter 'beta2'"),
        ({"name": "adam", "delay": "3"}, "has no parameter 'delay'"),
        ({"name": "sgd", "epsilon": "0.1"}, "has no parameter 'epsilon'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    """By name."""
    with pytest.raises(ConfigError, match=said):
        made(**settings)


def test_momentum_is_not_had_twice():
    """The adaptive ones have their own, `beta1`."""
    with pytest.raises(ConfigError, match=r"optimizer.beta1"):
        made(momentum="0.9", name="adam")
