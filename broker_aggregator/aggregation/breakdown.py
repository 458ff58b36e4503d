"""How many attackers a buffer may hold. The buffer takes K of N devices, of which m are hostile: hypergeometric."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from broker_aggregator.aggregation.updates import Matrix

SURELY = 0.01  # the chance of more than f that is not accepted


def attackers_among(num_devices: int, share: float) -> int:
    """m, the nearest whole number; of two that are equally near, the larger."""
    return int(share * num_devices + 0.5 + 1e-9)


def chance_of_more(f: int, buffer: int, num_devices: int, share: float) -> float:
    """P(X > f) for the attackers X in a buffer of `buffer` <= N different devices, each as likely as any other."""
    return float(_tails(buffer, num_devices, share)[min(f, buffer)])


def declared_f(buffer: int, num_devices: int, share: float) -> int:
    """The least f with P(X > f) < 1 %."""
    return int(np.argmax(_tails(buffer, num_devices, share) < SURELY))


@lru_cache(maxsize=4)
def _log_factorials(most: int) -> Matrix:
    """ln k! for k = 0 to `most`."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])


def _tails(buffer: int, num_devices: int, share: float) -> Matrix:
    """P(X > f) for f = 0 to `buffer`, shape (K + 1,). In logarithms: `math.comb` takes minutes for large fleets."""
    hostile = attackers_among(num_devices, share)
    fewest, most = max(0, buffer - (num_devices - hostile)), min(hostile, buffer)
    log = _log_factorials(num_devices)

    def ways(n: int, k: NDArray[np.int64]) -> Matrix:
        return np.asarray(log[n] - log[k] - log[n - k], np.float64)

    x = np.arange(fewest, most + 1)
    chances = ways(hostile, x) + ways(num_devices - hostile, buffer - x)
    chances = np.exp(chances - chances.max())
    exactly = np.zeros(buffer + 1)
    exactly[fewest : most + 1] = chances / chances.sum()
    return np.concatenate([np.cumsum(exactly[:0:-1])[::-1], [0.0]])
