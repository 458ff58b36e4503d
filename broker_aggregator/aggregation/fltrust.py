"""FLTrust: a device that the operator trusts says which way is right."""

import numpy as np

from broker_aggregator.aggregation import Context, State
from broker_aggregator.aggregation.updates import UpdateSet
from fl_protocol.tensors import Vector

TRUSTED = "fltrust.trusted"


class FLTrust:
    """Each update counts as much as it points where the trusted one does, and is made as long as that.

    u_0 is the newest update of the device `trusted`: an agent beside the gateway, with the gateway's own examples. TS_i
    = relu(cos(u_i, u_0)); step = sum_i TS_i |u_0| u_i / |u_i| / sum_i TS_i. Until it has said a word, nobody is
    trusted and nothing moves. Cao et al., arXiv:2012.13995.
    """

    def __init__(self, trusted: str) -> None:
        self.trusted = trusted

    def init(self, size: int) -> State:
        """No word of the trusted device yet."""
        return {TRUSTED: np.zeros(size, np.float32)}

    def aggregate(
        self,
        state: State,
        updates: UpdateSet,
        context: Context,  # noqa: ARG002
        rng: np.random.Generator,  # noqa: ARG002
    ) -> tuple[State, Vector]:
        """See `Aggregator.aggregate`."""
        own = [i for i, m in enumerate(updates.meta) if m.device == self.trusted]
        right = state[TRUSTED]
        if own:
            factors = np.zeros(len(updates))
            factors[own[-1]] = 1.0
            right = updates.weighted_sum(factors)
        length = float(np.linalg.norm(right.astype(np.float64)))
        if not length:
            return state, np.zeros_like(right)
        norms = np.maximum(updates.norms(), 1e-30)
        trust = np.maximum(0.0, updates.products(right) / norms / length)
        total = float(trust.sum())
        step = updates.weighted_sum(trust / total * length / norms) if total else np.zeros_like(right)
        return {**state, TRUSTED: right}, step
