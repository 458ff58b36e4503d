"""What optimizers are written with: moments, roots and powers, and a gradient clipped by its global norm."""

import torch

from tests.models.ops.compare import check_same, numbers

GIVEN = {
    "w": numbers((6, 3)),
    "b": numbers((3,), seed=1),
    "first": 0.1 * numbers((6, 3), seed=2),
    "second": 0.1 * numbers((6, 3), seed=3).square(),
    "steps": torch.tensor(4.0),
    "rate": torch.tensor(0.01),
    "beta1": torch.tensor(0.9),
    "beta2": torch.tensor(0.999),
    "most": torch.tensor(0.5),
}
BATCHED = {"x": lambda b: numbers((b, 6), seed=b), "y": lambda b: numbers((b, 3), seed=b + 1)}


def gradients(given):
    w, b = (given[name].detach().requires_grad_() for name in ("w", "b"))
    loss = (given["x"] @ w + b - given["y"]).square().mean()
    return torch.autograd.grad(loss, [w, b])


def test_a_step_of_adam():
    def function(given):
        gradient, _ = gradients(given)
        steps = given["steps"] + 1
        first = torch.lerp(gradient, given["first"], given["beta1"])
        second = given["second"] * given["beta2"] + (1 - given["beta2"]) * gradient * gradient
        of_first, of_second = (1 - given[name] ** steps for name in ("beta1", "beta2"))
        change = (first / of_first) / (torch.sqrt(second / of_second) + 1e-8)
        return torch.addcdiv(given["w"] - given["rate"] * change, first, second.sqrt() + 1, value=-0.01)

    check_same(function, BATCHED, GIVEN)


def test_gradients_clipped_by_their_global_norm():
    def function(given):
        grads = gradients(given)
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
        factor = (given["most"] / (norm + 1e-6)).clamp(max=1.0)
        return torch.cat([(g * factor).flatten() for g in grads])

    check_same(function, BATCHED, GIVEN)


def test_the_proximal_term():
    """FedProx: a pull towards where training began."""

    def function(given):
        w = given["w"].detach().requires_grad_()
        loss = (given["x"] @ w).square().mean() + 0.5 * given["rate"] * (w - given["first"]).square().sum()
        return torch.autograd.grad(loss, [w])[0]

    check_same(function, BATCHED, GIVEN)
