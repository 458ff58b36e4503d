# mypy: allow-subclassing-any, allow-untyped-decorators
"""Batch normalisation that a plain ONNX graph can train (Ioffe and Szegedy, 2015)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fl_protocol.errors import ConfigError


class _Normalise(torch.autograd.Function):
    """(x, weight, bias, eps) -> (output, mean, variance), both moments of the batch and without gradient.

    The gradient is written out: what autograd makes of the primitives reads the batch twice as often. The variance is
    taken from centred values, and sums run over positions first, then over examples, so float32 keeps its precision.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean = _mean(x)
        centred = x - _along(mean, x)
        variance = _mean(centred * centred)
        inverse = torch.rsqrt(variance + eps)
        ctx.save_for_backward(centred, inverse, weight)
        ctx.mark_non_differentiable(mean, variance)
        return centred * _along(inverse * weight, x) + _along(bias, x), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_moments: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        centred, inverse, weight = ctx.saved_tensors
        of_examples, with_centred = _positions(gradient), _positions(gradient * centred)  # (B, C) both
        factor = inverse * weight
        slope = factor * inverse * inverse * with_centred.mean(0)
        x_gradient = gradient * _along(factor, centred) - centred * _along(slope, centred)
        x_gradient = x_gradient - _along(factor * of_examples.mean(0), centred)
        count = _count(centred)
        return x_gradient, with_centred.sum(0) * count * inverse, of_examples.sum(0) * count, None


class BatchNorm(_BatchNorm):  # torch's base class, so that whoever asks whether a layer normalises batches is told
    """`nn.BatchNorm1d` or `2d`, input (B, C, ...): in training by the batch's moments, else by the running ones.

    In training it leaves the following running moments in `observed`, as torch updates them. A batch of one value a
    channel, which torch refuses, has variance 0.
    """

    def __init__(self, norm: nn.Module, name: str = "") -> None:
        nn.Module.__init__(self)
        if norm.running_mean is None or norm.momentum is None:
            raise ConfigError(
                f"the BatchNorm {name!r} has no running moments that follow by a fixed momentum",
                "give it track_running_stats=True and a momentum, 0.1 say",
            )
        self.num_features, self.eps, self.momentum = norm.num_features, norm.eps, norm.momentum
        self.affine, self.track_running_stats = norm.affine, True
        self.register_parameter("weight", norm.weight)
        self.register_parameter("bias", norm.bias)
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.register_buffer("num_batches_tracked", None)  # counts for the momentum None, which we refuse
        self.observed: dict[str, Tensor] = {}
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, scale and shift each channel."""
        self.observed = {}
        if not self.training:
            factor, shift = self.running_affine()
            return x * _along(factor, x) + _along(shift, x)
        weight = torch.ones_like(self.running_mean) if self.weight is None else self.weight
        bias = torch.zeros_like(self.running_mean) if self.bias is None else self.bias
        output, mean, variance = _Normalise.apply(x, weight, bias, self.eps)
        examples = torch.ones((), dtype=x.dtype) * x.shape[0]
        # n / (n - 1), for the running variance is the unbiased one; of a single value there is none, and 0 stays 0.
        unbiased = variance * examples / torch.clamp(examples - 1 / _count(x), min=1e-3)
        self.observed = {
            "running_mean": self.running_mean + self.momentum * (mean - self.running_mean),
            "running_var": self.running_var + self.momentum * (unbiased - self.running_var),
        }
        return output

    def running_affine(self) -> tuple[Tensor, Tensor]:
        """Factor and shift of each channel, (C,) both, that normalising by the running moments comes to."""
        return affine(self.weight, self.bias, self.running_mean, self.running_var, self.eps)


def affine(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Factor and shift of each channel that come to the same as normalising by these moments."""
    factor = torch.rsqrt(torch.clamp(variance, min=0) + eps)  # a mean of noisy updates may fall below zero
    factor = factor if weight is None else factor * weight
    shift = -mean * factor
    return factor, shift if bias is None else shift + bias


def replaced(module: nn.Module) -> nn.Module:
    """Replace every `nn.BatchNorm1d` and `2d` within `module`, in place, by a `BatchNorm`; names stay.

    Raises `ConfigError` for one without running moments.
    """
    for name, norm in list(module.named_modules()):
        if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d):
            module.set_submodule(name, BatchNorm(norm, name))
    return module


def _along(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.dim() - 2))


def _positions(x: Tensor) -> Tensor:
    """(B, C, ...) -> (B, C), the mean over positions."""
    return x.mean(list(range(2, x.dim()))) if x.dim() > 2 else x


def _mean(x: Tensor) -> Tensor:
    return _positions(x).mean(0)


def _count(x: Tensor) -> int:
    """Positions of an example."""
    return int(torch.Size(x.shape[2:]).numel())
