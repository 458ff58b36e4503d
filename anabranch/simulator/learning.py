"""What training comes to in the simulator, real or stand-in, and how long it takes in virtual time.

`OnnxLearning` runs the bundle's own graphs on real examples; what it gives may be kept by content (cache.py), since the
same base, examples, order and generator give the same bits. `StandInLearning` is a convex problem whose optimum is
known, for schedules by the thousand: each device pulls towards a point of its own. Both only compute; virtual_worker.py
decides when the outcome is there.
"""

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from anabranch.simulator.cache import ResultCache
from broker_aggregator.evaluation import Evaluator
from edge_agent.events import Train
from edge_agent.sources import Dataset, Examples
from edge_agent.trainer import OnnxTrainer
from edge_agent.training import TrainingResult, WorkOrder
from fl_protocol.bundle import Bundle
from fl_protocol.tensors import Vector

Outcome = Callable[[], TrainingResult]  # may raise ProtocolError


class Learning(Protocol):
    """Trains and measures."""

    def begin(self, device: str, order: Train, dataset: Dataset, /) -> Outcome:
        """Begin to train; the outcome may be asked for at once, and is the same whenever it is."""

    def measure(self, vector: Vector) -> tuple[float, float] | None:
        """(mean loss, metric in 0..1) of a version, shape (layout.size,), on the held-out set; None without one."""


def steps_of(order: WorkOrder, num_examples: int) -> int:
    """How many steps a trainer takes for this order."""
    return min(order.max_local_steps, order.local_epochs * -(-num_examples // order.batch_size))


class OnnxLearning:
    """The real thing, on `threads` threads at once: onnxruntime lets go of the interpreter while it computes."""

    def __init__(
        self, bundle: Bundle, held_out: Examples | None, threads: int = 2, cache: ResultCache | None = None
    ) -> None:
        self._trainer, self._cache = OnnxTrainer(bundle), cache
        self._evaluator = Evaluator(bundle, held_out) if held_out is not None else None
        self._pool = ThreadPoolExecutor(threads, "learning")

    def begin(self, _device: str, order: Train, dataset: Dataset, /) -> Outcome:
        """See `Learning.begin`."""
        return self._pool.submit(self._train, order, dataset).result

    def _train(self, order: Train, dataset: Dataset) -> TrainingResult:
        if self._cache is None:
            return self._compute(order, dataset)
        name = content(order, dataset)
        result = self._cache.get(name)
        if result is None:
            result = self._compute(order, dataset)
            self._cache.put(name, result)
        return result

    def _compute(self, order: Train, dataset: Dataset) -> TrainingResult:
        return self._trainer.train(order.base, dataset, order.order, order.personal, order.rng, lambda: False)

    def measure(self, vector: Vector) -> tuple[float, float] | None:
        """See `Learning.measure`."""
        return self._evaluator.measure(vector) if self._evaluator else None


def content(order: Train, dataset: Dataset) -> str:
    """A hash of all that a training's bits depend on."""
    digest = hashlib.sha256(f"{order.bundle.sha256}|{order.order}|{order.rng.bit_generator.state}".encode())
    arrays = [e for part in (dataset.train, dataset.validation) for e in (part.x, part.y)]
    for array in (order.base, order.personal, *arrays):
        digest.update(f"|{array.dtype}{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class StandInLearning:
    """Device i minimises 0.5 sum_j h_j (w_j - c_ij)^2 over the parameters, with noise on each gradient.

    Curvatures h are shared, drawn log-uniformly from 0.1 to 1; c_i = c + spread * normal. Under equal shares the
    fleet's optimum is the mean of the c_i, which `measure` knows: loss = the excess of the mean objective over its
    least value, metric = exp(-excess / excess at the start), so 1 at the optimum. Statistics stay as they are.
    """

    def __init__(self, bundle: Bundle, devices: Mapping[str, int], *, spread: float, noise: float, seed: int) -> None:
        rng = np.random.default_rng([seed, 7])
        size = bundle.layout.num_parameters
        self._size, self._noise = size, np.float32(noise)
        self._curvature = np.exp(rng.uniform(np.log(0.1), 0.0, size)).astype(np.float32)
        middle = rng.normal(0, 1, size)
        self._spread, self._seed, self._numbers = spread, seed, dict(devices)
        self._middle = middle.astype(np.float32)
        total = np.zeros(size)
        for device in devices:
            total += self._centre(device)
        self._optimum = total / max(1, len(devices))
        self._start = self._excess(bundle.initial)

    def begin(self, device: str, order: Train, dataset: Dataset) -> Outcome:
        """See `Learning.begin`."""
        num_examples, work = len(dataset.train), order.order
        steps = steps_of(work, num_examples)
        before = order.base[: self._size]
        centre = self._centre(device)
        kept = (np.float32(1) - np.float32(work.hyper.get("learning_rate", 0.1)) * self._curvature) ** np.float32(steps)
        after = centre + kept * (before - centre)
        if self._noise:
            after += self._noise * order.rng.standard_normal(self._size, np.float32)
        excess = self._excess(order.base)
        metrics = {"value": self._metric(excess), "loss": excess, "validation_examples": 1.0, "train_loss": excess}
        result = TrainingResult(
            parameters=after.astype(np.float32),
            statistics=order.base[self._size :],
            personal=order.personal,
            num_examples=min(num_examples, steps * work.batch_size),
            local_steps=steps,
            train_seconds=0.0,
            metrics=metrics,
        )
        return lambda: result

    def measure(self, vector: Vector) -> tuple[float, float] | None:
        """See `Learning.measure`."""
        excess = self._excess(vector)
        return excess, self._metric(excess)

    def _centre(self, device: str) -> Vector:
        rng = np.random.default_rng([self._seed, 11, self._numbers[device]])
        offset = rng.standard_normal(self._size, np.float32)
        return self._middle + np.float32(self._spread) * offset

    def _excess(self, vector: Vector) -> float:
        off = vector[: self._size].astype(np.float64) - self._optimum
        return float(0.5 * np.sum(self._curvature * off * off))

    def _metric(self, excess: float) -> float:
        return float(np.exp(-excess / self._start)) if self._start else 1.0
