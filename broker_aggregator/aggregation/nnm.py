"""NNM: each update becomes the mean of its nearest ones."""

import numpy as np

from broker_aggregator.aggregation import Aggregator, Context
from broker_aggregator.aggregation.chain import Wrapper
from broker_aggregator.aggregation.updates import UpdateSet


class NearestNeighbourMixed(Wrapper):
    """Row i becomes the mean of the n - f updates that are nearest to it, itself one of them.

    What honest devices with unlike data differ in is averaged away before a robust rule takes it for an attack. Allouah
    et al., "Fixing by mixing", arXiv:2302.01772.
    """

    def __init__(self, inner: Aggregator, f: int) -> None:
        super().__init__(inner)
        self.f = f

    def rows(self, updates: UpdateSet, context: Context, rng: np.random.Generator) -> UpdateSet:  # noqa: ARG002
        """See `Wrapper.rows`. Among equal distances the earlier update is taken."""
        n = len(updates)
        near = n - min(self.f, (n - 1) // 2)
        order = np.argsort(updates.squared_distances(), axis=1, kind="stable")[:, :near]
        matrix = np.zeros((n, n))
        np.put_along_axis(matrix, order, 1 / near, axis=1)
        return updates.mixed(matrix)
