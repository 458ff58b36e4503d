"""The gate on the gradient: the slope of the loss, found numerically in float64."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.gates.bench import Arrays, Bench, Gate, train_onnx, train_torch
from models.gates.codes import operands_of
from models.quantization import FakeQuantLayer
from models.step import Step

_SAMPLES = 12  # elements of each tensor
_WIDTH = 1e-6


def gradient_gate(bench: Bench) -> Iterator[Gate]:
    """Under the optimizer's `bare` hyperparameters, one of its entries is the gradient after a step.

    The straight-through estimator is not the derivative of a rounded network, but that of the network in which what
    rounding added to each tensor is held still: that one is differentiated numerically here, with what rounding added
    in onnxruntime, since float64 would round one value in a million otherwise. Where integer arithmetic
    puts a ReLU exactly at zero, its two sides have two slopes, and the gradient may be either or lie between.
    """
    optimizer = bench.spec.optimizer
    hyper = bench.hyper(**{**optimizer.bare, "proximal": 0.0, "clip_norm": 0.0})
    given = {**bench.trained, **next(bench.batches(bench.bundle.batch_size)), **hyper, **bench.fed(0)}
    results = train_onnx(bench.session, given)
    loss = held_loss(bench, given, operands_of(train_onnx(bench.recording, given)))
    middle = loss("", (), 0.0)
    rng = np.random.default_rng(0)
    worst, largest, kinks, total = 0.0, 0.0, 0, 0
    gradients = {name: results[f"{name}.{optimizer.gradient_entry}.next"] for name in bench.step.trained}
    largest = max(float(np.abs(gradient).max()) for gradient in gradients.values())
    padding = padding_rows(bench.step.module)
    for name, gradient in gradients.items():
        for flat in rng.choice(gradient.size, min(_SAMPLES, gradient.size), replace=False):
            at = np.unravel_index(flat, gradient.shape)
            if at[0] == padding.get(name):
                continue
            left, right = ((loss(name, at, side) - middle) / side for side in (-_WIDTH, _WIDTH))
            slope = float(gradient[at])
            worst = max(worst, min(left, right) - slope, slope - max(left, right))
            kinks += abs(right - left) > 1e-3 * largest
            total += 1
    yield Gate(
        "gradient against finite differences",
        f"{worst / largest:.1e} of the largest, {total} samples, {kinks} at a kink",
        "1e-4, 5 % at a kink",
        worst <= 1e-4 * largest and kinks <= 0.05 * total,
    )


def padding_rows(module: nn.Module) -> dict[str, int]:
    """Of each table with a `padding_idx`, the row that torch keeps as it is, though the loss may depend on it."""
    layers = ((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Embedding))
    return {f"{name}.weight": layer.padding_idx for name, layer in layers if layer.padding_idx is not None}


def held_loss(bench: Bench, given: Arrays, operands: Sequence[NDArray[Any]]) -> Callable[[str, Any, float], float]:
    """The loss in float64 as a function of one parameter's element.

    What rounding adds stays as the first call finds it: then a layer's operands are as `operands` says.
    """
    step = Step(bench.spec)
    assert step.layout == bench.step.layout  # and with it everything is measured that a first forward pass is for
    held = _HeldRounding(operands)
    for layer in step.module.modules():
        if isinstance(layer, FakeQuantLayer):
            layer.straight_through = held

    def loss(name: str, at: Any, change: float) -> float:
        moved = dict(given)
        if name:
            moved[name] = given[name].astype(np.float64)
            moved[name][at] += change
        held.restart()
        return float(train_torch(step, moved, torch.float64)["loss"])

    return loss


class _HeldRounding:
    """Adds to each operand of a layer what leads to the given ones in the first forward pass."""

    def __init__(self, operands: Sequence[NDArray[Any]]) -> None:
        self._operands = operands
        self._added: list[torch.Tensor] = []
        self._calls = 0

    def restart(self) -> None:
        """A new forward pass: the layers round the same operands in the same order again."""
        self._calls = 0

    def __call__(self, exact: torch.Tensor, _rounded: torch.Tensor) -> torch.Tensor:
        if self._calls == len(self._added):
            rounded = torch.tensor(self._operands[self._calls], dtype=exact.dtype)
            self._added.append((rounded - exact).detach())
        self._calls += 1
        return exact + self._added[self._calls - 1]
