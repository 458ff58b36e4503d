"""Metrics: what an operator reads of a model. One score an example, so that sums over batches add up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_protocol.bundle import Better
from fl_protocol.errors import ConfigError
from models.losses import difference, per_example, single

PerExample = Callable[[Tensor, Tensor], Tensor]  # (output, y) -> (B,)


@dataclass(frozen=True)
class Metric:
    """A name, the score of each example, (output, y) -> (B,), and whether a higher or a lower mean is better."""

    name: str
    score: PerExample
    better: Better = "higher"


def is_correct(output: Tensor, y: Tensor) -> Tensor:
    """1.0 where the prediction is the class `y`, else 0.0, shape (B,).

    The prediction is the largest of several logits, or, with one logit (B,) or (B, 1), whether it is above zero.
    """
    if output.dim() == 1 or output.shape[1] == 1:
        predicted = single(output, "accuracy") > 0
        return (predicted == (single(y, "accuracy") > 0)).to(output.dtype)
    return (output.argmax(1) == y).to(output.dtype)


def balanced_accuracy(shares: Sequence[float]) -> Metric:
    """The mean of the classes' recalls, where the classes have these shares (each above 0) of the examples.

    An example that is right scores 1 / (classes x its class's share): on examples with just these shares the mean
    score is the mean recall. On others it is what importance weighting makes of it, and may exceed 1.
    """
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-3:
        raise ConfigError(f"balanced_accuracy was given the shares {tuple(shares)}", "one above 0 a class, 1 in sum")

    def score(output: Tensor, y: Tensor) -> Tensor:
        classes = single(y, "balanced_accuracy").to(torch.int64)
        worth = torch.tensor([1 / (len(shares) * share) for share in shares], dtype=output.dtype)
        is_class = classes.unsqueeze(1) == torch.arange(len(shares))
        return is_correct(output, y) * (is_class * worth).sum(1)

    return Metric("balanced_accuracy", score)


def absolute_error(output: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference over the values of each example."""
    return per_example(difference(output, y).abs())


ACCURACY = Metric("accuracy", is_correct)
ABSOLUTE_ERROR = Metric("absolute_error", absolute_error, "lower")
SQUARED_ERROR = Metric("squared_error", lambda output, y: per_example(difference(output, y).square()), "lower")
RECONSTRUCTION_ERROR = Metric("reconstruction_error", lambda output, _y: single(output, "the metric"), "lower")
