"""The mean, weighted by examples and discounted by staleness: FedAvg, FedAsync and FedBuff in one rule."""

from collections.abc import Sequence

import numpy as np

from broker_aggregator.aggregation import Context, State, UpdateMeta, UpdateSet
from broker_aggregator.staleness import Discount
from fl_protocol.tensors import Vector

MOST_EXAMPLES = 10  # times the median of the buffer: what a device says of itself cannot make it everything


def believed(num_examples: Sequence[int]) -> list[float]:
    """What devices say of their examples, as far as it is believed beside the others of the buffer."""
    most = MOST_EXAMPLES * float(np.median(num_examples))
    return [min(n, most) for n in num_examples]


class WeightedMean:
    """step = sum_i n_i^rho s(tau_i) delta_i / sum_i n_i^rho.

    Dividing by the sum of the *undiscounted* weights keeps the discount when all updates are stale. O(P) memory,
    however many updates come. FedAvg: McMahan et al. 2017; FedAsync: Xie et al., arXiv:1903.03934; FedBuff: Nguyen et
    al., AISTATS 2022.
    """

    def __init__(self, example_exponent: float = 0.5, discount: Discount | None = None) -> None:
        self.example_exponent = example_exponent
        self.discount = discount or Discount()

    def init(self, size: int) -> State:  # noqa: ARG002  # a mean remembers nothing
        """Nothing to remember."""
        return {}

    def factors(self, meta: Sequence[UpdateMeta], version: int = 0) -> list[float]:
        """Each update's factor in the step, in order; they sum to 1 at most."""
        examples = [n**self.example_exponent for n in believed([m.num_examples for m in meta])]
        total = sum(examples)
        return [n / total * self.discount(m.staleness, version) for n, m in zip(examples, meta, strict=True)]

    def aggregate(
        self,
        state: State,
        updates: UpdateSet,
        context: Context,
        rng: np.random.Generator,  # noqa: ARG002
    ) -> tuple[State, Vector]:
        """See `Aggregator.aggregate`."""
        return state, updates.weighted_sum(np.array(self.factors(updates.meta, context.version)))
