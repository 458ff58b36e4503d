"""Arithmetic, comparisons, masks and promotion, element by element."""

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from models.to_onnx import export
from tests.models.ops.compare import check, check_same, num_nodes, numbers

ARITHMETIC = {
    "sqrt": lambda x: (x.square() + 1).sqrt(),
    "rsqrt": lambda x: (x.square() + 1).rsqrt(),
    "reciprocal": lambda x: 1 / (x.square() + 1),
    "pow 1.5": lambda x: (x.square() + 1) ** 1.5,
    "pow 3": lambda x: x**3,
    "pow of powers": lambda x: torch.pow(x.square() + 1, x),
    "power of two": lambda x: 2.0**x,
    "exp and log": lambda x: torch.exp(x) + torch.log(x.square() + 1),
    "expm1": torch.expm1,
    "log1p": lambda x: torch.log1p(x.square()),
    "erf": torch.erf,
    "sin and cos": lambda x: torch.sin(x) * torch.cos(x),
    "abs": lambda x: x.abs(),
    "sign": lambda x: x.sign() * x,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp below": lambda x: x.clamp(min=0.1),
    "clamp by tensors": lambda x: torch.clamp(x, x.mean(1, keepdim=True) - 0.5, x.mean(1, keepdim=True) + 0.5),
    "maximum": lambda x: torch.maximum(x, x.square()),
    "minimum": lambda x: torch.minimum(x, -x.square()),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.square() + 1, value=0.5),
    "lerp": lambda x: torch.lerp(x, x.square(), 0.3),
    "where": lambda x: torch.where(x > 0.2, x, 0.1 * x),
    "masked fill": lambda x: x.masked_fill(x < 0.1, -3.0),
    "floors have no gradient": lambda x: x * torch.floor(x.detach()) + torch.ceil(x.detach()) * x,
    "remainder": lambda x: torch.remainder(x, 0.7) * x,
    "filled": lambda x: x + torch.zeros_like(x) + torch.full((x.shape[0], 1, 1), 2.0) + x.new_ones(x.shape[0], 4, 6),
    "in place": lambda x: x.clone().add_(1).mul_(x).clamp_(min=-1),
    "expanded": lambda x: x.mean(1, keepdim=True).expand(-1, 4, -1) * x + x[:, :1].expand_as(x),
    "both expanded": lambda x: x[:, :1].expand(-1, 4, -1) * x[:, :, :1].expand(-1, -1, 6),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_and_its_gradient(name):
    check(lambda given: ARITHMETIC[name](given["x"]))


WITHOUT_GRADIENT = {
    "comparisons": lambda x, n: (
        torch.stack([(x > 0), (x >= n), (x < 1), (x <= n), x == n, x != n]).movedim(0, 1).float()
    ),
    "logic": lambda x, n: ((x > 0) & (n > 0) | ~(x < 1) ^ (n == 1)).float(),
    "logic by name": lambda x, n: torch.logical_or(torch.logical_and(x > 0, n > 0), torch.logical_not(n == 1)).int(),
    "whole numbers": lambda _x, n: (n - 2) // 2 + (n - 2) % 2 + n * 3,
    "a fraction against whole numbers": lambda _x, n: (n > 0.5).float() + (n < 1.5),
    "promotion": lambda x, n: n / 2 + x * n + (n > 0) * x,
    "truth times truth": lambda x, n: ((x > 0) * (n > 0)).float(),
    "any": lambda x, n: (x > 1.5).any(1).float() + (n > 1).any().float(),
    "not a number": lambda x, _n: torch.isnan(torch.log(x)).float(),
    "truncated": lambda x, _n: torch.div(x, 0.3, rounding_mode="trunc") + torch.div(x, 0.3, rounding_mode="floor"),
}


@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_what_has_no_gradient(name):
    batched = {"x": lambda b: numbers((b, 4, 6), seed=b), "n": lambda b: numbers((b, 4, 6), torch.int64, seed=b)}
    check_same(lambda given: WITHOUT_GRADIENT[name](given["x"], given["n"]), batched)


def test_log1p_and_expm1_are_exact_near_zero():
    """Where 1 + x has lost most of x's bits."""
    near = {"x": lambda b: 1e-6 * numbers((b, 4), seed=b).abs()}
    check_same(lambda given: torch.log1p(given["x"]), near)
    check_same(lambda given: torch.expm1(given["x"]), near)


@settings(max_examples=25, deadline=None)
@drawn(
    left=st.sampled_from([(1,), (6,), (4, 1), (4, 6), (1, 4, 6), (1, 1, 1)]),
    op=st.sampled_from([torch.add, torch.sub, torch.mul, torch.div, torch.maximum]),
    swap=st.booleans(),
)
def test_shapes_broadcast_as_in_torch_and_gradients_sum_back(left, op, swap):
    def function(given):
        a, b = given["w"] + 5, given["x"] + 7
        return op(b, a) if swap else op(a, b)

    check(function, {"w": numbers(left, seed=2)}, slopes=False)


def test_the_gradient_of_a_mean_is_one_number():
    """And not as many as there are elements: 1 / n is computed once."""

    def step(given):
        x = given["x"].detach().requires_grad_()
        return {"gradient": torch.autograd.grad(x.square().mean(), [x])[0]}

    assert num_nodes(export(step, {"x": numbers((1, 4))}, {})) <= 6  # size, cast, 1 / n, 2 x, their product


def test_what_depends_on_no_input_is_computed_when_the_graph_is_written():
    def function(given):
        steps = torch.arange(6, dtype=torch.float32).reshape(1, 6) / 6
        mask = torch.ones(6, 6).tril() * torch.tensor([0.5])
        return {"out": given["x"] * (steps.exp() + mask.sum(0))}

    assert num_nodes(export(function, {"x": numbers((1, 6))}, {})) == 1
