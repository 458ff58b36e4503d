"""Stale updates shortened, before a rule that knows no age."""

import numpy as np

from broker_aggregator.aggregation import Aggregator, Context
from broker_aggregator.aggregation.chain import Wrapper
from broker_aggregator.aggregation.updates import UpdateSet
from broker_aggregator.staleness import Discount


class Discounted(Wrapper):
    """Each update times s(tau): see `Discount`."""

    def __init__(self, inner: Aggregator, discount: Discount) -> None:
        super().__init__(inner)
        self.discount = discount

    def rows(self, updates: UpdateSet, context: Context, rng: np.random.Generator) -> UpdateSet:  # noqa: ARG002
        """See `Wrapper.rows`."""
        factors = np.array([self.discount(m.staleness, context.version) for m in updates.meta])
        return updates if (factors == 1).all() else updates.scaled(factors)
