"""Local training: `OnnxTrainer` runs a bundle's own training step.

The step is a graph (forward, loss, backward, optimizer), so that this file knows no model. onnxruntime is imported
when the first graph is loaded, not before: an idle device stays small.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.pages import drop_untouched_text
from edge_agent.sources import Dataset, Examples
from edge_agent.training import TrainingResult, WorkOrder
from fl_protocol.bundle import Bundle
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.tensors import Vector

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxTrainer", "TrainingResult", "WorkOrder", "open_session", "run"]

_PAUSE_S = 0.05  # how often a paused or cooling training asks again


def open_session(graph: bytes, threads: int) -> "onnxruntime.InferenceSession":
    """A session in little memory. Raises `ProtocolError(E_SCHEMA)` for a graph that onnxruntime refuses."""
    import onnxruntime as ort

    drop_untouched_text()  # loading it ran through code that nothing needs again
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common base class
        raise ProtocolError(Code.SCHEMA, f"onnxruntime refuses the graph: {error}"[:400]) from None
    drop_untouched_text()  # and so did the making of a session
    return session


def run(
    session: "onnxruntime.InferenceSession", outputs: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    """One run of a graph. Raises `ProtocolError(E_SCHEMA)` where the graph fails at work."""
    try:
        values: list[NDArray[Any]] = session.run(outputs, dict(feeds))
    except Exception as error:  # onnxruntime has no common base class
        raise ProtocolError(Code.SCHEMA, f"the graph failed: {error}"[:400]) from None
    return values


class OnnxTrainer:
    """Runs the graphs `train` and `evaluate` of a bundle; `duty_cycle` is the share of time it may compute (0..1]."""

    def __init__(self, bundle: Bundle, threads: int = 1, duty_cycle: float = 1.0) -> None:
        self._bundle, self._threads, self._duty_cycle = bundle, threads, duty_cycle
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

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
        started = time.monotonic()
        layout = self._bundle.layout
        state = {**layout.split(base), **_split(layout.with_role("personal"), personal)}
        metrics = self._evaluate(state, dataset.validation, order.batch_size, should_pause)
        state |= {e.name: np.zeros(e.shape, np.float32) for e in layout.with_role("optimizer")}
        hyper = {name: np.asarray(value, np.float32) for name, value in order.hyper.items()}
        session, names = self._session("train"), [e.name for e in layout.entries]
        steps, loss = 0, np.zeros((), np.float32)
        for batch in _batches(dataset.train, order, rng):
            self._wait(should_pause)
            step_started = time.monotonic()
            *following, loss, _ = run(session, None, {**state, "x": batch.x, "y": batch.y, **hyper})
            state = dict(zip(names, following, strict=True))
            steps += 1
            if not np.isfinite(loss):
                raise ProtocolError(Code.NAN, f"the loss is not finite at step {steps}; is the learning rate too high?")
            self._cool(time.monotonic() - step_started, should_pause)
        version = layout.join(state)
        return TrainingResult(
            parameters=version[: layout.num_parameters],
            statistics=version[layout.num_parameters :],
            personal=_join([state[e.name] for e in layout.with_role("personal")]),
            num_examples=min(len(dataset.train), steps * order.batch_size),
            local_steps=steps,
            train_seconds=time.monotonic() - started,
            metrics={**metrics, "train_loss": float(loss)},
        )

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

    def _session(self, graph: Any) -> "onnxruntime.InferenceSession":
        if graph not in self._sessions:
            self._sessions[graph] = open_session(self._bundle.graph(graph), self._threads)
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


def _batches(examples: Examples, order: WorkOrder, rng: np.random.Generator) -> Iterator[Examples]:
    """Shuffled anew each epoch; the last batch of an epoch may be smaller."""
    left = order.max_local_steps
    for _ in range(order.local_epochs):
        rows = rng.permutation(len(examples))
        for start in range(0, len(rows), order.batch_size):
            if left == 0:
                return
            left -= 1
            yield examples[rows[start : start + order.batch_size]]


def _split(entries: Sequence[Any], vector: Vector) -> dict[str, Vector]:
    tensors, start = {}, 0
    for entry in entries:
        tensors[entry.name] = vector[start : start + entry.size].reshape(entry.shape)
        start += entry.size
    return tensors


def _join(tensors: Sequence[NDArray[np.float32]]) -> Vector:
    return np.concatenate([t.reshape(-1) for t in tensors]) if tensors else np.zeros(0, np.float32)
