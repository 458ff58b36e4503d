"""The operator's pause: no training until it is over, or until `resume`. It survives a restart.

Time is the device's own. After a restart the pause ends by the local clock; without one its minutes begin anew, and
with one that was set back they never last longer than that.
"""

from collections.abc import Callable

from edge_agent.commands import Paused
from edge_agent.events import Effect, SavePaused
from edge_agent.gate import Answer

PAUSED = "paused by the operator"
NEVER = float("inf")


class Pausing:
    """`wake_at` is when the pause ends by itself; `emit` takes what the disk must keep."""

    def __init__(self, paused: Paused | None, emit: Callable[[Effect], None]) -> None:
        self._restored = self._paused = paused
        self._emit = emit
        self.wake_at = NEVER

    def begin(self, minutes: float | None, local_s: float | None, now: float) -> None:
        """From now on, for `minutes` or until `end`; instead of any pause before. `local_s` is the local clock's."""
        left_s = None if minutes is None else 60.0 * minutes
        until_s = None if left_s is None or local_s is None else local_s + left_s
        self._paused, self._restored = Paused(left_s, until_s), None
        self.wake_at = NEVER if left_s is None else now + left_s
        self._emit(SavePaused(self._paused))

    def end(self) -> bool:
        """Training may go on; whether there was a pause."""
        if self._paused is None:
            return False
        self._paused, self._restored, self.wake_at = None, None, NEVER
        self._emit(SavePaused(None))
        return True

    def measured(self, local_s: float | None, now: float) -> None:
        """After a restart: what the clock says of the pause that is left."""
        paused, self._restored = self._restored, None
        if paused is None or paused.left_s is None:
            return
        left_s = paused.left_s
        if paused.until_s is not None and local_s is not None:
            left_s = min(left_s, paused.until_s - local_s)
        self.wake_at = now + max(0.0, left_s)

    def over(self, now: float) -> bool:
        """Whether it has just ended by itself."""
        return now >= self.wake_at and self.end()

    def judge(self, gate: Answer) -> Answer:
        """The gate's answer, and the operator's."""
        if self._paused is None:
            return gate
        return Answer(False, "; ".join(why for why in (PAUSED, gate.because) if why), gate.hot)
