"""Virtual time: what is to happen, in order. A day passes as fast as its events can be worked through.

Two events at one time happen in the order in which they were asked for, so a run is the same each time.
"""

import hashlib
import heapq
from collections.abc import Callable
from random import Random

import numpy as np

Action = Callable[[], None]

EPOCH_MS = 1_767_225_600_000  # 2026-01-01, when every simulation begins


class World:
    """A clock and a queue of events. `now` in virtual seconds since the start; `events` counts what has happened."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.events = 0
        self._order = 0
        self._queue: list[tuple[float, int, Action]] = []

    def rng(self, *names: object) -> Random:
        """A generator of its own for whoever asks by name: what one draws moves nothing for another."""
        return Random("/".join(map(str, (self.seed, *names))))  # noqa: S311  # nothing here is secret

    def generator(self, *names: object) -> np.random.Generator:
        """The same, as numpy's."""
        digest = hashlib.sha256("/".join(map(str, (self.seed, *names))).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "big"))

    def at(self, time: float, action: Action) -> None:
        """Let `action` happen at `time`, or now if that is over."""
        self._order += 1
        heapq.heappush(self._queue, (max(time, self.now), self._order, action))

    def after(self, seconds: float, action: Action) -> None:
        """Let `action` happen in `seconds`."""
        self.at(self.now + seconds, action)

    def step(self) -> bool:
        """Let the next thing happen; False when nothing ever will."""
        if not self._queue:
            return False
        self.now, _, action = heapq.heappop(self._queue)
        self.events += 1
        action()
        return True

    @property
    def next_at(self) -> float:
        """When the next thing happens; infinity: never."""
        return self._queue[0][0] if self._queue else float("inf")


class Alarm:
    """Wakes one sleeper at the earliest time that it was set to; setting it is cheap, and so is never cancelling."""

    def __init__(self, world: World, ring: Action) -> None:
        self._world, self._ring = world, ring
        self._at = float("inf")

    def set(self, time: float) -> None:
        """Ring at `time`, unless it rings before."""
        time = max(time, self._world.now)
        if time < self._at:
            self._at = time
            self._world.at(time, lambda: self._rings(time))

    def _rings(self, time: float) -> None:
        if time == self._at:
            self._at = float("inf")
            self._ring()
