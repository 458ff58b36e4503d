"""What every file of examples must hold, whatever its format; each complaint names the file, the row and the mend."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.sources import Examples, InputSpec
from fl_protocol.errors import ConfigError


class ExampleError(ConfigError):
    """A complaint that quotes an example; `told` says the same without, and is all that may leave the device."""

    def __init__(self, message: str, hint: str, told: str) -> None:
        super().__init__(message, hint)
        self.told = told


def told(error: ConfigError) -> str:
    """What of a complaint about examples may leave the device."""
    return error.told if isinstance(error, ExampleError) else f"{error.message} ({error.hint})"


def checked(file: Path, x: NDArray[Any], y: NDArray[Any], spec: InputSpec) -> Examples:
    """`x` and `y` in the bundle's types, once their shapes, values and labels are right. Raises `ConfigError`."""
    for name, array, shape in (("x", x, spec.x_shape), ("y", y, spec.y_shape)):
        if array.shape[1:] != shape or array.ndim == 0:
            raise ConfigError(
                f"{file}: {name} has the shape {array.shape}; the model wants (n, {', '.join(map(str, shape))})",
                "cut or window the examples as the model's description says",
            )
    if len(x) != len(y):
        raise ConfigError(f"{file}: x has {len(x)} examples and y has {len(y)}", "give one y to each x")
    examples = Examples(_cast(file, "x", x, spec.x_dtype), _cast(file, "y", y, spec.y_dtype))
    if spec.labels:
        bad = _first((y < 0) | (y >= len(spec.labels)))
        if bad is not None:
            knows = f"this model knows 0..{len(spec.labels) - 1}"
            raise ExampleError(
                f"{file}: the label in row {bad[0]} is {y[bad]}; {knows}",
                f"they mean {', '.join(spec.labels)[:200]}",
                told=f"{file}: the label in row {bad[0]} is none that {knows}",
            )
    return examples


def too_large(file: Path, size: int, left: int) -> ConfigError:
    """The complaint about a file that would not fit in what is left of `max_bytes`."""
    return ConfigError(
        f"{file} needs {size / 2**20:.1f} MB of memory; {left / 2**20:.1f} MB are left of `max_bytes`",
        "move older files away, or raise `max_bytes` in [data]",
    )


def _cast(file: Path, name: str, array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """`array` in the model's type, in which every value is finite."""
    if not np.can_cast(array.dtype, dtype, "same_kind") and array.dtype.kind not in "iu":
        raise ConfigError(
            f"{file}: {name} is of type {array.dtype}; the model wants {dtype}", f"save {name} as {dtype}"
        )
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is found below
        cast = np.ascontiguousarray(array, dtype)
    bad = _first(~np.isfinite(cast)) if cast.dtype.kind == "f" else None
    if bad is not None:
        raise ConfigError(
            f"{file}: {name} is not finite in row {bad[0]}, at {list(bad[1:])}, as {dtype}",
            "leave that example out, or fill the gap",
        )
    return cast


def _first(wrong: NDArray[np.bool_]) -> tuple[int, ...] | None:
    """Where the first True stands."""
    return tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape)) if wrong.any() else None
