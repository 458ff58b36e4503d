"""What a model author writes: one `ModelSpec`, called `SPEC`, in `models/NAME/__init__.py`."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own custom)

from fl_protocol.errors import ConfigError


class Input(NamedTuple):
    """Shape of one example, without the batch dimension, and its torch dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype


_WORKSHOP = Path(__file__).parent
_HAS_SPEC = re.compile(r"^SPEC\b", re.MULTILINE)

CLASS_NUMBER = Input((), torch.int64)
Examples = tuple[NDArray[Any], NDArray[Any]]  # x (n, *x.shape), y (n, *y.shape)
PerExample = Callable[[Tensor, Tensor], Tensor]  # (logits, y) -> (B,)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each example, shape (B,); `y` holds class numbers."""
    is_class = y.unsqueeze(1) == torch.arange(logits.shape[1])
    return -(F.log_softmax(logits, 1) * is_class).sum(1)


def is_correct(logits: Tensor, y: Tensor) -> Tensor:
    """1.0 where the largest logit is the class `y`, else 0.0, shape (B,)."""
    return (logits.argmax(1) == y).to(logits.dtype)


@dataclass(frozen=True)
class ModelSpec:
    """A model, and everything that compiling it into a bundle takes.

    `module` builds the network, which takes raw examples: preprocessing is part of it.
    Its `nn.Linear` layers are quantized. `examples` gives real ones, to train with and held out, for the gates.
    """

    name: str
    description: str
    licence: str
    module: Callable[[], nn.Module]
    x: Input
    labels: tuple[str, ...]
    examples: Callable[[], tuple[Examples, Examples]]
    hyper: Mapping[str, float]
    batch_size: int = 32
    y: Input = CLASS_NUMBER
    loss: PerExample = cross_entropy
    metric: str = "accuracy"
    correct: PerExample = is_correct


def load(name: str) -> ModelSpec:
    """The catalog's model of that name. Raises `ConfigError`."""
    if name not in catalog():
        raise ConfigError(f"there is no model {name!r} in the workshop", f"one of: {', '.join(catalog())}")
    spec: ModelSpec = import_module(f"models.{name}").SPEC
    return spec


def catalog() -> list[str]:
    """Names of all models in the workshop: each package next to this file that has a `SPEC` is one."""
    return [file.parent.name for file in sorted(_WORKSHOP.glob("*/__init__.py")) if _HAS_SPEC.search(file.read_text())]
