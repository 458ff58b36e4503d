"""Which aten ops are taken apart before the table in `models/ops/` sees them."""

from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import core_aten_decompositions

aten = torch.ops.aten

# The table has these in fewer nodes than their decompositions.
_KEPT_WHOLE = (aten._log_softmax.default, aten.slice_backward.default, aten.threshold_backward.default)  # noqa: SLF001


def decompositions() -> dict[Any, Callable[..., Any]]:
    """torch's core decompositions without those that the table has whole."""
    table: dict[Any, Callable[..., Any]] = core_aten_decompositions()
    for op in _KEPT_WHOLE:
        table.pop(op, None)
    return table
