"""From a buffer's step to new parameters: (params, step, state) -> (params, state), all float32, shape (P,).

The adaptive ones are those of Reddi et al., "Adaptive federated optimization", arXiv:2003.00295: no bias correction,
and v begins with epsilon squared.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from fl_protocol.tensors import Vector

OptimizerState = Mapping[str, Vector]


class ServerOptimizer(Protocol):
    """Applies a step to the global model; all its memory is in the state."""

    def init(self, size: int) -> OptimizerState:
        """The state before the first step."""

    def apply(
        self, params: Vector, step: Vector, state: OptimizerState, staleness: int = 0
    ) -> tuple[Vector, OptimizerState]:
        """New parameters and state; the arguments stay as they are. `staleness` is the buffer's largest."""


class SGD:
    """w <- w + eta_s m, m <- beta m + step: FedAvg at beta 0, FedAvgM above (Hsu et al., arXiv:1909.06335)."""

    def __init__(self, learning_rate: float, momentum: float = 0.0) -> None:
        self.learning_rate = np.float32(learning_rate)
        self.momentum = np.float32(momentum)

    def init(self, size: int) -> OptimizerState:
        """No momentum yet."""
        return {"momentum": np.zeros(size, np.float32)} if self.momentum else {}

    def apply(
        self,
        params: Vector,
        step: Vector,
        state: OptimizerState,
        staleness: int = 0,  # noqa: ARG002
    ) -> tuple[Vector, OptimizerState]:
        """One step of gradient descent on the pseudo-gradient."""
        if not self.momentum:
            return params + self.learning_rate * step, {}
        momentum = self.momentum * state["momentum"] + step
        return params + self.learning_rate * momentum, {"momentum": momentum}


class Adagrad:
    """FedAdagrad: m <- b1 m + (1 - b1) D, v <- v + D^2, w <- w + eta m / (sqrt(v) + eps)."""

    def __init__(self, learning_rate: float, beta1: float = 0.9, epsilon: float = 1e-3) -> None:
        self.learning_rate = np.float32(learning_rate)
        self.beta1, self.epsilon = np.float32(beta1), np.float32(epsilon)

    def init(self, size: int) -> OptimizerState:
        """No momentum yet; v as small as epsilon."""
        return {"m": np.zeros(size, np.float32), "v": np.full(size, self.epsilon**2, np.float32)}

    def apply(
        self, params: Vector, step: Vector, state: OptimizerState, staleness: int = 0
    ) -> tuple[Vector, OptimizerState]:
        """One adaptive step."""
        one = np.float32(1)
        m = self.beta1 * state["m"] + (one - self.beta1) * step
        v, new = self._second(step * step, state)
        rate = np.float32(self._rate(staleness))
        moved = params + rate * m / (np.sqrt(v) + self.epsilon)
        return moved.astype(np.float32), {"m": m, **new}

    def _rate(self, staleness: int) -> float:  # noqa: ARG002
        return float(self.learning_rate)

    def _second(self, square: Vector, state: OptimizerState) -> tuple[Vector, OptimizerState]:
        """What divides the step, and the state's second moments."""
        v = state["v"] + square
        return v, {"v": v}


class Adam(Adagrad):
    """FedAdam: v <- b2 v + (1 - b2) D^2."""

    def __init__(self, learning_rate: float, beta1: float = 0.9, beta2: float = 0.99, epsilon: float = 1e-3) -> None:
        super().__init__(learning_rate, beta1, epsilon)
        self.beta2 = np.float32(beta2)

    def _second(self, square: Vector, state: OptimizerState) -> tuple[Vector, OptimizerState]:
        v = self.beta2 * state["v"] + (np.float32(1) - self.beta2) * square
        return v, {"v": v}


class Yogi(Adam):
    """FedYogi: v <- v - (1 - b2) D^2 sign(v - D^2)."""

    def _second(self, square: Vector, state: OptimizerState) -> tuple[Vector, OptimizerState]:
        v = state["v"] - (np.float32(1) - self.beta2) * square * np.sign(state["v"] - square)
        return v, {"v": v}


class DelayAdaptive(Adam):
    """FADAS: AMSGrad's largest v so far divides, and a very stale buffer moves less: eta <= 1 / tau_max above `delay`.

    Wang et al., "FADAS: Towards federated adaptive asynchronous optimization", ICML 2024, arXiv:2407.18365.
    """

    def __init__(
        self, learning_rate: float, beta1: float = 0.9, beta2: float = 0.99, epsilon: float = 1e-4, delay: int = 4
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon)
        self.delay = delay

    def init(self, size: int) -> OptimizerState:
        """As Adam's, and the largest v so far."""
        before = super().init(size)
        return {**before, "largest": before["v"]}

    def _rate(self, staleness: int) -> float:
        rate = float(self.learning_rate)
        return rate if staleness <= self.delay else min(rate, 1.0 / staleness)

    def _second(self, square: Vector, state: OptimizerState) -> tuple[Vector, OptimizerState]:
        v, new = super()._second(square, state)
        largest = np.maximum(state["largest"], v)
        return largest, {**new, "largest": largest}
