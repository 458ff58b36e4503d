"""Many updates in, one step out. One rule, one file; all memory is in `state`; numbers only."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fl_protocol.tensors import Vector

State = Mapping[str, Vector]


@dataclass(frozen=True)
class UpdateMeta:
    """What a rule may know of an update besides its numbers."""

    device: str
    staleness: int
    num_examples: int
    local_steps: int
    norm: float


@dataclass(frozen=True)
class UpdateSet:
    """The updates of one buffer in record order, decoded one at a time and again each time they are asked for."""

    meta: Sequence[UpdateMeta]
    decode: Callable[[int], Vector]  # i -> delta, shape (P,)

    def __len__(self) -> int:
        return len(self.meta)

    def dense(self) -> Iterator[tuple[UpdateMeta, Vector]]:
        """Each update as (meta, delta), iteratively, to avoid holding all deltas in memory."""
        for i, meta in enumerate(self.meta):
            yield meta, self.decode(i)


@dataclass(frozen=True)
class Aggregate:
    """The step that a buffer asks for, shape (P,), and each update's share in it (sums to at most 1)."""

    step: Vector
    shares: tuple[float, ...]


class Aggregator(Protocol):
    """One rule. `aggregate` never changes its arguments."""

    def init(self, size: int) -> State:
        """The rule's memory before the first buffer, for P = `size` parameters."""

    def aggregate(
        self, state: State, updates: UpdateSet, share: float, rng: np.random.Generator
    ) -> tuple[State, Aggregate]:
        """The step for one buffer; `share` is b / K, how full it was."""
