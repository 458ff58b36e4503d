# mypy: allow-subclassing-any
"""What every fake-quantized layer has in common, and the gradient through a rounding."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


class _StraightThrough(torch.autograd.Function):
    """Forward: the rounded value. Backward: as if nothing had been rounded (Bengio et al., 2013)."""

    @staticmethod
    def forward(_ctx: object, _exact: Tensor, rounded: Tensor) -> Tensor:
        return rounded.clone()  # a view could not be changed in place, as nn.ReLU(inplace=True) does

    @staticmethod
    def backward(_ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, with the gradient going to `exact`."""
    result: Tensor = _StraightThrough.apply(exact, rounded)
    return result


class FakeQuantLayer(nn.Module):
    """A layer that computes in float what its int8 version will.

    `observed`: after a forward pass in training, the following value of each of its statistics buffers, by the
    buffer's name. `straight_through`: (exact, rounded) -> rounded with the gradient of exact; a forward pass calls it
    for each operand that it rounds, in the same order every time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.observed: dict[str, Tensor] = {}
        self.straight_through: Callable[[Tensor, Tensor], Tensor] = straight_through

    def codes(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the int8 version stores, from the layer's parameters and statistics; all names relative to it."""
        raise NotImplementedError

    def int8(self) -> nn.Module:
        """The layer between dequantized integers (QDQ); its buffers have the names that `codes` gives."""
        raise NotImplementedError

    def own(self) -> dict[str, Tensor]:
        """The layer's parameters and statistics as they stand, as `codes` takes them."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def names(self, name: str) -> dict[str, str]:
        """Full names of what `own` holds, of the layer called `name`."""
        return {key: f"{name}.{key}" for key in self.own()}
