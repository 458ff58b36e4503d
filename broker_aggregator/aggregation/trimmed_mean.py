"""The trimmed mean: of each coordinate, the mean without what is largest and smallest."""

from broker_aggregator.aggregation import order_statistics
from broker_aggregator.aggregation.chain import Memoryless
from broker_aggregator.aggregation.updates import UpdateSet
from fl_protocol.tensors import Vector


class TrimmedMean(Memoryless):
    """The mean of each coordinate without its `f` largest and `f` smallest values; of n > 2 f it stands f.

    Of fewer as many are trimmed as leave one or two. Yin et al., arXiv:1803.01498.
    """

    def __init__(self, f: int) -> None:
        self.f = f

    def step(self, updates: UpdateSet) -> Vector:
        """See `Memoryless.step`."""
        f = min(self.f, (len(updates) - 1) // 2)
        return updates.by_coordinates(lambda block: order_statistics.trimmed_mean(block, f))
