"""Local training: `OnnxTrainer` runs a bundle's own training step.

The step is a graph (forward, loss, backward, optimizer), so that this file knows no model. What runs the graphs is
runtime.py's.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.health import read_vitals
from edge_agent.runtime import Runtime, StepLoop, open_session, run
from edge_agent.sources import Dataset, Examples
from edge_agent.training import TrainingResult, WorkOrder
from fl_protocol.bundle import Bundle, GraphName
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.tensors import Vector, join_entries

__all__ = ["OnnxTrainer", "TrainingResult", "WorkOrder", "open_session", "run"]

_PAUSE_S = 0.05  # how often a paused or cooling training asks again
_SEEDS = 1 << 63  # below it: what an int64 holds


class OnnxTrainer:
    """Runs the graphs `train` and `evaluate` of a bundle.

    `duty_cycle` is the share of time that it may compute, in (0, 1]; a batch above `max_batch` (0: none) is made
    smaller, as the operator wished. `hold_memory` is called before each training, and gives the megabytes that this
    process may have in all.
    """

    def __init__(
        self,
        bundle: Bundle,
        runtime: Runtime | None = None,
        duty_cycle: float = 1.0,
        *,
        max_batch: int = 0,
        hold_memory: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._bundle, self._runtime, self._duty_cycle = bundle, runtime or Runtime(), duty_cycle
        self._max_batch, self._hold_memory = max_batch, hold_memory
        self._sessions: dict[GraphName, Any] = {}

    def train(
        self,
        base: Vector,
        dataset: Dataset,
        order: WorkOrder,
        personal: Vector,
        rng: np.random.Generator,
        should_pause: Callable[[], bool],
    ) -> TrainingResult:
        """See `Trainer.train`."""
        allowed_mb = self._hold_memory()
        started = time.monotonic()
        layout, size = self._bundle.layout, min(order.batch_size, self._max_batch or order.batch_size)
        state: dict[str, NDArray[Any]] = dict(self._bundle.tensors(base, personal))
        metrics = self._evaluate(state, dataset.validation, size, should_pause)
        state |= {e.name: np.zeros(e.shape, np.float32) for e in layout.with_role("optimizer")}
        state = {e.name: state[e.name] for e in layout.entries}
        loop = StepLoop(self._session("train"), state, self._fixed(base, order))
        steps, loss = 0, 0.0
        for batch in _batches(dataset.train, order, size, rng):
            self._wait(should_pause)
            step_started = time.monotonic()
            fed = {"x": batch.x, "y": batch.y, **self._seed(rng)}
            loss = loop.step(fed) if steps else _first_step(loop, fed, allowed_mb)
            steps += 1
            if not np.isfinite(loss):
                raise ProtocolError(Code.NAN, f"the loss is not finite at step {steps}; is the learning rate too high?")
            self._cool(time.monotonic() - step_started, should_pause)
        version = layout.join(loop.state)
        return TrainingResult(
            parameters=version[: layout.num_parameters],
            statistics=version[layout.num_parameters :],
            personal=join_entries(layout.with_role("personal"), loop.state),
            num_examples=min(len(dataset.train), steps * size),
            local_steps=steps,
            train_seconds=time.monotonic() - started,
            metrics={**metrics, "train_loss": loss},
        )

    def _fixed(self, base: Vector, order: WorkOrder) -> dict[str, NDArray[Any]]:
        """What is fed to every step alike: hyperparameters, and the base version where the bundle asks for it."""
        fixed = {name: np.asarray(value, np.float32) for name, value in order.hyper.items()}
        if "base" in self._bundle.feeds:
            version = self._bundle.layout.split(base)
            fixed |= {f"{e.name}.base": version[e.name] for e in self._bundle.layout.with_role("parameter")}
        return fixed

    def _seed(self, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Another seed for each step, where the bundle asks for one; else nothing is drawn."""
        return {"seed": np.asarray(rng.integers(_SEEDS), np.int64)} if "seed" in self._bundle.feeds else {}

    def _evaluate(
        self, state: Mapping[str, NDArray[Any]], examples: Examples, size: int, should_pause: Callable[[], bool]
    ) -> dict[str, float]:
        """The base version on examples that it does not learn from here; nothing without any."""
        if not len(examples):
            return {}
        loss_sum = correct = 0.0
        session = self._session("evaluate")
        for start in range(0, len(examples), size):
            self._wait(should_pause)
            batch = examples[start : start + size]
            values = run(session, ["loss_sum", "correct"], {**state, "x": batch.x, "y": batch.y})
            loss_sum, correct = loss_sum + float(values[0]), correct + float(values[1])
        n = len(examples)
        return {"value": correct / n, "loss": loss_sum / n, "validation_examples": float(n)}

    def _session(self, graph: GraphName) -> Any:
        if graph not in self._sessions:
            self._sessions[graph] = self._runtime.open(self._bundle.graph(graph), self._bundle.layout.num_parameters)
        return self._sessions[graph]

    def _wait(self, should_pause: Callable[[], bool]) -> None:
        while should_pause():
            time.sleep(_PAUSE_S)

    def _cool(self, busy_s: float, should_pause: Callable[[], bool]) -> None:
        """Leave the processor alone for as long as the duty cycle asks after `busy_s` of work."""
        until = time.monotonic() + busy_s * (1.0 / self._duty_cycle - 1.0)
        while (left_s := until - time.monotonic()) > 0:
            self._wait(should_pause)
            time.sleep(min(left_s, _PAUSE_S))


def _batches(examples: Examples, order: WorkOrder, size: int, rng: np.random.Generator) -> Iterator[Examples]:
    """Shuffled anew each epoch; the last batch of an epoch may be smaller."""
    left = order.max_local_steps
    for _ in range(order.local_epochs):
        rows = rng.permutation(len(examples))
        for start in range(0, len(rows), size):
            if left == 0:
                return
            left -= 1
            yield examples[rows[start : start + size]]


def _first_step(loop: StepLoop, fed: Mapping[str, NDArray[Any]], allowed_mb: float) -> float:
    """The step that shows whether memory suffices. Raises `ProtocolError(E_SIZE)` saying how much it would take.

    That is told by smaller batches, whose results are not used. The plan's batch stays as it is: it is a part of what
    is being tried.
    """
    try:
        return loop.step(fed)
    except ProtocolError as error:
        if error.code != Code.SIZE:
            raise
    size = fits = len(fed["x"])
    needs = "more memory than there is"

    def smaller(batch: int) -> None:
        loop.step({n: v[:batch] if n in ("x", "y") else v for n, v in fed.items()}, give_back=True)

    while fits > 1:
        fits //= 2
        try:
            smaller(1)
            before = read_vitals()
            smaller(fits)
        except ProtocolError:
            continue
        after = read_vitals()
        if after.peak_memory_mb > before.peak_memory_mb:  # else it fitted into what had been used before
            needed_mb = before.memory_mb + (after.peak_memory_mb - before.memory_mb) * size / fits
            needs = f"about {needed_mb:.0f} MB (a batch of {fits} fits: `max_batch` in [training])"
        break
    raise ProtocolError(Code.SIZE, f"a step of {size} examples needs {needs}; {allowed_mb:.0f} MB are allowed")
