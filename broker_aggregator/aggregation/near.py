"""What lies far from where most are is left out, whoever sent it; where nothing does, all count."""

from collections.abc import Mapping

import numpy as np

from broker_aggregator.aggregation import Aggregator, Context, State
from broker_aggregator.aggregation.chain import with_devices
from broker_aggregator.aggregation.geometric_median import distances_to_median
from broker_aggregator.aggregation.updates import UpdateSet
from fl_protocol.tensors import Vector

ORDINARY = "near.ordinary"  # the distance that is, shape (1,)
DEVICE = "near.device/"  # + id: how many of its updates were seen, and how many of those left out
NOBODY = np.zeros(2, np.float32)


def left_out(state: Mapping[str, Vector], device: str) -> int:
    """How many of a device's updates were left out, by the state of a rule; 0 by one of another kind."""
    return int(state.get(DEVICE + device, NOBODY)[1])


class Near:
    """Keeps the updates within `reach` ordinary distances of the buffer's geometric median. Stands fewer than half.

    Rules that always leave out f updates, or always mix, pay for it when nobody is hostile: devices with data of their
    own are what they leave out. An update within reach may pull as honest ones do, or did when they learnt more, and no
    further: where steps have shrunk, what bounds a hostile one is the task's `norm_limit`. Ordinary is the
    buffer's median distance, or that of an earlier buffer if it was larger, which fades by `memory` a version: late in
    training most devices have little left to say, and the few that still learn lie far from them. (Without that memory
    the rule cost 1.5 points on clean HAR, and 20 under IPM by 30 %.) Of every device it is remembered how often it was
    left out, for people to see; nothing follows from it. A buffer that attackers have most of (less than one in a
    hundred, or the plan is refused) widens what is ordinary, until it has faded.
    """

    def __init__(self, inner: Aggregator, reach: float = 2.0, memory: float = 0.999) -> None:
        self.inner, self.reach, self.memory = inner, reach, memory

    def init(self, size: int) -> State:
        """Nobody was left out."""
        return {**self.inner.init(size), ORDINARY: np.zeros(1, np.float32), DEVICE: np.zeros(0, np.float32)}

    def aggregate(
        self, state: State, updates: UpdateSet, context: Context, rng: np.random.Generator
    ) -> tuple[State, Vector]:
        """See `Aggregator.aggregate`."""
        distances = distances_to_median(updates.gram())
        ordinary = max(float(np.median(distances)), self.memory * float(state[ORDINARY][0]))
        kept = distances <= self.reach * ordinary
        rows = updates if kept.all() else updates.chosen([int(i) for i in np.flatnonzero(kept)])
        inner, step = self.inner.aggregate(state, rows, context, rng)
        counts = {
            m.device: state.get(DEVICE + m.device, NOBODY) + np.array([1, not stays], np.float32)
            for m, stays in zip(updates.meta, kept, strict=True)
        }
        return {**with_devices(inner, DEVICE, counts), ORDINARY: np.array([ordinary], np.float32)}, step
