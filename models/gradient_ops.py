# mypy: allow-untyped-decorators
"""Gradients that aten computes several of in one op, one op each: what nobody needs is then not computed.

They take over from aten's own while a step is traced (`decompositions.py`); the table in `ops/` writes them.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from fl_protocol.errors import ConfigError

aten = torch.ops.aten


def convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, _bias: list[int] | None, *settings: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """aten.convolution_backward in parts; the last of `settings` says which of its three results are asked for."""
    *window, wanted = settings
    sums = [0, *range(2, gradient.dim())]
    return (
        input_gradient(gradient, x, weight, *window) if wanted[0] else None,
        weight_gradient(gradient, x, weight, *window) if wanted[1] else None,
        gradient.sum(sums) if wanted[2] else None,
    )


@torch.library.custom_op("anabranch::convolution_input_gradient", mutates_args=())
def input_gradient(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    """Gradient of a convolution's input, in its shape."""
    settings = stride, padding, dilation, transposed, output_padding, groups
    result: Tensor = aten.convolution_backward(gradient, x, weight, None, *settings, [True, False, False])[0]
    return result


@torch.library.custom_op("anabranch::convolution_weight_gradient", mutates_args=())
def weight_gradient(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    """Gradient of a convolution's weight, in its shape."""
    settings = stride, padding, dilation, transposed, output_padding, groups
    result: Tensor = aten.convolution_backward(gradient, x, weight, None, *settings, [False, True, False])[1]
    return result


@input_gradient.register_fake
def _(_gradient: Tensor, x: Tensor, _weight: Tensor, *_window: object) -> Tensor:
    return torch.empty_like(x)


@weight_gradient.register_fake
def _(_gradient: Tensor, _x: Tensor, weight: Tensor, *_window: object) -> Tensor:
    return torch.empty_like(weight)


@torch.library.custom_op("anabranch::max_pool", mutates_args=())
def max_pool(x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """The largest value of each window, (B, C, H, W) -> (B, C, windows down, windows across)."""
    result: Tensor = aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation)[0]
    return result


@torch.library.custom_op("anabranch::max_pool_indices", mutates_args=())
def max_pool_indices(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """Where each of them was. The table has no translation: gradients do without."""
    result: Tensor = aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation)[1]
    return result


@torch.library.custom_op("anabranch::max_pool_gradient", mutates_args=())
def max_pool_gradient(
    gradient: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """The gradient of `x`: each window's goes to the first of its largest values."""
    settings = kernel, stride, padding, dilation, False
    indices = aten.max_pool2d_with_indices(x, *settings)[1]
    result: Tensor = aten.max_pool2d_with_indices_backward(gradient, x, *settings, indices)
    return result


@max_pool.register_fake
def _(x: Tensor, *window: list[int]) -> Tensor:
    return x.new_empty(_pooled(x, *window))


@max_pool_indices.register_fake
def _(x: Tensor, *window: list[int]) -> Tensor:
    return x.new_empty(_pooled(x, *window), dtype=torch.int64)


@max_pool_gradient.register_fake
def _(_gradient: Tensor, x: Tensor, *_window: list[int]) -> Tensor:
    return torch.empty_like(x)


def _pooled(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """The shape of what pooling `x` gives."""
    sizes = zip(x.shape[-2:], kernel, stride, padding, dilation, strict=True)
    return [*x.shape[:-2], *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)]


def _max_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    settings = window(x, kernel, stride, padding, dilation, ceil_mode)
    return max_pool(x, *settings), max_pool_indices(x, *settings)


def _max_pool2d_backward(
    gradient: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    _indices: Tensor,
) -> Tensor:
    return max_pool_gradient(gradient, x, *window(x, kernel, stride, padding, dilation, ceil_mode))


def window(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[list[int]]:
    """Kernel, stride, padding and dilation, two numbers each. Raises `ConfigError` where ceil_mode matters."""
    settings = [list(part) * (2 // len(part)) for part in (kernel, stride or kernel, padding, dilation)]
    sizes = zip(x.shape[-2:], *settings, strict=True)
    if ceil_mode and any((n + 2 * p - d * (k - 1) - 1) % s for n, k, s, p, d in sizes):
        raise ConfigError(
            "the model pools with ceil_mode=True, and windows reach over the edge",
            "leave ceil_mode out, and pad the input so that the windows fit",
        )
    return settings


def _adaptive(x: Tensor, output: Sequence[int]) -> list[int]:
    """The window that gives `output` places a dimension. Raises `ConfigError` where windows would differ in size."""
    if any(n % size for n, size in zip(x.shape[-2:], output, strict=True)):
        raise ConfigError(
            f"the model pools {tuple(x.shape[-2:])} to {tuple(output)} places, which do not divide it",
            "adaptive pooling to divisors of the size, or to 1",
        )
    return [n // size for n, size in zip(x.shape[-2:], output, strict=True)]


def _adaptive_avg_pool2d(x: Tensor, output: Sequence[int]) -> Tensor:
    if set(output) == {1}:
        return x.mean((-2, -1), keepdim=True)
    kernel = _adaptive(x, output)
    result: Tensor = aten.avg_pool2d(x, kernel, kernel)
    return result


def _adaptive_avg_pool2d_backward(gradient: Tensor, x: Tensor) -> Tensor:
    if gradient.shape[-2:] == (1, 1):
        return (gradient / (x.shape[-2] * x.shape[-1])).expand(x.shape)
    kernel = _adaptive(x, gradient.shape[-2:])
    result: Tensor = aten.avg_pool2d_backward(gradient, x, kernel, kernel, [0, 0], False, True, None)
    return result


def _adaptive_max_pool2d(x: Tensor, output: Sequence[int]) -> tuple[Tensor, Tensor]:
    kernel = _adaptive(x, output)
    return _max_pool2d(x, kernel, kernel)


def _adaptive_max_pool2d_backward(gradient: Tensor, x: Tensor, _indices: Tensor) -> Tensor:
    kernel = _adaptive(x, gradient.shape[-2:])
    return max_pool_gradient(gradient, x, kernel, kernel, [0, 0], [1, 1])


DECOMPOSITIONS: Final[dict[Any, Callable[..., Any]]] = {
    aten._adaptive_avg_pool2d.default: _adaptive_avg_pool2d,  # noqa: SLF001
    aten._adaptive_avg_pool2d_backward.default: _adaptive_avg_pool2d_backward,  # noqa: SLF001
    aten.adaptive_max_pool2d.default: _adaptive_max_pool2d,
    aten.adaptive_max_pool2d_backward.default: _adaptive_max_pool2d_backward,
    aten.convolution_backward.default: convolution_backward,
    aten.max_pool2d_with_indices.default: _max_pool2d,
    aten.max_pool2d_with_indices_backward.default: _max_pool2d_backward,
}
