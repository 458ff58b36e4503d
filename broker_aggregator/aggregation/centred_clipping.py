"""Centred clipping: what lies too far from the last step is drawn in."""

import numpy as np

from broker_aggregator.aggregation import Context, State
from broker_aggregator.aggregation.updates import UpdateSet
from fl_protocol.tensors import Vector

CENTRE = "centred-clipping.centre"


class CentredClipping:
    """v <- v + mean_i((u_i - v) min(1, tau / |u_i - v|)), a few times, from the step before.

    `radius` is tau; None takes the median distance at each iteration. All iterates lie in the span of v and the
    updates. Karimireddy et al., "Learning from history for Byzantine robust optimization", arXiv:2012.10333.
    """

    def __init__(self, radius: float | None = None, iterations: int = 3) -> None:
        self.radius, self.iterations = radius, iterations

    def init(self, size: int) -> State:
        """The centre: no step yet."""
        return {CENTRE: np.zeros(size, np.float32)}

    def aggregate(
        self,
        state: State,
        updates: UpdateSet,
        context: Context,  # noqa: ARG002
        rng: np.random.Generator,  # noqa: ARG002
    ) -> tuple[State, Vector]:
        """See `Aggregator.aggregate`."""
        before, n = state[CENTRE], len(updates)
        gram = np.zeros((n + 1, n + 1))  # row 0 is the centre
        gram[1:, 1:] = updates.gram()
        gram[0, 1:] = gram[1:, 0] = updates.products(before)
        wide = before.astype(np.float64)
        gram[0, 0] = wide @ wide
        point = np.zeros(n + 1)
        point[0] = 1.0
        for _ in range(self.iterations):
            along = gram @ point
            distances = np.sqrt(np.maximum(0.0, np.diag(gram) - 2 * along + point @ along))[1:]
            radius = float(np.median(distances)) if self.radius is None else self.radius
            pull = np.minimum(1.0, radius / np.maximum(distances, 1e-30)) / n
            point *= 1 - pull.sum()
            point[1:] += pull
        step = np.float32(point[0]) * before + updates.weighted_sum(point[1:])
        return {**state, CENTRE: step}, step
