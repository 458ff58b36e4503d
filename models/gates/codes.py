"""What rounding makes of a training step, recorded in one run and given to another.

A value in the middle between two codes is rounded up in one run and down in the next, for float32 has noise; through
batch normalisation one such code moves a few of every layer that follows. So two runs are compared code by code, each
from the same inputs, and result by result, from the same codes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.quantization import FakeQuantLayer, int8_codes, straight_through
from models.step import Step, Tensors
from models.tracing import TensorFunction

_CODES = "codes:"  # no parameter of a torch module can be called so


def recording(step: Step) -> TensorFunction:
    """`step.train`, which also gives what its layers rounded, in their order, and the weights' codes after the step.

    It takes the step over: its layers record from now on.
    """
    return _with_codes(step, replay=False)


def replaying(step: Step) -> TensorFunction:
    """The same, but its layers go on with the codes of a recording, which it takes beside all else.

    What it gives as codes are those that it would have chosen itself.
    """
    return _with_codes(step, replay=True)


def codes_of(results: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What of a recording's results are codes."""
    return {name: array for name, array in results.items() if name.startswith(_CODES)}


def operands_of(results: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """The rounded operands alone, in the order in which the layers round them."""
    numbered = ((name.removeprefix(_CODES), array) for name, array in codes_of(results).items())
    return [array for _, array in sorted((int(name), array) for name, array in numbered if name.isdigit())]


def codes_apart(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> int:
    """How many codes of two recordings differ.

    A rounded operand counts as another code where it is more than 1e-3 of the tensor's largest value away: a step of
    its grid is 4e-3 or more, noise of float32 1e-6.
    """
    apart = 0
    for name, codes in codes_of(b).items():
        bound = 0.5 if codes.dtype.kind == "i" else 1e-3 * np.abs(codes).max()
        apart += int((np.abs(a[name].astype(np.float64) - codes) > bound).sum())
    return apart


def _with_codes(step: Step, *, replay: bool) -> TensorFunction:
    taken: Tensors = {}
    chosen: list[Tensor] = []

    def rounding(exact: Tensor, rounded: Tensor) -> Tensor:
        chosen.append(rounded.detach())
        return straight_through(exact, taken[f"{_CODES}{len(chosen) - 1}"] if replay else rounded)

    assert step.layout  # measured by a first forward pass, which is not recorded
    for layer in step.module.modules():
        if isinstance(layer, FakeQuantLayer):
            layer.straight_through = rounding

    def train(given: Tensors) -> Tensors:
        chosen.clear()
        taken.update(given)
        results = step.train(given)
        after = {name.removesuffix(".next"): tensor for name, tensor in results.items()}
        codes = int8_codes(step.module, {**given, **after})
        weights = {f"{_CODES}{name}": code.to(torch.int32) for name, code in codes.items() if code.dtype == torch.int8}
        return {**results, **{f"{_CODES}{i}": tensor for i, tensor in enumerate(chosen)}, **weights}

    return train
