"""RFA: the point from which the sum of distances to all updates is least."""

import numpy as np

from broker_aggregator.aggregation.chain import Memoryless
from broker_aggregator.aggregation.updates import Matrix, UpdateSet, squared_distances
from fl_protocol.tensors import Vector

NEAR = 1e-6  # of the ordinary distance: closer than this counts as this


def median_factors(gram: Matrix, iterations: int) -> Matrix:
    """Each row's factor in the geometric median, shape (n,), by Weiszfeld's iteration.

    It begins where rows count by 1 / (the radius that holds more than half of all): from the mean on, f attackers of n
    lose only a factor f / (n - f) an iteration of however far they have drawn it, and 32 were not enough.
    """
    radii = np.sort(np.sqrt(squared_distances(gram)), axis=1)[:, len(gram) // 2]
    factors: Matrix = 1 / np.maximum(radii, NEAR * float(np.median(radii)) or 1e-30)
    factors = factors / factors.sum()
    for _ in range(iterations):
        distances = distances_to(gram, factors)
        ordinary = float(np.median(distances))
        if not ordinary:
            break  # more than half of them are in one point
        inverse = 1 / np.maximum(NEAR * ordinary, distances)
        factors = inverse / inverse.sum()
    return factors


def distances_to(gram: Matrix, factors: Matrix) -> Matrix:
    """Of each row to the point that the factors make of all, shape (n,)."""
    along = gram @ factors
    found: Matrix = np.sqrt(np.maximum(0.0, np.diag(gram) - 2 * along + factors @ along))
    return found


def distances_to_median(gram: Matrix, iterations: int = 32) -> Matrix:
    """Of each row to the geometric median, shape (n,)."""
    return distances_to(gram, median_factors(gram, iterations))


class GeometricMedian(Memoryless):
    """The smoothed geometric median by Weiszfeld's iteration. Stands fewer than half.

    Every iterate is a weighted mean of the updates, so that all of it happens in the Gram matrix, and the updates are
    summed once. Pillutla et al., "Robust aggregation for federated learning", arXiv:1912.13445.
    """

    def __init__(self, iterations: int = 32) -> None:
        self.iterations = iterations

    def step(self, updates: UpdateSet) -> Vector:
        """See `Memoryless.step`."""
        return updates.weighted_sum(median_factors(updates.gram(), self.iterations))
