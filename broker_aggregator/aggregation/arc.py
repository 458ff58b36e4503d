"""ARC: the longest updates are made as long as the next one."""

import numpy as np

from broker_aggregator.aggregation import Aggregator, Context
from broker_aggregator.aggregation.chain import Wrapper
from broker_aggregator.aggregation.clipped import clipped
from broker_aggregator.aggregation.updates import UpdateSet


class AdaptivelyClipped(Wrapper):
    """Clips the k = floor(2 f / n (n - f)) longest of n updates to the length of the next one.

    Allouah et al., "Adaptive gradient clipping for robust federated learning", arXiv:2405.14432.
    """

    def __init__(self, inner: Aggregator, f: int) -> None:
        super().__init__(inner)
        self.f = f

    def rows(self, updates: UpdateSet, context: Context, rng: np.random.Generator) -> UpdateSet:  # noqa: ARG002
        """See `Wrapper.rows`."""
        norms, n = updates.norms(), len(updates)
        f = min(self.f, (n - 1) // 2)
        longest = min(n - 1, 2 * f * (n - f) // n)
        return clipped(updates, norms, float(np.sort(norms)[n - 1 - longest]))
