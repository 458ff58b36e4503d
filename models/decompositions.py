"""Which aten ops are taken apart before the table in `models/ops/` sees them."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch._prims_common import reduction_dims

from fl_protocol.errors import ConfigError
from models import gradient_ops
from models.advice import VALUES

aten = torch.ops.aten

# The table has these in fewer nodes than their decompositions.
_KEPT_WHOLE = (
    aten._log_softmax.default,  # noqa: SLF001
    aten.hardsigmoid.default,
    aten.hardswish.default,
    aten.native_layer_norm.default,
    aten.select_backward.default,
    aten.slice_backward.default,
    aten.softplus.default,
    aten.threshold_backward.default,
)


@cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """torch's core decompositions and ours, without those that the table has whole."""
    table: dict[Any, Callable[..., Any]] = core_aten_decompositions()
    table.update(_OWN | gradient_ops.DECOMPOSITIONS)  # not |=: torch's is no plain dict
    for op in _KEPT_WHOLE:
        table.pop(op, None)
    return table


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))


def _var(x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = 1, keepdim: bool = False) -> Tensor:
    """The mean first, then the squares: one pass would lose what the mean is larger by."""
    return _var_mean(x, dim, correction=correction, keepdim=keepdim)[0]


def _var_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = 1, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    dims = reduction_dims(x.shape, dim)
    mean = x.mean(dims, keepdim=True)
    squares = (x - mean).square()
    if correction == 0:
        var = squares.mean(dims, keepdim=keepdim)
    else:
        number = math.prod(x.shape[d] for d in dims)
        var = squares.sum(dims, keepdim=keepdim) / (number - (1 if correction is None else correction))
    return var, mean if keepdim else mean.squeeze(dims)


def _group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    examples: int,
    channels: int,
    positions: int,
    groups: int,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer norm of each group, then the channels' scale and shift."""
    size = channels // groups * positions
    out, mean, rstd = aten.native_layer_norm(x.reshape(examples, groups, size), [size], None, None, epsilon)
    out = out.reshape(x.shape)
    per_channel = (channels, *[1] * (x.dim() - 2))
    if weight is not None:
        out = out * weight.reshape(per_channel)
    if bias is not None:
        out = out + bias.reshape(per_channel)
    return out, mean.reshape(examples, groups), rstd.reshape(examples, groups)


def _group_norm_backward(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    examples: int,
    channels: int,
    positions: int,
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """As of a layer norm: what changes the group's mean or its deviation has no effect."""
    grouped = (examples, groups, channels // groups * positions)
    per_channel = (channels, *[1] * (x.dim() - 2))
    normal = (x.reshape(grouped) - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)
    inner = (gradient if weight is None else gradient * weight.reshape(per_channel)).reshape(grouped)
    inner = inner - inner.mean(-1, keepdim=True) - normal * (inner * normal).mean(-1, keepdim=True)
    others = [d for d in range(x.dim()) if d != 1]
    return (
        (inner * rstd.unsqueeze(-1)).reshape(x.shape),
        (gradient * normal.reshape(x.shape)).sum(others) if wanted[1] else x.new_zeros(channels),
        gradient.sum(others) if wanted[2] else x.new_zeros(channels),
    )


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, _training: bool, _momentum: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """By the batch's own moments; also what an instance norm becomes, with examples times channels for channels."""
    dims = [d for d in range(x.dim()) if d != 1]
    var, mean = _var_mean(x, dims, correction=0, keepdim=True)
    rstd = torch.rsqrt(var + epsilon)
    out = (x - mean) * rstd
    per_channel = (-1, *[1] * (x.dim() - 2))
    if weight is not None:
        out = out * weight.reshape(per_channel)
    if bias is not None:
        out = out + bias.reshape(per_channel)
    return out, mean.flatten(), rstd.flatten()


# Up to so many rows a product with ones and zeros adds faster than scattering does (x86, rows of 16 and 32 values).
_FEW_ROWS = 32


def _embedding_backward(gradient: Tensor, indices: Tensor, rows: int, padding: int, scale_grad_by_freq: bool) -> Tensor:
    if scale_grad_by_freq:
        raise ConfigError("an embedding scales its gradient by frequency", "leave scale_grad_by_freq out")
    width = gradient.shape[-1]
    values, rows_of = gradient.reshape(-1, width), indices.reshape(-1, 1)
    if padding >= 0:
        values = torch.where(rows_of == padding, 0.0, values)
    if rows <= _FEW_ROWS:
        return (rows_of == torch.arange(rows)).to(values.dtype).t() @ values
    return values.new_zeros(rows, width).scatter_add(0, rows_of.expand(-1, width), values)


def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    if any(i is not None and i.dtype == torch.bool for i in indices):
        raise ConfigError("the model picks by a mask: how many it picks depends on values", VALUES)
    if sum(i is not None for i in indices) == 1:
        return NotImplemented  # the table has it
    rows, order, shape = _as_rows(x, indices)
    moved = x.permute(order)
    rest = moved.shape[_number(indices) :]
    picked = moved.reshape(-1, *rest).index_select(0, rows.reshape(-1)).reshape(*shape, *rest)
    first = _first(indices)
    return picked.movedim(list(range(len(shape))), list(range(first, first + len(shape))))


def _index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    if any(i is not None and i.dtype == torch.bool for i in indices):
        (mask,) = (i for i in indices if i is not None)
        if accumulate or values.numel() != 1 or indices[0] is None:
            raise ConfigError("the model writes several values where a mask is", "use torch.where")
        return torch.where(mask.reshape(*mask.shape, *[1] * (x.dim() - mask.dim())), values, x)
    rows, order, shape = _as_rows(x, indices)
    moved = x.permute(order)
    rest = moved.shape[_number(indices) :]
    first = _first(indices)
    unindexed = [s for d, s in enumerate(x.shape) if d >= len(indices) or indices[d] is None]
    whole = values.expand(*unindexed[:first], *shape, *unindexed[first:])
    whole = whole.movedim(list(range(first, first + len(shape))), list(range(len(shape))))
    width = math.prod(rest)
    index, source = rows.reshape(-1, 1).expand(-1, width), whole.reshape(-1, width)
    matrix = moved.reshape(-1, width)
    result = matrix.scatter_add(0, index, source) if accumulate else matrix.scatter(0, index, source)
    return result.reshape(moved.shape).permute([order.index(d) for d in range(x.dim())])


def _number(indices: Sequence[Tensor | None]) -> int:
    return sum(i is not None for i in indices)


def _first(indices: Sequence[Tensor | None]) -> int:
    """Where the dimensions of the index go: in place of those that it indexes, or first if those lie apart."""
    places = [d for d, i in enumerate(indices) if i is not None]
    return places[0] if places[-1] - places[0] == len(places) - 1 else 0


def _as_rows(x: Tensor, indices: Sequence[Tensor | None]) -> tuple[Tensor, list[int], list[int]]:
    """One number for each combination of indices; `x`'s dimensions, the indexed ones first; the index's shape."""
    places = [d for d, i in enumerate(indices) if i is not None]
    rows = torch.zeros((), dtype=torch.int64)
    for d in places:
        index = indices[d]
        assert index is not None
        rows = rows * x.shape[d] + torch.where(index < 0, index + x.shape[d], index)
    return rows, [*places, *(d for d in range(x.dim()) if d not in places)], list(rows.shape)


_OWN: dict[Any, Callable[..., Any]] = {
    aten._native_batch_norm_legit.no_stats: _batch_norm,  # noqa: SLF001
    aten.embedding_dense_backward.default: _embedding_backward,
    aten.gelu.default: _gelu,
    aten.index.Tensor: _index,
    aten.index_put.default: _index_put,
    aten.native_group_norm.default: _group_norm,
    aten.native_group_norm_backward.default: _group_norm_backward,
    aten.var.correction: _var,
    aten.var_mean.correction: _var_mean,
}
