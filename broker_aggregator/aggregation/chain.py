"""What rules and wrappers have in common: most remember nothing, and a wrapper hands other rows to the rule inside."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from broker_aggregator.aggregation import Aggregator, Context, State
from broker_aggregator.aggregation.updates import UpdateSet
from fl_protocol.tensors import Vector

MAX_DEVICES = 10_000  # of which something is remembered; beyond, those that are not in the buffer are forgotten


def with_devices(state: State, group: str, values: Mapping[str, Vector]) -> State:
    """A memory with new values of devices, by id, under names that begin with `group`."""
    own = {group + device: value for device, value in values.items()}
    if sum(name.startswith(group) for name in {**state, **own}) > MAX_DEVICES + 1:
        state = {name: value for name, value in state.items() if name == group or not name.startswith(group)}
    return {**state, **own}


class Memoryless(ABC):
    """A rule whose step depends on nothing but the buffer."""

    def init(self, size: int) -> State:  # noqa: ARG002
        """Nothing to remember."""
        return {}

    def aggregate(
        self,
        state: State,
        updates: UpdateSet,
        context: Context,  # noqa: ARG002
        rng: np.random.Generator,  # noqa: ARG002
    ) -> tuple[State, Vector]:
        """See `Aggregator.aggregate`."""
        return state, self.step(updates)

    @abstractmethod
    def step(self, updates: UpdateSet) -> Vector:
        """The step for one buffer, shape (P,)."""


class Wrapper(ABC):
    """Hands other rows of the same updates to the rule inside. Remembers nothing itself, unless it says so."""

    def __init__(self, inner: Aggregator) -> None:
        self.inner = inner

    def init(self, size: int) -> State:
        """The memory of the rule inside."""
        return self.inner.init(size)

    def aggregate(
        self, state: State, updates: UpdateSet, context: Context, rng: np.random.Generator
    ) -> tuple[State, Vector]:
        """See `Aggregator.aggregate`."""
        return self.inner.aggregate(state, self.rows(updates, context, rng), context, rng)

    @abstractmethod
    def rows(self, updates: UpdateSet, context: Context, rng: np.random.Generator) -> UpdateSet:
        """What the rule inside sees."""
