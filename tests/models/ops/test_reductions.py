"""Sums, means, extremes and norms over dimensions, with their gradients."""

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from tests.models.ops.compare import check, check_same, numbers

REDUCTIONS = {
    "sum": lambda x: x.sum(),
    "mean of squares": lambda x: x.square().mean(),
    "sum over the batch": lambda x: x * x.sum(0),
    "amax": lambda x: x.amax(2),
    "amin": lambda x: x.amin((1, 2)),
    "max": lambda x: x.max(1).values,
    "min": lambda x: x.min(2).values,
    "max of all": lambda x: x * x.max(),
    "var": lambda x: x.var(1),
    "var, biased": lambda x: x.var((1, 2), unbiased=False, keepdim=True),
    "var over the batch": lambda x: (x - x.mean((0, 1))) / torch.sqrt(x.var((0, 1), unbiased=False) + 0.1),
    "std": lambda x: x.std(2),
    "logsumexp": lambda x: torch.logsumexp(x, 1),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "norm of order 1": lambda x: x.norm(p=1, dim=2),
    "cosine similarity": lambda x: F.cosine_similarity(x[:, :2], x[:, 2:], dim=-1),
    "cumsum": lambda x: x.cumsum(1),
    "distances": lambda x: (x[:, :, None] - x[:, None]).square().sum(-1),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_reduction_and_its_gradient(name):
    check(lambda given: REDUCTIONS[name](given["x"] * given["w"]), {"w": numbers((6,), seed=1)}, rtol=2e-5)


@settings(max_examples=25, deadline=None)
@drawn(
    dims=st.sets(st.integers(-3, 2), min_size=1, max_size=3).filter(lambda d: len({i % 3 for i in d}) == len(d)),
    keep=st.booleans(),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    op=st.sampled_from([torch.sum, torch.mean, torch.amax]),
)
def test_any_dimensions_even_of_size_one(dims, keep, sizes, op):
    check(lambda given: op(given["x"].square(), tuple(dims), keep), shape=sizes, slopes=False)


PLACES = {
    "argmax": lambda x: x.argmax(1),
    "argmin": lambda x: x.argmin(-1, keepdim=True),
    "argmax of all": lambda x: x.argmax(),
    "place of the max": lambda x: x.max(2).indices,
    "prod": lambda x: x.prod(1),
    "counts": lambda x: (x > 0).sum(1),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_and_counts(name):
    check_same(lambda given: PLACES[name](given["x"]), {"x": lambda b: numbers((b, 4, 6), seed=b)})


def test_a_variance_beside_a_large_mean_is_exact():
    """E[x^2] - E[x]^2 would lose it all: here the mean is a thousand deviations."""
    check_same(lambda g: (1000 + g["x"]).var(1), {"x": lambda b: (numbers((b, 50), seed=b) * 8).round() / 8}, rtol=1e-4)
