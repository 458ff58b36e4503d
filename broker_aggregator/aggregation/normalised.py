"""FedNova: devices that take more steps do not pull more."""

import numpy as np

from broker_aggregator.aggregation import Context
from broker_aggregator.aggregation.chain import Wrapper
from broker_aggregator.aggregation.updates import UpdateSet

MOST = 4.0  # times longer or shorter: the number of steps is the device's own word


class Normalised(Wrapper):
    """Each update times mean(steps) / steps_i, so that all are as long as one of the buffer's mean number of steps.

    What one device says of itself changes little for the others: towards the mean it counts as at most `MOST` medians.
    Wang et al., "Tackling the objective inconsistency problem", arXiv:2007.07481, for plain local SGD.
    """

    def rows(self, updates: UpdateSet, context: Context, rng: np.random.Generator) -> UpdateSet:  # noqa: ARG002
        """See `Wrapper.rows`."""
        steps = np.array([m.local_steps for m in updates.meta], np.float64)
        middle = float(np.median(steps))
        usual = float(np.clip(steps, middle / MOST, middle * MOST).mean())
        return updates.scaled(np.clip(usual / steps, 1 / MOST, MOST))
