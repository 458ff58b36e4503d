"""From a buffer's step to new parameters: (params, step, state) -> (params, state), all float32, shape (P,)."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from fl_protocol.tensors import Vector

OptimizerState = Mapping[str, Vector]


class ServerOptimizer(Protocol):
    """Applies a step to the global model; all its memory is in the state."""

    def init(self, size: int) -> OptimizerState:
        """The state before the first step."""

    def apply(self, params: Vector, step: Vector, state: OptimizerState) -> tuple[Vector, OptimizerState]:
        """New parameters and state; the arguments stay as they are."""


class SGD:
    """w <- w + eta_s m, m <- beta m + step: FedAvg at beta 0, FedAvgM above (Hsu et al., arXiv:1909.06335)."""

    def __init__(self, learning_rate: float, momentum: float = 0.0) -> None:
        self.learning_rate = np.float32(learning_rate)
        self.momentum = np.float32(momentum)

    def init(self, size: int) -> OptimizerState:
        """No momentum yet."""
        return {"momentum": np.zeros(size, np.float32)} if self.momentum else {}

    def apply(self, params: Vector, step: Vector, state: OptimizerState) -> tuple[Vector, OptimizerState]:
        """One step of gradient descent on the pseudo-gradient."""
        if not self.momentum:
            return params + self.learning_rate * step, {}
        momentum = self.momentum * state["momentum"] + step
        return params + self.learning_rate * momentum, {"momentum": momentum}
