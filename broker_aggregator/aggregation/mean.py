"""The mean, weighted by examples and discounted by staleness: FedAvg and FedBuff in one rule."""

from collections.abc import Sequence

import numpy as np

from broker_aggregator.aggregation import Aggregate, State, UpdateMeta, UpdateSet
from broker_aggregator.staleness import staleness_discount


class WeightedMean:
    """step = (b/K) sum_i n_i^rho s(tau_i) delta_i / sum_i n_i^rho.

    Dividing by the sum of the *undiscounted* shares keeps the discount when all updates are stale. O(P) memory,
    however many updates come. FedAvg: McMahan et al. 2017; FedBuff: Nguyen et al., AISTATS 2022.
    """

    def __init__(self, example_exponent: float = 0.5, staleness_exponent: float = 0.5) -> None:
        self.example_exponent = example_exponent
        self.staleness_exponent = staleness_exponent

    def init(self, size: int) -> State:  # noqa: ARG002  # a mean remembers nothing
        """Nothing to remember."""
        return {}

    def shares(self, meta: Sequence[UpdateMeta], share: float) -> list[float]:
        """Each update's factor in the step, in order."""
        examples = [float(m.num_examples) ** self.example_exponent for m in meta]
        total = sum(examples)
        return [
            share * n / total * staleness_discount(m.staleness, self.staleness_exponent)
            for n, m in zip(examples, meta, strict=True)
        ]

    def aggregate(
        self,
        state: State,
        updates: UpdateSet,
        share: float,
        rng: np.random.Generator,  # noqa: ARG002
    ) -> tuple[State, Aggregate]:
        """Sum in record order, in float64, so that a replay gives the same bits."""
        if not len(updates):
            raise ValueError("a buffer without updates asks for no step")
        shares = self.shares(updates.meta, share)
        step: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None = None
        for factor, (_, delta) in zip(shares, updates.dense(), strict=True):
            scaled = np.multiply(delta, factor, dtype=np.float64)
            step = scaled if step is None else np.add(step, scaled, out=step)
        assert step is not None
        return state, Aggregate(step.astype(np.float32), tuple(shares))
