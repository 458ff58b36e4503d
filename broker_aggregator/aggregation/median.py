"""FedMedian: the median of each coordinate alone."""

from broker_aggregator.aggregation import order_statistics
from broker_aggregator.aggregation.chain import Memoryless
from broker_aggregator.aggregation.updates import UpdateSet
from fl_protocol.tensors import Vector


class Median(Memoryless):
    """The coordinate-wise median; of an even number, the mean of the middle two. Stands fewer than half.

    Yin et al., "Byzantine-robust distributed learning", arXiv:1803.01498.
    """

    def step(self, updates: UpdateSet) -> Vector:
        """See `Memoryless.step`."""
        return updates.by_coordinates(order_statistics.median)
