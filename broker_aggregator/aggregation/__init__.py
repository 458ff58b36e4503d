"""Many updates in, one step out. One rule, one file; all memory is in `state`; numbers only.

A rule is a chain: wrappers that scale, mix, merge or leave out the updates of a buffer, and at its end what makes a
step of them. Start reading at recipes.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from broker_aggregator.aggregation.updates import UpdateMeta, UpdateSet
from fl_protocol.tensors import Vector

State = Mapping[str, Vector]  # by name: "rule.what"

__all__ = ["Aggregator", "Context", "State", "UpdateMeta", "UpdateSet"]


@dataclass(frozen=True)
class Context:
    """What a rule may know besides the updates: how many versions the model's present life has had."""

    version: int = 0


class Aggregator(Protocol):
    """One rule. `aggregate` never changes its arguments."""

    def init(self, size: int) -> State:
        """The rule's memory before the first buffer, for P = `size` parameters."""

    def aggregate(
        self, state: State, updates: UpdateSet, context: Context, rng: np.random.Generator
    ) -> tuple[State, Vector]:
        """The step for one buffer of one update or more, shape (P,), as if the buffer were full."""
