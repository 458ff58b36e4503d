"""What a model author writes: one `ModelSpec`, called `SPEC`, in `models/NAME/__init__.py`."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import nn

from fl_protocol.errors import ConfigError
from models.losses import cross_entropy
from models.metrics import ACCURACY, Metric, PerExample
from models.optimizers import Optimizer

_WORKSHOP = Path(__file__).parent
_HAS_SPEC = re.compile(r"^SPEC\b", re.MULTILINE)


class Input(NamedTuple):
    """Shape of one example, without the batch dimension, and its torch dtype: float32 or int64."""

    shape: tuple[int, ...]
    dtype: torch.dtype


CLASS_NUMBER = Input((), torch.int64)
Examples = tuple[NDArray[Any], NDArray[Any]]  # x (n, *x.shape), y (n, *y.shape)


class Splits(NamedTuple):
    """Examples to train with, to choose things on, and to measure with once everything is chosen."""

    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True)
class ModelSpec:
    """A model, and everything that compiling it into a bundle takes.

    `module` builds the network. It takes raw examples: preprocessing is part of it. It gives one tensor, (B, labels),
    or one logit (B,) or (B, 1) of the second of two labels, or, without labels, one row an example. `examples` gives
    real ones, for the gates. `frozen`, `personal` and `keep_float` name parts of the module by the beginning of their
    dotted names ("backbone", "head.bias"): parameters that never change, what never leaves the device, and layers
    that are not quantized. `bits` is 8, or 4 for weights of four bits.
    """

    name: str
    description: str
    licence: str
    module: Callable[[], nn.Module]
    x: Input
    labels: tuple[str, ...]  # () for a regression
    examples: Callable[[], Splits]
    optimizer: Optimizer
    y: Input = CLASS_NUMBER
    loss: PerExample = cross_entropy
    metric: Metric = ACCURACY
    batch_size: int = 32
    frozen: tuple[str, ...] = ()
    personal: tuple[str, ...] = ()
    bits: int = 8
    keep_float: tuple[str, ...] = ()


def load(name: str) -> ModelSpec:
    """The catalog's model of that name. Raises `ConfigError`."""
    if name not in catalog():
        near = difflib.get_close_matches(name, catalog(), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(catalog())}"
        raise ConfigError(f"there is no model {name!r} in the workshop", hint)
    spec: ModelSpec = import_module(f"models.{name}").SPEC
    if spec.name != name:
        raise ConfigError(
            f"models/{name} has a SPEC named {spec.name!r}", f"let its name be that of the folder: {name}"
        )
    return spec


def catalog() -> list[str]:
    """Names of all models in the workshop: each package next to this file that has a `SPEC` is one."""
    return [file.parent.name for file in sorted(_WORKSHOP.glob("*/__init__.py")) if _HAS_SPEC.search(file.read_text())]
