"""What the held-out set said of a task's versions so far."""

from collections import deque
from dataclasses import dataclass, field

from fl_protocol.better import improves
from fl_protocol.bundle import Better

KEPT_VALUES = 100  # of the newest versions, for a guard to compare with


@dataclass
class Measured:
    """What the held-out set said, release after release."""

    value: float | None = None
    loss: float | None = None
    best: float | None = None
    since_best: int = 0
    better: Better = "higher"
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_VALUES))

    def take(self, value: float, loss: float | None) -> None:
        """One more release measured."""
        self.value, self.loss = value, loss
        self.recent.append(value)
        if improves(value, self.best, self.better):
            self.best, self.since_best = value, 0
        else:
            self.since_best += 1
