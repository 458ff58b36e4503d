"""Krum and Multi-Krum: the updates with the closest company."""

import numpy as np
from numpy.typing import NDArray

from broker_aggregator.aggregation.chain import Memoryless
from broker_aggregator.aggregation.updates import Matrix, UpdateSet
from fl_protocol.tensors import Vector


def krum_scores(squared_distances: Matrix, f: int) -> Matrix:
    """Each row's sum of squared distances to its n - f - 2 nearest others (one at least), shape (n,)."""
    n = len(squared_distances)
    nearest = min(n - 1, max(1, n - f - 2))
    ordered = np.sort(squared_distances, axis=1)  # the nearest of all is the row itself
    scores: Matrix = ordered[:, 1 : 1 + nearest].sum(axis=1)
    return scores


def krum_order(squared_distances: Matrix, f: int) -> NDArray[np.intp]:
    """Rows by their scores, shape (n,). Of equal ones (two that are nearest to each other, where one counts) that with
    the closer company in all comes first, so that no order of arrival decides; then the earlier.
    """
    return np.lexsort((squared_distances.sum(axis=1), krum_scores(squared_distances, f)))


class MultiKrum(Memoryless):
    """The mean of the `keep` updates of least score, by default n - f; with `keep` = 1 it is Krum. n >= 2 f + 3.

    Blanchard et al., "Machine learning with adversaries", NeurIPS 2017.
    """

    def __init__(self, f: int, keep: int | None = None) -> None:
        self.f, self.keep = f, keep

    def step(self, updates: UpdateSet) -> Vector:
        """See `Memoryless.step`."""
        n = len(updates)
        keep = max(1, min(n, self.keep or n - self.f))
        best = krum_order(updates.squared_distances(), self.f)[:keep]
        factors = np.zeros(n)
        factors[best] = 1 / keep
        return updates.weighted_sum(factors)
