"""Attackers that know what every honest device has learnt, and send one thing together.

`honest` is float64 of shape (n, P), one row a device. What byzfl (EPFL) defines, it defines so: see each.
"""

from collections import OrderedDict
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from anabranch.simulator.attacks.results import Attack, on_delta
from edge_agent.events import Train
from edge_agent.training import TrainingResult
from fl_protocol.tensors import Vector

Matrix = NDArray[np.float64]
Craft = Callable[[Matrix], Matrix]  # shape (n, P) -> (P,)
MOST = 20  # deltas that are kept


class Overheard:
    """The newest delta of each of the last `most` honest devices that came to an end, oldest first: O(most P)."""

    def __init__(self, most: int) -> None:
        self._most = max(1, min(MOST, most))
        self._deltas: OrderedDict[str, Vector] = OrderedDict()

    def __len__(self) -> int:
        return len(self._deltas)

    def hear(self, device: str, delta: Vector) -> None:
        """An honest device has come to an end."""
        self._deltas[device] = delta
        self._deltas.move_to_end(device)
        if len(self._deltas) > self._most:
            self._deltas.popitem(last=False)

    @property
    def honest(self) -> Matrix:
        """Shape (n, P)."""
        return np.array(list(self._deltas.values()), np.float64)


def spread(honest: Matrix) -> Matrix:
    """The standard deviation of each parameter, with n - 1, as byzfl computes it; zero of one row."""
    return np.std(honest, axis=0, ddof=1) if len(honest) > 1 else np.zeros(honest.shape[1])


def alie(honest: Matrix, z: float) -> Matrix:
    """mu - z sigma: A Little Is Enough (Baruch et al. 2019, arXiv:1902.06156).

    byzfl's ALittleIsEnough adds tau sigma, tau 1.5 unless told or searched; its search takes either sign.
    """
    return np.asarray(np.mean(honest, axis=0) - z * spread(honest))


def z_of(devices: int, attackers: int) -> float:
    """The paper's z for f attackers of n devices: Phi^-1((n - f - s) / (n - f)), s = floor(n / 2) + 1 - f.

    So many honest devices are as far from the mean that with them the attackers are the majority. At least one is
    (s >= 1), and z is not negative: few attackers have none, and send the mean.
    """
    honest = devices - attackers
    supporters = max(1, devices // 2 + 1 - attackers)
    share = (honest - supporters) / max(1, honest)
    return max(0.0, NormalDist().inv_cdf(share)) if share > 0 else 0.0


def ipm(honest: Matrix, scale: float) -> Matrix:
    """-eps mu: inner product manipulation (Xie et al. 2019, arXiv:1903.03936), eps 0.6 unless told.

    byzfl's InnerProductManipulation is the same with tau = 3; its FallOfEmpires writes it (1 - tau) mu.
    """
    return np.asarray(-scale * np.mean(honest, axis=0))


def min_max(honest: Matrix) -> Matrix:
    """mu - gamma sigma with the largest gamma that is no further from any honest delta than two of them are from each
    other (Shejwalkar and Houmansadr, NDSS 2021, perturbation -std). byzfl has no such attack.

    The paper halves an interval; here gamma is the least of the n larger roots of |mu - gamma sigma - u_i|^2 = D^2.
    """
    mean, deviation = np.mean(honest, axis=0), spread(honest)
    off = mean - honest  # (n, P); what is added is -gamma sigma
    a = float(np.sum(deviation * deviation))
    if a == 0.0:
        return np.asarray(mean)
    # einsum, not BLAS: its sums do not depend on the number of threads
    gram = np.einsum("ip,jp->ij", off, off)
    norms = np.diag(gram)
    most = max(0.0, float(np.max(norms[:, None] + norms[None, :] - 2 * gram)))
    along = -np.einsum("ip,p->i", off, deviation)
    inside = np.maximum(0.0, along**2 - a * (norms - most))
    return np.asarray(mean - float(np.min(-along + np.sqrt(inside))) / a * deviation)


class JustInside:
    """mu, and from there against it as far as a rule lets pass that leaves out what is further off than others are.

    This attacker knows `near`: mu - d mu/|mu|, where d is `scale` times the largest median distance to mu that was seen
    up to now, and so long that the whole is no longer than `MOST_NORM` median norms, which the gate would shorten.
    """

    MOST_NORM = 4.5

    def __init__(self, scale: float) -> None:
        self._scale, self._largest = scale, 0.0

    def __call__(self, honest: Matrix) -> Matrix:
        """See `Craft`."""
        mean = np.mean(honest, axis=0)
        length = float(np.linalg.norm(mean[None], axis=1)[0])  # along an axis it is no BLAS: see min_max
        if length == 0.0:
            return np.asarray(mean)
        distances, norms = np.linalg.norm(honest - mean, axis=1), np.linalg.norm(honest, axis=1)
        self._largest = max(self._largest, float(np.median(distances)))
        most = self.MOST_NORM * float(np.median(norms)) + length
        return np.asarray(mean * (1 - min(self._scale * self._largest, most) / length))


def make_craft(kind: str, scale: float | None, devices: int, attackers: int) -> Craft:
    """What such attackers send; `scale` is z of ALIE, None: the paper's, eps of IPM, and just-inside's."""
    if kind == "alie":
        z = z_of(devices, attackers) if scale is None else scale
        return lambda honest: alie(honest, z)
    if kind == "ipm":
        return lambda honest: ipm(honest, 0.6 if scale is None else scale)
    if kind == "just-inside":
        return JustInside(1.8 if scale is None else scale)
    return min_max


def with_others(craft: Craft, overheard: Overheard) -> Attack:
    """Sends what is crafted of what was overheard until then; its own honest result before there was anything."""

    crafted = on_delta(lambda _delta, _rng: craft(overheard.honest))

    def attack(result: TrainingResult, order: Train) -> TrainingResult:
        return crafted(result, order) if len(overheard) else result

    return attack
