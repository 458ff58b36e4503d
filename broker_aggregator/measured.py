"""What the held-out set said of a task's versions so far."""

from dataclasses import dataclass

from fl_protocol.better import improves
from fl_protocol.bundle import Better


@dataclass
class Measured:
    """What the held-out set said, release after release."""

    value: float | None = None
    loss: float | None = None
    best: float | None = None
    since_best: int = 0
    better: Better = "higher"

    def take(self, value: float, loss: float | None) -> None:
        """One more release measured."""
        self.value, self.loss = value, loss
        if improves(value, self.best, self.better):
            self.best, self.since_best = value, 0
        else:
            self.since_best += 1
