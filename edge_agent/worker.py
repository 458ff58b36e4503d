"""The one thread that trains; it can be paused, and left behind."""

import queue
import threading
from typing import Protocol

from edge_agent.events import Train, Trained, TrainingFailed
from edge_agent.sources import Dataset
from edge_agent.training import Trainer, TrainerFactory
from fl_protocol.errors import ProtocolError

STOP_S = 1.0  # what a training is given to come to an end: a step takes less


class _Abandoned(Exception):  # noqa: N818 - nobody's mistake
    """The process ends."""


class Worker(Protocol):
    """Trains one order at a time, in the background."""

    def train(self, order: Train, dataset: Dataset) -> None:
        """Begin; the outcome comes by `outcome`."""

    def pause(self, paused: bool) -> None:
        """Hold the training in hand, or let it go on."""

    def outcome(self) -> Trained | TrainingFailed | None:
        """What the training came to, once. Raises whatever nobody expected."""

    def stop(self) -> None:
        """Abandon the training in hand."""


class ThreadWorker:
    """A `Worker` on a thread. Keeps the last bundle's trainer, with its graphs loaded."""

    def __init__(self, make_trainer: TrainerFactory) -> None:
        self._make_trainer = make_trainer
        self._orders: queue.SimpleQueue[tuple[Train, Dataset] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Trained | TrainingFailed | Exception] = queue.SimpleQueue()
        self._paused = self._stopped = False
        self._trainer: tuple[str, Trainer] | None = None
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)
        self._thread.start()

    def train(self, order: Train, dataset: Dataset) -> None:
        """As `Worker.train`."""
        self._paused = False
        self._orders.put((order, dataset))

    def pause(self, paused: bool) -> None:
        """As `Worker.pause`."""
        self._paused = paused

    def outcome(self) -> Trained | TrainingFailed | None:
        """As `Worker.outcome`."""
        try:
            outcome = self._outcomes.get_nowait()
        except queue.Empty:
            return None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def stop(self) -> None:
        """As `Worker.stop`."""
        self._stopped = True
        self._orders.put(None)
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while item := self._orders.get():
            try:
                self._outcomes.put(self._train(*item))
            except _Abandoned:
                return
            except Exception as error:  # the main thread's to judge: it ends the process
                self._outcomes.put(error)

    def _train(self, order: Train, dataset: Dataset) -> Trained | TrainingFailed:
        try:
            trainer = self._trainer_for(order)
            result = trainer.train(order.base, dataset, order.order, order.personal, order.rng, self._should_pause)
        except ProtocolError as error:
            return TrainingFailed(order.task, error.code, error.message)
        except MemoryError:
            return TrainingFailed(order.task, None, "not enough memory")
        return Trained(order.task, result)

    def _trainer_for(self, order: Train) -> Trainer:
        if self._trainer is None or self._trainer[0] != order.bundle.sha256:
            self._trainer = order.bundle.sha256, self._make_trainer(order.bundle)
        return self._trainer[1]

    def _should_pause(self) -> bool:
        if self._stopped:
            raise _Abandoned
        return self._paused
