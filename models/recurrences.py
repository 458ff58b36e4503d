# mypy: allow-subclassing-any, allow-untyped-calls
"""What a GRU and an LSTM compute, time unrolled, with a backward pass of few and small sequential operations.

Autograd would run through every operation of every time step once more, and multiply matrices for the gradient of a
parameter at each of them. Here a time step of the backward pass is the state's gradient times factors computed
for all steps at once, and one matrix product; the gradient of a parameter is one product over all steps. A small
model's training step is bound by the number of its operations, not by their size.

Sizes in comments: B examples, T time steps, I inputs, H hidden values. The equations are those of `torch.nn.GRU` and
`torch.nn.LSTM`, gates stacked along the first dimension of each weight in torch's order. The state begins at zero.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]  # h (B, H) -> what the gates get from it (B, gates * H)


def gru(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], levels: int = 0, backwards: bool = False
) -> tuple[Tensor, Tensor]:
    """A GRU over `x` (B, T, I): all its outputs (B, T, H), and the last one (B, H).

    `weights` are of the input (3H, I) and of the state (3H, H), `biases` likewise (3H,). With `levels` the state is
    rounded to multiples of 1 / `levels` before it is multiplied, straight through for the gradient. `backwards` runs
    from the last time step to the first.
    """
    output, last = _Gru.apply(x, *weights, *biases, levels, backwards)
    return output, last


def lstm(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], levels: int = 0, backwards: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """An LSTM over `x` (B, T, I): all its outputs (B, T, H), the last one and the last cell, both (B, H).

    As `gru`, with weights (4H, I) and (4H, H).
    """
    of_input, of_state, bias = (output_gate_first(t) for t in (*weights, biases[0] + biases[1]))
    output, last, cell = _Lstm.apply(x, of_input, of_state, bias, levels, backwards)
    return output, last, cell


def unrolled_gru(projected: Tensor, product: Product, backwards: bool = False) -> tuple[Tensor, Tensor]:
    """The same in plain operations; `projected` (B, T, 3H) comes from the input, `product` from the state."""
    steps, size = projected.shape[1], projected.shape[2] // 3
    parts = projected.reshape(-1, steps * 3 * size).split([2 * size, size] * steps, 1)
    h, outputs = torch.zeros_like(parts[1]), []
    for t in _in_order(range(steps), backwards):
        hidden_rz, hidden_n = product(h).split([2 * size, size], 1)
        r, z = torch.sigmoid(parts[2 * t] + hidden_rz).split(size, 1)
        n = torch.tanh(parts[2 * t + 1] + r * hidden_n)
        h = n + z * (h - n)
        outputs.append(h)
    return _stacked(outputs, backwards), h


def unrolled_lstm(projected: Tensor, product: Product, backwards: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain operations, with gates in the order that `output_gate_first` gives them."""
    steps, size = projected.shape[1], projected.shape[2] // 4
    parts = projected.reshape(-1, steps * 4 * size).split([4 * size] * steps, 1)
    h = c = torch.zeros_like(parts[0][:, :size])
    outputs = []
    for t in _in_order(range(steps), backwards):
        oif, g = (parts[t] + product(h)).split([3 * size, size], 1)
        o, i, f = torch.sigmoid(oif).split(size, 1)
        c = f * c + i * torch.tanh(g)
        h = o * torch.tanh(c)
        outputs.append(h)
    return _stacked(outputs, backwards), h, c


def output_gate_first(stacked: Tensor) -> Tensor:
    """i, f, g, o -> o, i, f, g: three sigmoids side by side, and the three that the cell's gradient reaches."""
    size = stacked.shape[0] // 4
    ifg, o = stacked.split([3 * size, size])
    return torch.cat([o, ifg])


class _Gru(torch.autograd.Function):
    """h' = n + z (h - n); r, z = sigmoid(...); n = tanh(from input + r (from state))."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        of_input: Tensor,
        of_state: Tensor,
        input_bias: Tensor,
        state_bias: Tensor,
        levels: int,
        backwards: bool,
    ) -> tuple[Tensor, Tensor]:
        steps, size = x.shape[1], of_state.shape[1]
        bias_rz, bias_n = state_bias.split([2 * size, size])
        bias = input_bias + torch.cat([bias_rz, torch.zeros_like(bias_n)])  # but n's, which r has yet to gate
        parts = _projected(x, of_input, bias).split([2 * size, size] * steps, 1)
        to_rz, to_n = (w.t() for w in of_state.split([2 * size, size]))
        h = torch.zeros_like(parts[1])
        kept: tuple[list[Tensor], ...] = ([], [], [], [], [])
        for t in _in_order(range(steps), backwards):
            rounded, alpha = (torch.round(h * levels), 1 / levels) if levels else (h, 1)
            rz = torch.sigmoid(torch.addmm(parts[2 * t], rounded, to_rz, alpha=alpha))
            r, z = rz.split(size, 1)
            hidden = torch.addmm(bias_n, rounded, to_n, alpha=alpha)
            n = torch.tanh(parts[2 * t + 1] + r * hidden)
            before, h = h, n + z * (h - n)
            for values, value in zip(kept, (rz, n, hidden, before, h), strict=True):
                values.append(value)
        *stacks, outputs = (_stacked(values, backwards) for values in kept)
        ctx.save_for_backward(x, of_input, of_state, *stacks)
        ctx.levels, ctx.backwards = levels, backwards
        ctx.set_materialize_grads(False)
        return outputs, h

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor | None, last_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        x, of_input, of_state, rz, n, hidden, previous = ctx.saved_tensors
        steps, size = x.shape[1], of_state.shape[1]
        r, z = rz.split(size, 2)
        by_n = (1 - z) * (1 - n * n)
        by_r, by_z = by_n * hidden * (r - r * r), (previous - n) * (z - z * z)
        factors = torch.cat([by_r, by_z, by_n * r], 2)  # (B, T, 3H): of the state's gradient, to its product's
        each, passed, wanted = (_by_step(t, steps) for t in (factors, z, output_gradient))
        dh, gradients = last_gradient, []
        for position, t in enumerate(_in_order(range(steps), not ctx.backwards)):
            dh = _sum(dh, wanted[t], passed[t])
            gradients.append(dh)
            if position < steps - 1:
                product = (each[t].view(-1, 3, size) * dh.unsqueeze(1)).view(-1, 3 * size)
                dh = torch.addmm(dh * passed[t], product, of_state)
        every = _stacked(gradients, not ctx.backwards).unsqueeze(2)  # (B, T, 1, H)
        to_state = (every * factors.view(-1, steps, 3, size)).view(-1, 3 * size)
        to_input = (every * torch.cat([by_r, by_z, by_n], 2).view(-1, steps, 3, size)).view(-1, 3 * size)
        state = _rounded(previous, ctx.levels).view(-1, size)
        of_x = (to_input @ of_input).view(-1, *x.shape[1:]) if ctx.needs_input_grad[0] else None
        of_weights = to_input.t() @ x.reshape(-1, x.shape[2]), to_state.t() @ state
        return of_x, *of_weights, to_input.sum(0), to_state.sum(0), None, None


class _Lstm(torch.autograd.Function):
    """c' = f c + i g; h' = o tanh(c'); o, i, f = sigmoid(...); g = tanh(...): gates in this order."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, of_input: Tensor, of_state: Tensor, bias: Tensor, levels: int, backwards: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        steps, size = x.shape[1], of_state.shape[1]
        parts = _projected(x, of_input, bias).split([3 * size, size] * steps, 1)
        to_oif, to_g = (w.t() for w in of_state.split([3 * size, size]))
        h = c = torch.zeros_like(parts[1])
        kept: tuple[list[Tensor], ...] = ([], [], [], [], [], [])
        for t in _in_order(range(steps), backwards):
            rounded, alpha = (torch.round(h * levels), 1 / levels) if levels else (h, 1)
            oif = torch.sigmoid(torch.addmm(parts[2 * t], rounded, to_oif, alpha=alpha))
            o, i, f = oif.split(size, 1)
            g = torch.tanh(torch.addmm(parts[2 * t + 1], rounded, to_g, alpha=alpha))
            before, cell = h, c
            c = f * c + i * g
            u = torch.tanh(c)
            h = o * u
            for values, value in zip(kept, (oif, g, cell, u, before, h), strict=True):
                values.append(value)
        *stacks, outputs = (_stacked(values, backwards) for values in kept)
        ctx.save_for_backward(x, of_input, of_state, *stacks)
        ctx.levels, ctx.backwards = levels, backwards
        ctx.set_materialize_grads(False)
        return outputs, h, c

    @staticmethod
    def backward(
        ctx: Any, output_gradient: Tensor | None, last_gradient: Tensor | None, cell_gradient: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, of_input, of_state, oif, g, cells, u, previous = ctx.saved_tensors
        steps, size = x.shape[1], of_state.shape[1]
        o, i, f = oif.split(size, 2)
        factors = torch.cat([g * (i - i * i), cells * (f - f * f), i - i * g * g], 2)  # of the cell's gradient
        by_o, to_cell = u * (o - o * o), o - o * u * u  # of the state's
        parts = (factors, by_o, to_cell, f, output_gradient)
        each, each_o, each_cell, passed, wanted = (_by_step(part, steps) for part in parts)
        of_o, of_ifg = of_state.split([size, 3 * size])
        dh, dc, gradients, cell_gradients = last_gradient, cell_gradient, [], []
        for position, t in enumerate(_in_order(range(steps), not ctx.backwards)):
            dh = _sum(dh, wanted[t], passed[t])
            dc = _sum(dh * each_cell[t], dc, dh)
            gradients.append(dh)
            cell_gradients.append(dc)
            if position < steps - 1:
                product = (each[t].view(-1, 3, size) * dc.unsqueeze(1)).view(-1, 3 * size)
                dh = torch.addmm((dh * each_o[t]) @ of_o, product, of_ifg)
                dc = dc * passed[t]
        every, every_cell = (_stacked(values, not ctx.backwards) for values in (gradients, cell_gradients))
        by_gate = torch.cat(
            [every * by_o, (every_cell.unsqueeze(2) * factors.view(-1, steps, 3, size)).view(factors.shape)], 2
        )
        by_gate = by_gate.view(-1, 4 * size)
        state = _rounded(previous, ctx.levels).view(-1, size)
        of_x = (by_gate @ of_input).view(-1, *x.shape[1:]) if ctx.needs_input_grad[0] else None
        of_weights = by_gate.t() @ x.reshape(-1, x.shape[2]), by_gate.t() @ state
        return of_x, *of_weights, by_gate.sum(0), None, None


def _projected(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What the gates get from the input, one product for all time steps: (B, T * gates * H)."""
    return torch.addmm(bias, x.reshape(-1, x.shape[2]), weight.t()).view(-1, x.shape[1] * weight.shape[0])


def _in_order(steps: Sequence[Any], backwards: bool) -> Sequence[Any]:
    return steps[::-1] if backwards else steps


def _stacked(values: Sequence[Tensor], backwards: bool) -> Tensor:
    """T tensors (B, n), in the order in which they were computed -> (B, T, n), in the order of time."""
    return torch.cat(list(_in_order(values, backwards)), 1).view(-1, len(values), values[0].shape[1])


def _by_step(values: Tensor | None, steps: int) -> list[Any]:
    """(B, T, n) -> T tensors (B, n); of nothing, T times nothing."""
    if values is None:
        return [None] * steps
    size = values.shape[2]
    return list(values.reshape(-1, steps * size).split([size] * steps, 1))


def _rounded(h: Tensor, levels: int) -> Tensor:
    return torch.round(h * levels) * (1 / levels) if levels else h


def _sum(first: Tensor | None, second: Tensor | None, like: Tensor) -> Tensor:
    """The sum of those that there are; zeros of `like`'s shape where there is none."""
    if first is None and second is None:
        return torch.zeros_like(like)
    return first if second is None else second if first is None else first + second
