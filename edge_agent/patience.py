"""How long a device with nothing to train waits before it looks whether something was lost on the way to it."""

from numpy.random import Generator

LOOK_AGAIN_S = (300.0, 3600.0)  # at first, and at most
NEVER = float("inf")


class Patience:
    """`wake_at` is when to look again; each time that nothing comes of it, the next wait is twice as long."""

    def __init__(self) -> None:
        self.wake_at = NEVER
        self._wait_s = LOOK_AGAIN_S[0]

    def renew(self, now: float, rng: Generator) -> None:
        """Something happened: a connection, or a training that begins. `rng` spreads a fleet."""
        self._wait_s = LOOK_AGAIN_S[0]
        self._begin(now, rng)

    def is_over(self, now: float, rng: Generator) -> bool:
        """Whether to look now; if so, the next wait begins."""
        if now < self.wake_at:
            return False
        self._wait_s = min(2 * self._wait_s, LOOK_AGAIN_S[1])
        self._begin(now, rng)
        return True

    def _begin(self, now: float, rng: Generator) -> None:
        self.wake_at = now + self._wait_s * rng.uniform(0.75, 1.25)
