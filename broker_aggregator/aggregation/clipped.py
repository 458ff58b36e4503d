"""FedClipping: no update is longer than a bound."""

from typing import Literal

import numpy as np

from broker_aggregator.aggregation import Aggregator, Context, State
from broker_aggregator.aggregation.updates import Matrix, UpdateSet
from fl_protocol.tensors import Vector

Bound = Literal["median", "fixed", "quantile"]
BOUND = "clip.bound"
RATE = 0.2


class Clipped:
    """u min(1, C / |u|). C is `norm`, the median norm of the buffer, or follows a quantile of all norms.

    quantile: C <- C exp(-0.2 (b - q)), b the share of the buffer's norms that are at most C; it begins with the median
    of the first buffer. Andrew et al., "Differentially private learning with adaptive clipping", arXiv:1905.03871.
    """

    def __init__(self, inner: Aggregator, bound: Bound = "median", norm: float = 1.0, quantile: float = 0.5) -> None:
        self.inner, self.bound, self.norm, self.quantile = inner, bound, norm, quantile

    def init(self, size: int) -> State:
        """The bound, before any norm is known: none."""
        own = {BOUND: np.zeros(1, np.float32)} if self.bound == "quantile" else {}
        return {**self.inner.init(size), **own}

    def aggregate(
        self, state: State, updates: UpdateSet, context: Context, rng: np.random.Generator
    ) -> tuple[State, Vector]:
        """See `Aggregator.aggregate`."""
        norms = updates.norms()
        own: dict[str, Vector] = {}
        most = self.norm if self.bound == "fixed" else float(np.median(norms))
        if self.bound == "quantile":
            most = float(state[BOUND][0]) or most
            below = float(np.mean(norms <= most))
            own[BOUND] = np.array([most * np.exp(-RATE * (below - self.quantile))], np.float32)
        inner, step = self.inner.aggregate(state, clipped(updates, norms, most), context, rng)
        return {**inner, **own}, step


def clipped(updates: UpdateSet, norms: Matrix, most: float) -> UpdateSet:
    """Rows of `norms`, shape (M,), made no longer than `most`."""
    factors = np.minimum(1.0, most / np.maximum(norms, 1e-30))
    return updates if (factors == 1).all() else updates.scaled(factors)
