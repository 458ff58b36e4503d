# mypy: allow-subclassing-any
"""Dropout whose masks are a function of the step's seed: the same bits in torch and in ONNX, on every processor.

A counter-based generator in integers. With p = 2^31 - 1, a key of (seed, layer) and n = 0, 1, ...: u_n = (key + n)^5
mod p, which is a permutation since 5 does not divide p - 1 (as in the cipher MiMC, Albrecht et al., ASIACRYPT 2016).
Feature j takes u_j, example i takes u_(features + i), and the element of both is dropped where u_i * u_j mod p is low:
only three passes over integers have the size of the layer's input. No product exceeds 2^63, so int64 holds it.
"""

import math

import torch
from torch import Tensor, nn

from fl_protocol.errors import ConfigError

_PRIME = 2**31 - 1
_PRIME2 = 2**31 - 19  # a seed has 64 bits: both remainders tell more of them than one
# Any large numbers: neighbours get distant keys. The first two add up to less than 2^32 - 4, or keys would overflow.
_OF_SEED, _OF_SEED2, _OF_LAYER = 1_664_525_013, 1_220_703_125, 1_013_904_223


class Dropout(nn.Module):
    """`nn.Dropout`, or with `by_channel` its 1-D and 2-D kin, drawing from the buffer `seed` (int64, scalar).

    In training, elements become 0 with probability `rate` and the others are scaled by 1 / (1 - rate); each call within
    one forward pass has a mask of its own. In evaluation it does nothing.
    """

    def __init__(self, rate: float, layer: int = 0, by_channel: bool = False) -> None:
        super().__init__()
        self.rate, self.layer, self.by_channel = rate, layer, by_channel
        self.calls = 0  # within this forward pass
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of `x`, whose first dimension is the batch; shape as `x`."""
        if not self.training or self.rate == 0:
            return x
        if self.rate == 1:
            return x * 0
        self.calls += 1
        shape = (*x.shape[:2], *[1] * (x.dim() - 2)) if self.by_channel else x.shape
        dropped = self._uniform(shape[0], math.prod(shape[1:])) < int(self.rate * _PRIME)
        factor = torch.where(dropped, 0.0, 1 / (1 - self.rate)).to(x.dtype)  # one factor, for the gradient as well
        return x * factor.reshape(shape)

    def _uniform(self, examples: int, features: int) -> Tensor:
        """Integers from 1 to p - 1, shape (examples, features)."""
        place = (self.layer + 4096 * (self.calls - 1)) * _OF_LAYER % _PRIME
        key = self.seed % _PRIME * _OF_SEED + self.seed % _PRIME2 * _OF_SEED2 + place
        base = (key + torch.arange(features + examples)) % _PRIME
        square = base * base % _PRIME
        drawn = square * square % _PRIME * base % _PRIME
        return drawn[features:].unsqueeze(1) * drawn[:features] % _PRIME


_BY_CHANNEL = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_UNKNOWN = (nn.AlphaDropout, nn.FeatureAlphaDropout)


def replaced(module: nn.Module) -> nn.Module:
    """Replace every dropout layer within `module`, in place, by a `Dropout` with a number of its own.

    Raises `ConfigError` for a kind of dropout that there is none for.
    """
    layers = 0
    for parent_name, parent in list(module.named_modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _UNKNOWN):
                raise ConfigError(
                    f"{parent_name}{'.' if parent_name else ''}{name} is a {type(child).__name__}", "use nn.Dropout"
                )
            if isinstance(child, (nn.Dropout, *_BY_CHANNEL)):
                layer = Dropout(child.p, layers, by_channel=isinstance(child, _BY_CHANNEL))
                setattr(parent, name, layer.train(child.training))
                layers += 1
    if layers:
        module.register_forward_pre_hook(_count_calls_anew)
    return module


def _count_calls_anew(module: nn.Module, _inputs: object) -> None:
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.calls = 0
