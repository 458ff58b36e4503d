"""Values with arrays in them, made comparable with `==`."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """The same for equal values only; arrays as dtype, shape and bytes. Only an `OrderedDict` has an order."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if is_dataclass(value):
        return type(value).__name__, {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, OrderedDict):
        return [(plain(k), plain(v)) for k, v in value.items()]
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, str | bytes | int | float | None):
        return value
    return [plain(v) for v in value]
