"""A `Worker` whose work takes virtual time; what it comes to is computed whenever that suits the processor."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from anabranch.simulator.learning import Learning, Outcome, steps_of
from anabranch.simulator.world import World
from edge_agent.events import Train, Trained, TrainingFailed
from edge_agent.sources import Dataset
from edge_agent.training import TrainingResult
from fl_protocol.errors import ProtocolError


@dataclass(frozen=True)
class Pace:
    """How fast a device trains: seconds a step, seconds around each training, and whether its memory is enough."""

    step_s: float
    overhead_s: float
    fits: bool = True


class VirtualWorker:
    """Trains one order at a time. `wake_at` is told when the outcome will be there; `spent_s` sums the time it took.

    `on_begin` and `on_learnt` look on: (device, order) and (device, order, result); `on_pace` hears how many seconds a
    training that begins will take.
    """

    def __init__(
        self,
        world: World,
        device: str,
        pace: Pace,
        learning: Learning,
        wake_at: Callable[[float], None],
        on_begin: Callable[[str, Train], None],
        on_learnt: Callable[[str, Train, TrainingResult], None],
        on_pace: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._world, self._device, self._pace, self._learning = world, device, pace, learning
        self._wake_at, self._on_begin, self._on_learnt, self._on_pace = wake_at, on_begin, on_learnt, on_pace
        self._job: tuple[Train, Outcome | None, float] | None = None
        self._ends_at = 0.0
        self._held_since: dict[str, float] = {}  # why -> since when
        self.spent_s = 0.0

    def train(self, order: Train, dataset: Dataset) -> None:
        """See `Worker.train`."""
        self._on_begin(self._device, order)
        outcome, seconds = None, self._pace.overhead_s
        if self._pace.fits:
            outcome = self._learning.begin(self._device, order, dataset)
            seconds += steps_of(order.order, len(dataset.train)) * self._pace.step_s
        self._job = order, outcome, seconds
        self._held_since.clear()
        self._ends_at = self._world.now + seconds
        self._wake_at(self._ends_at)
        self._on_pace(seconds)

    def pause(self, paused: bool) -> None:
        """See `Worker.pause`."""
        self.hold("paused", paused)

    def hold(self, why: str, held: bool) -> None:
        """Stand still, or go on where nothing else holds it."""
        if held:
            self._held_since.setdefault(why, self._world.now)
            return
        since = self._held_since.pop(why, None)
        if since is None:
            return
        if self._held_since:  # one of two ends: what remains counts from its own beginning
            other = min(self._held_since.values())
            self._ends_at += max(0.0, other - since)
            return
        self._ends_at += self._world.now - since
        self._wake_at(self._ends_at)

    def outcome(self) -> Trained | TrainingFailed | None:
        """See `Worker.outcome`."""
        if self._job is None or self._held_since or self._world.now < self._ends_at:
            return None
        (order, outcome, seconds), self._job = self._job, None
        self.spent_s += seconds
        if outcome is None:
            return TrainingFailed(order.task, None, "not enough memory")
        try:
            result = replace(outcome(), train_seconds=seconds)
        except ProtocolError as error:
            return TrainingFailed(order.task, error.code, error.message)
        self._on_learnt(self._device, order, result)
        return Trained(order.task, result)

    def stop(self) -> None:
        """See `Worker.stop`."""
        self._job = None
