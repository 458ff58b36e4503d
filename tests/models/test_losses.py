"""Losses and metrics against torch's own in float64: one value an example, so that sums over batches add up."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from fl_protocol.errors import ConfigError
from models import losses, metrics

seeds = st.integers(0, 2**32 - 1)


def normal(seed, *shape, spread=3.0):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape) * spread)


def classes(seed, n, k):
    return torch.tensor(np.random.default_rng(seed).integers(0, k, n))


def assert_same_with_gradient(ours, theirs, output, atol=1e-9):
    """Values and gradients of two losses of `output`, each example by itself."""
    results = []
    for function in (ours, theirs):
        leaf = output.clone().requires_grad_()
        value = function(leaf)
        results.append((value.detach(), *torch.autograd.grad(value.sum(), [leaf])))
    assert results[0][0].shape == (len(output),)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=atol)


@given(seeds, st.integers(1, 9), st.integers(2, 5), st.booleans())
def test_cross_entropy_is_torchs(seed, n, k, weighted):
    y, weights = classes(seed, n, k), normal(seed, k).abs()
    ours = partial(losses.cross_entropy, y=y, class_weights=weights.tolist() if weighted else None)
    theirs = partial(F.cross_entropy, target=y, weight=weights if weighted else None, reduction="none")
    assert_same_with_gradient(ours, theirs, normal(seed, n, k))


@given(seeds, st.integers(1, 9), st.sampled_from([(), (1,)]), st.floats(0.1, 50))
def test_binary_cross_entropy_is_torchs(seed, n, row, weight):
    y = classes(seed, n, 2)
    output = normal(seed, n, *row, spread=30.0)
    theirs = partial(
        F.binary_cross_entropy_with_logits, reduction="none", pos_weight=torch.tensor(weight, dtype=torch.float64)
    )
    assert_same_with_gradient(
        lambda z: losses.binary_cross_entropy(z, y, positive_weight=weight),
        lambda z: theirs(z.reshape(-1), y.double()),
        output,
        atol=weight * 3e-9,  # torch's softplus is its input above 20, where exp(-20) = 2e-9 is left out
    )


def test_binary_cross_entropy_has_its_slope_where_a_dead_network_gives_zero():
    z = torch.zeros(2, requires_grad=True)
    (slope,) = torch.autograd.grad(losses.binary_cross_entropy(z, torch.tensor([0, 1])).sum(), [z])
    assert slope.tolist() == [0.5, -0.5]


@given(seeds, st.integers(1, 9), st.sampled_from([(), (3,), (2, 3)]), st.floats(0.1, 5))
def test_squared_error_and_huber_are_torchs_means_over_each_example(seed, n, row, delta):
    y, output = normal(seed, n, *row), normal(seed + 1, n, *row)

    def mean(values):
        return values.reshape(n, -1).mean(1)

    assert_same_with_gradient(
        lambda z: losses.squared_error(z, y), lambda z: mean(F.mse_loss(z, y, reduction="none")), output
    )
    assert_same_with_gradient(
        lambda z: losses.huber(z, y, delta=delta),
        lambda z: mean(F.huber_loss(z, y, reduction="none", delta=delta)),
        output,
    )


def test_an_output_of_one_column_fits_a_y_of_none():
    y = torch.tensor([1.0, 2.0])
    assert losses.squared_error(torch.tensor([[1.0], [4.0]]), y).tolist() == [0, 4]
    assert losses.reconstruction(torch.tensor([[1.0], [4.0]]), y).tolist() == [1, 4]


@pytest.mark.parametrize(
    ("loss", "output", "y"),
    [
        (losses.cross_entropy, torch.zeros(2), torch.zeros(2, dtype=torch.int64)),
        (losses.cross_entropy, torch.zeros(2, 3), torch.zeros(2)),
        (partial(losses.cross_entropy, class_weights=[1.0]), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)),
        (losses.binary_cross_entropy, torch.zeros(2, 2), torch.zeros(2)),
        (losses.squared_error, torch.zeros(2, 3), torch.zeros(2)),
        (losses.huber, torch.zeros(2), torch.zeros(2, 3)),
        (losses.reconstruction, torch.zeros(2, 3), torch.zeros(2)),
    ],
)
def test_an_output_that_does_not_fit_y_is_refused_with_what_to_do(loss, output, y):
    with pytest.raises(ConfigError) as caught:
        loss(output, y)
    assert caught.value.hint


# --- metrics -------------------------------------------------------------------------------------------------
def test_accuracy_takes_the_largest_logit_or_the_sign_of_the_only_one():
    y = torch.tensor([0, 1])
    assert metrics.is_correct(torch.tensor([[1.0, 0], [1, 0]]), y).tolist() == [1, 0]
    assert metrics.is_correct(torch.tensor([-1.0, 2]), y).tolist() == [1, 1]
    assert metrics.is_correct(torch.tensor([[1.0], [2]]), y).tolist() == [0, 1]


@given(seeds, st.integers(2, 4))
def test_balanced_accuracy_is_the_mean_recall_on_examples_with_its_shares(seed, k):
    y = torch.cat([torch.arange(k), classes(seed, 30, k)])
    output = normal(seed, len(y), k)
    shares = (torch.bincount(y) / len(y)).tolist()
    recalls = [(output.argmax(1)[y == c] == c).double().mean() for c in range(k)]
    score = metrics.balanced_accuracy(shares).score(output, y)
    torch.testing.assert_close(score.mean(), torch.stack(recalls).mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shares", [(), (0.5, 0.6), (1.0, 0.0)])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ConfigError, match="shares"):
        metrics.balanced_accuracy(shares)


@pytest.mark.parametrize(
    ("metric", "scores", "better"),
    [
        (metrics.ACCURACY, None, "higher"),
        (metrics.ABSOLUTE_ERROR, [1, 3], "lower"),
        (metrics.SQUARED_ERROR, [1, 9], "lower"),
        (metrics.RECONSTRUCTION_ERROR, [2, 5], "lower"),
    ],
)
def test_errors_are_better_when_they_are_lower(metric, scores, better):
    assert metric.better == better
    if scores:
        assert metric.score(torch.tensor([2.0, 5]), torch.tensor([1.0, 2])).tolist() == scores
