"""Versions measured in the background: the release goes out at once, its accuracy follows."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Protocol

from broker_aggregator.evaluation import Evaluator
from broker_aggregator.events import Evaluate, Evaluated, Note

log = logging.getLogger("aggregator")
MAX_MEASURING = 64  # versions that wait, each with its vector in memory

EvaluatorOf = Callable[[str, str], Evaluator]  # (bundle SHA-256, path of the examples)


class Measuring(Protocol):
    """Measures one version after the other."""

    def begin(self, effect: Evaluate) -> None:
        """Measure a version; what it came to is in `news`, later."""

    def news(self) -> list[Evaluated | Note]:
        """What was measured since the last call, or why it could not be."""

    def stop(self) -> None:
        """Begin no more."""


class ThreadMeasuring:
    """On one thread; a set that cannot be read is told, and stops nothing."""

    def __init__(self, evaluator: EvaluatorOf) -> None:
        self._evaluator = evaluator
        self._news: SimpleQueue[Evaluated | Note] = SimpleQueue()
        self._pool = ThreadPoolExecutor(1, "evaluation")
        self._waiting = 0

    def begin(self, effect: Evaluate) -> None:
        """As `Measuring.begin`; with too many waiting already this one is left out."""
        if self._waiting >= MAX_MEASURING:
            log.warning("measuring is %d versions behind: %d is left out", MAX_MEASURING, effect.version)
            return
        self._waiting += 1
        self._pool.submit(self._measure, effect)

    def news(self) -> list[Evaluated | Note]:
        """As `Measuring.news`."""
        news: list[Evaluated | Note] = []
        while True:
            try:
                news.append(self._news.get_nowait())
                self._waiting -= 1  # here, and not where it was measured: one thread counts
            except Empty:
                return news

    def stop(self) -> None:
        """As `Measuring.stop`."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _measure(self, effect: Evaluate) -> None:
        try:
            loss, value = self._evaluator(effect.bundle_sha256, effect.evaluation).measure(effect.vector)
            self._news.put(Evaluated(effect.task, effect.version, loss, value))
        except Exception as error:  # whatever the file or the graph did, the fleet goes on
            self._news.put(Note("error", f"cannot evaluate version {effect.version}: {error}"))
