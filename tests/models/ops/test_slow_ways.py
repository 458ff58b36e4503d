"""What onnxruntime is many times slower at than at something equal does not get into a graph.

Figures: onnxruntime 1.32, x86-64, 200,000 elements.
"""

import numpy as np
import onnx
import torch

from tests.models.ops.compare import check_same, numbers, session


def kinds(graph):
    return [node.op_type for node in onnx.load_from_string(graph).graph.node]


def test_the_gradient_of_relu_does_not_branch():
    """`Where` takes 110 to 710 us, the more the less the signs can be guessed; a step function and a product 45."""
    graph = check_same(lambda g: g["x"].relu().square(), {"x": lambda b: numbers((b, 5), seed=b)}, None, ("x",))
    assert "Where" not in kinds(graph)


def test_the_step_function_in_it_is_0_or_1_exactly():
    """Down to float32's smallest normal number; zeros, which are many behind a ReLU, get no gradient."""
    values = np.array([[0.0, 1.2e-38, 1e-30, 1.0, 3e38, -1e-30, -1.0]], np.float32)
    graph = check_same(lambda g: g["x"].relu(), {"x": lambda b: numbers((b, 7), seed=b)}, None, ("x",))
    _, gradient = session(graph).run(None, {"x": values})
    slopes = np.cos(np.arange(7, dtype=np.float32) + 1)
    np.testing.assert_array_equal(gradient != 0, [[False, True, True, True, True, False, False]])
    np.testing.assert_allclose(gradient[0, 1:5], slopes[1:5], rtol=1e-6)


def test_a_number_times_a_pointwise_weight_is_done_flat():
    """(64, 32, 1, 1) takes 40 us, as (2048,) it takes 3: where the last dimension is 1, it goes element by element."""
    weight = {"w": numbers((4, 3, 1, 1)), "rate": torch.tensor(0.1)}
    graph = check_same(
        lambda g: g["rate"] * g["w"] - 2 * g["x"].sum(), {"x": lambda b: numbers((b, 2), seed=b)}, weight
    )
    assert kinds(graph).count("Reshape") >= 2


def test_the_gradient_of_a_mean_over_positions_is_not_spread_out():
    """`Expand` from (B, C, 1, 1) takes 80 us where the product that follows takes 35, spreading as it goes."""

    def gradient(given):
        x = given["x"].detach().requires_grad_()
        return torch.autograd.grad(x.relu().mean((2, 3)).square().sum(), [x])[0]

    assert "Expand" not in kinds(check_same(gradient, {"x": lambda b: numbers((b, 3, 4, 4), seed=b)}))
