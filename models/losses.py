"""Losses, one value an example: (output, y) -> shape (B,). A step trains on their mean, an evaluation adds them up.

Options are keyword arguments: `loss=partial(huber, delta=5.0)`. All raise `ConfigError` where output and y do not fit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own custom)

from fl_protocol.errors import ConfigError


def cross_entropy(output: Tensor, y: Tensor, class_weights: Sequence[float] | None = None) -> Tensor:
    """Cross-entropy of logits (B, classes) and class numbers (B,).

    With `class_weights`, one a class, each example counts as its class does; the mean over a batch is not divided by
    the weights in it (torch divides), so that sums over batches of any size add up.
    """
    if output.dim() != 2 or y.dim() != 1 or y.is_floating_point():
        raise ConfigError(
            f"cross_entropy takes logits (B, classes) and class numbers (B,), not {_text(output)} and {_text(y)}",
            "let the module return one logit a class; for one logit or a regression take another loss",
        )
    is_class = y.unsqueeze(1) == torch.arange(output.shape[1])
    log_likelihood = F.log_softmax(output, 1) * is_class
    if class_weights is not None:
        if len(class_weights) != output.shape[1]:
            raise ConfigError(
                f"class_weights has {len(class_weights)} numbers for {output.shape[1]} classes", "give one a class"
            )
        log_likelihood = log_likelihood * torch.tensor(class_weights, dtype=output.dtype)
    return -log_likelihood.sum(1)


def binary_cross_entropy(output: Tensor, y: Tensor, positive_weight: float = 1.0) -> Tensor:
    """Cross-entropy of one logit, (B,) or (B, 1), and y in 0..1, (B,) or (B, 1), whole or float.

    An example counts `positive_weight` times as far as it is positive: negatives / positives balances rare faults.
    """
    logit, target = single(output, "binary_cross_entropy"), single(y, "binary_cross_entropy").to(output.dtype)
    negative = F.softplus(logit)  # the loss where y is 0
    positive = negative - logit  # where it is 1
    return positive * (target * positive_weight) + negative * (1 - target)


def squared_error(output: Tensor, y: Tensor) -> Tensor:
    """Mean square of `output - y` over the values of each example."""
    return per_example(difference(output, y).square())


def huber(output: Tensor, y: Tensor, delta: float = 1.0) -> Tensor:
    """Half the square of `output - y` up to `delta`, then linear (Huber, 1964); the mean over each example's values."""
    distance = difference(output, y).abs()
    inner = distance.clamp(max=delta)
    return per_example(inner * (distance - 0.5 * inner))


def reconstruction(output: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001  losses have one shape
    """The output itself: an autoencoder gives the error of each example, (B,), and y is not used."""
    return single(output, "reconstruction")


def difference(output: Tensor, y: Tensor) -> Tensor:
    """`output - y`; an output (B, 1) fits y of (B,)."""
    if output.dim() == y.dim() + 1 and output.shape[-1] == 1:
        output = output.squeeze(-1)
    if output.shape[1:] != y.shape[1:] or output.dim() != y.dim():
        raise ConfigError(f"the output is {_text(output)} and y is {_text(y)}", "let them have the same shape")
    return output - y


def per_example(values: Tensor) -> Tensor:
    """The mean of each example's values, shape (B,)."""
    return values.flatten(1).mean(1) if values.dim() > 1 else values


def single(values: Tensor, name: str) -> Tensor:
    """One value an example, (B,), from (B,) or (B, 1)."""
    if values.dim() == 2 and values.shape[1] == 1:
        values = values.squeeze(1)
    if values.dim() != 1:
        raise ConfigError(
            f"{name} takes one number an example, not {_text(values)}", "let it have shape (B,) or (B, 1)"
        )
    return values


def _text(tensor: Tensor) -> str:
    sizes = ", ".join(["B", *(str(int(size)) for size in tensor.shape[1:])])
    return f"{str(tensor.dtype).removeprefix('torch.')} ({sizes})"
