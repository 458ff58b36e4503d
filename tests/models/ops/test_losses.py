"""Losses with their gradients by the output, as authors write them."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from tests.models.ops.compare import check_gradient, check_same, numbers

WEIGHTS = torch.tensor([1.0, 2.0, 0.5])


def real(y, out):
    return y.to(out.dtype)


LOSSES = {
    "cross-entropy": lambda o, y: F.cross_entropy(o, y),
    "cross-entropy of each": lambda o, y: F.cross_entropy(o, y, reduction="none"),
    "cross-entropy, class weights": lambda o, y: F.cross_entropy(o, y, weight=WEIGHTS.to(o.dtype)),
    "cross-entropy, smoothed": lambda o, y: F.cross_entropy(o, y, label_smoothing=0.1),
    "cross-entropy, ignoring": lambda o, y: F.cross_entropy(o, y, ignore_index=2, reduction="sum"),
    "cross-entropy of probabilities": lambda o, y: F.cross_entropy(o, F.one_hot(y, 3).to(o.dtype) * 0.8 + 0.1),
    "negative log likelihood": lambda o, y: F.nll_loss(F.log_softmax(o, 1), y),
    "gathered": lambda o, y: -F.log_softmax(o, 1).gather(1, y[:, None]).mean(),
    "binary": lambda o, y: F.binary_cross_entropy_with_logits(o[:, 0], (y > 1).to(o.dtype)),
    "binary, weighted": lambda o, y: F.binary_cross_entropy_with_logits(
        o[:, 0], (y > 1).to(o.dtype), pos_weight=torch.tensor(3.0, dtype=o.dtype), reduction="none"
    ),
    "binary of probabilities": lambda o, y: F.binary_cross_entropy(torch.sigmoid(o[:, 0]), (y > 1).to(o.dtype)),
    "squared error": lambda o, y: F.mse_loss(o[:, 0], real(y, o)),
    "squared error of each": lambda o, _y: F.mse_loss(o, o.detach() + 1, reduction="none").sum(1),
    "absolute error": lambda o, y: F.l1_loss(o[:, 0], real(y, o)),
    "Huber": lambda o, y: F.huber_loss(o[:, 0], real(y, o), delta=0.5),
    "smooth L1": lambda o, y: F.smooth_l1_loss(o[:, 0], real(y, o), beta=0.7),
    "divergence": lambda o, _y: F.kl_div(F.log_softmax(o, 1), F.softmax(0.3 * o.detach(), 1), reduction="batchmean"),
    "Poisson": lambda o, y: F.poisson_nll_loss(o[:, 0], real(y, o)),
    "Gaussian": lambda o, y: (o[:, 1] + (o[:, 0] - real(y, o)).square() * torch.exp(-o[:, 1])).mean() / 2,
    "hinge": lambda o, y: F.relu(1 - o[:, 0] * (2 * (y > 1).to(o.dtype) - 1)).mean(),
    "triplet": lambda o, _y: F.triplet_margin_loss(o, o.detach() + 0.3, o.detach() - 0.2),
    "reconstruction": lambda o, _y: (o - torch.tanh(o.detach())).square().mean(1),
}

# Against a target that is made of the output itself, and held: finite differences would move it too.
HALF_HELD = ("squared error of each", "divergence", "triplet", "reconstruction")


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient(name):
    batched = {"x": lambda b: numbers((b, 3), seed=b), "y": lambda b: numbers((b,), torch.int64, seed=b)}
    if "ignoring" in name:  # at least one example counts
        batched["y"] = lambda b: torch.arange(b) % 3
    function = lambda given: LOSSES[name](given["x"] @ given["w"], given["y"])  # noqa: E731
    others = {"w": numbers((3, 3), seed=7)}
    check_same(function, batched, others, ("w",), rtol=2e-5)
    if name not in HALF_HELD:
        check_gradient(function, {"x": batched["x"](4), "y": batched["y"](4), **others}, ("w",))
