"""Where examples come from: each source reads what a bundle asks for, or says what is wrong and how to mend it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fl_protocol.bundle import Bundle

__all__ = ["Dataset", "Examples", "InputSpec", "Source", "Watching"]


@dataclass(frozen=True)
class Examples:
    """Examples side by side: `x` of shape (n, *x_shape), `y` of shape (n, *y_shape)."""

    x: NDArray[Any]
    y: NDArray[Any]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> "Examples":
        return Examples(self.x[rows], self.y[rows])

    @classmethod
    def concatenate(cls, parts: Sequence["Examples"]) -> Self:
        """All parts in order, as one."""
        if len(parts) == 1:
            return cls(parts[0].x, parts[0].y)  # no second copy of a device's only file
        return cls(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))


@dataclass(frozen=True)
class Dataset:
    """What the device has: examples to train on, and later ones held out for its own report. Both may be empty."""

    train: Examples
    validation: Examples
    newest: NDArray[Any]  # shape (1, *x_shape): what a prediction is about


@dataclass(frozen=True)
class InputSpec:
    """What a bundle asks of an example, batch dimension left out."""

    x_shape: tuple[int, ...]
    x_dtype: str
    y_shape: tuple[int, ...]
    y_dtype: str
    labels: tuple[str, ...]

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """What `bundle` asks of an example."""
        return cls(bundle.x_shape, bundle.x_dtype, bundle.y_shape, bundle.y_dtype, bundle.labels)


class Source(Protocol):
    """A place that examples come from."""

    def load(self, spec: InputSpec) -> Dataset:
        """The examples of now; quick when nothing changed. Raises `ConfigError` saying what to mend."""


@runtime_checkable
class Watching(Protocol):
    """A source that knows the newest example without reading the others."""

    def newest(self, spec: InputSpec) -> NDArray[Any]:
        """Of shape (1, *x_shape). Raises `ConfigError` as `Source.load` does."""
