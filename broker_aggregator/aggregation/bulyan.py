"""Bulyan: select by Krum, then average what lies closest to the median of each coordinate."""

import numpy as np

from broker_aggregator.aggregation.chain import Memoryless
from broker_aggregator.aggregation.krum import krum_order
from broker_aggregator.aggregation.order_statistics import median
from broker_aggregator.aggregation.updates import UpdateSet
from fl_protocol.tensors import Vector


class Bulyan(Memoryless):
    """n - 2 f updates are chosen, one after the other, by Krum; of each coordinate the mean of the n - 4 f closest to
    their median. n >= 4 f + 3; of fewer, f is what they stand.

    El Mhamdi et al., "The hidden vulnerability of distributed learning in Byzantium", ICML 2018.
    """

    def __init__(self, f: int) -> None:
        self.f = f

    def step(self, updates: UpdateSet) -> Vector:
        """See `Memoryless.step`."""
        n = len(updates)
        f = min(self.f, max(0, (n - 3) // 4))
        distances = updates.squared_distances()
        left = list(range(n))
        chosen: list[int] = []
        while len(chosen) < n - 2 * f:
            chosen.append(left.pop(int(krum_order(distances[np.ix_(left, left)], f)[0])))
        keep = len(chosen) - 2 * f

        rows = sorted(chosen)

        def closest(block: Vector) -> Vector:
            block = block[rows]
            off = np.abs(block - median(block))
            places = np.argpartition(off, keep - 1, axis=0)[:keep] if keep < len(block) else np.argsort(off, axis=0)
            mean: Vector = np.take_along_axis(block, places, axis=0).mean(axis=0, dtype=np.float64).astype(np.float32)
            return mean

        return updates.by_coordinates(closest)
