"""What lies far from where most are is left out, whoever sent it; where nothing does, all count."""

import numpy as np

from broker_aggregator.aggregation import Aggregator, Context, State
from broker_aggregator.aggregation.chain import with_devices
from broker_aggregator.aggregation.geometric_median import distances_to_median
from broker_aggregator.aggregation.updates import UpdateSet
from fl_protocol.tensors import Vector

DEVICE = "near.device/"  # + id: how many of its updates were seen, and how many of those left out


class Near:
    """Keeps the updates within `reach` median distances of the buffer's geometric median. Stands fewer than half.

    Rules that always leave out f updates, or always mix, pay for it when nobody is hostile: devices with data of their
    own are what they leave out. An update within reach may pull as honest ones do, and no further. Of every device it
    is remembered how often it was left out, for people to see; nothing follows from it.
    """

    def __init__(self, inner: Aggregator, reach: float = 2.0) -> None:
        self.inner, self.reach = inner, reach

    def init(self, size: int) -> State:
        """Nobody was left out."""
        return {**self.inner.init(size), DEVICE: np.zeros(0, np.float32)}

    def aggregate(
        self, state: State, updates: UpdateSet, context: Context, rng: np.random.Generator
    ) -> tuple[State, Vector]:
        """See `Aggregator.aggregate`."""
        distances = distances_to_median(updates.gram())
        kept = distances <= self.reach * float(np.median(distances))
        rows = updates if kept.all() else updates.chosen([int(i) for i in np.flatnonzero(kept)])
        inner, step = self.inner.aggregate(state, rows, context, rng)
        nothing = np.zeros(2, np.float32)
        counts = {
            m.device: state.get(DEVICE + m.device, nothing) + np.array([1, not stays], np.float32)
            for m, stays in zip(updates.meta, kept, strict=True)
        }
        return with_devices(inner, DEVICE, counts), step
