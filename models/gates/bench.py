"""A bundle beside the torch model that it was compiled from, and what runs either of them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from fl_protocol.bundle import Bundle
from models.build import compile_graphs, training_inputs
from models.examples import check_examples
from models.gates.codes import recording
from models.spec import Examples, ModelSpec, Splits
from models.step import Step
from models.to_onnx import export
from models.tracing import TensorFunction

Arrays = dict[str, NDArray[Any]]

TRAINING_STEPS = 300
_AT_ONCE = 512  # examples in a batch where nothing is learnt


@dataclass(frozen=True)
class Gate:
    """One measurement against its limit."""

    name: str
    measured: str
    allowed: str
    passed: bool


@dataclass(frozen=True)
class Bench:
    """A bundle beside the torch model that it was compiled from. Raises `ConfigError` for examples that do not fit."""

    bundle: Bundle
    spec: ModelSpec

    @cached_property
    def step(self) -> Step:
        """The reference."""
        return Step(self.spec)

    @cached_property
    def plain(self) -> Step:
        """The same without fake quantization."""
        return Step(self.spec, quantized=False)

    @cached_property
    def examples(self) -> Splits:
        """Real examples, to train with and held out."""
        splits = self.spec.examples()
        check_examples(self.spec, splits)
        return splits

    @cached_property
    def held_out(self) -> Examples:
        """All examples that nothing is learnt from."""
        x, y = (np.concatenate(parts) for parts in zip(*self.examples[1:], strict=True))
        return x, y

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        """The bundle's training step."""
        return open_session(self.bundle.graph("train"))

    @cached_property
    def plain_session(self) -> onnxruntime.InferenceSession:
        """The training step without fake quantization, from the same exporter."""
        return open_session(compile_graphs(self.plain, ("train",))["train"])

    @cached_property
    def recording(self) -> onnxruntime.InferenceSession:
        """The training step from the same exporter, which also gives its codes."""
        return open_session(export(recording(Step(self.spec)), *training_inputs(self.step)))

    @property
    def networks(self) -> list[tuple[Step, onnxruntime.InferenceSession]]:
        """Both training steps, in torch and compiled: the float network's and the bundle's own."""
        return [(self.plain, self.plain_session), (self.step, self.session)]

    @property
    def initial(self) -> Arrays:
        """Every entry of the layout where training starts."""
        started = self.bundle.tensors(self.bundle.initial)
        return {e.name: started.get(e.name, np.zeros(e.shape, np.float32)) for e in self.bundle.layout.entries}

    @cached_property
    def trained(self) -> Arrays:
        """The entries after some training with the bundle's own graph: gates on zeros would prove little."""
        return self.run(self.initial, TRAINING_STEPS)

    def batches(self, size: int, seed: int = 0) -> Iterator[Arrays]:
        """Endless random batches of training examples."""
        x, y = self.examples.train
        rng = np.random.default_rng(seed)
        while True:
            chosen = rng.integers(0, len(y), size)
            yield {"x": x[chosen], "y": y[chosen]}

    def hyper(self, **changed: float) -> Arrays:
        """The graph's hyperparameters, as scalars."""
        return {name: np.array(changed.get(name, v), np.float32) for name, v in self.bundle.hyper.items()}

    def fed(self, number: int) -> Arrays:
        """What else the graph takes at step `number`; the base version is the initial one."""
        base = {f"{e.name}.base": self.initial[e.name] for e in self.bundle.layout.with_role("parameter")}
        return {"seed": np.array(number, np.int64), **base}

    def run(self, entries: Arrays, steps: int) -> Arrays:
        """Train with the bundle's graph."""
        return self.repeat(lambda given: train_onnx(self.session, given), entries, steps)

    def repeat(self, step: Callable[[Arrays], Arrays], entries: Arrays, steps: int) -> Arrays:
        """Steps one after the other, each on the next batch; entries that a step does not know stay."""
        for number, batch in zip(range(steps), self.batches(self.bundle.batch_size), strict=False):
            given = {**entries, **batch, **self.hyper(), **self.fed(number)}
            entries = {**entries, **next_entries(step(given))}
        return entries

    def output_torch(self, step: Step, entries: Arrays, x: NDArray[Any]) -> NDArray[Any]:
        """The network's output in evaluation, as its module gives it."""
        given = {name: torch.tensor(array) for name, array in entries.items()} | step.constants
        with torch.no_grad():
            parts = [step.logits({**given, "x": torch.tensor(part)}).numpy() for part in _parts(x)]
        return np.concatenate(parts)

    @cached_property
    def whole(self) -> float:
        """What a hundred points of the metric are: 1 with labels, else what the untrained network scores."""
        x, y = self.held_out
        untrained = self.output_torch(self.step, self.initial, x)
        return 1.0 if self.spec.labels else max(abs(self.score(untrained, y)), 1e-12)

    def points_lost(self, before: float, after: float) -> float:
        """How much worse the score `after` is than `before`, in points."""
        worse = before - after if self.spec.metric.better == "higher" else after - before
        return 100 * worse / self.whole

    def score(self, output: NDArray[Any], y: NDArray[Any]) -> float:
        """The mean of the model's metric."""
        return float(self.spec.metric.score(torch.tensor(output), torch.tensor(y)).mean())


def open_session(graph: bytes) -> onnxruntime.InferenceSession:
    """A graph on one CPU thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def train_onnx(session: onnxruntime.InferenceSession, given: Mapping[str, NDArray[Any]]) -> Arrays:
    """One step in onnxruntime; the results by name."""
    wanted = {value.name for value in session.get_inputs()}
    results = session.run(None, {name: array for name, array in given.items() if name in wanted})
    return {value.name: result for value, result in zip(session.get_outputs(), results, strict=True)}


def infer_onnx(session: onnxruntime.InferenceSession, x: NDArray[Any]) -> NDArray[Any]:
    """An inference graph's output for many examples."""
    return np.concatenate([session.run(None, {"x": part})[0] for part in _parts(x)])


def train_torch(step: Step, given: Mapping[str, NDArray[Any]], dtype: torch.dtype) -> Arrays:
    """The same step in eager torch, everything real in `dtype`."""
    return in_torch(step.train, given, step.constants, dtype)


def in_torch(
    function: TensorFunction,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> Arrays:
    """A function of named tensors in eager torch, everything real in `dtype`."""
    tensors = {name: torch.tensor(array) for name, array in given.items()} | dict(constants)
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    return {name: t.numpy() for name, t in function(tensors).items()}


def next_entries(results: Mapping[str, NDArray[Any]]) -> Arrays:
    """A step's results as the entries of the next one."""
    return {name.removesuffix(".next"): array for name, array in results.items() if name.endswith(".next")}


def distance(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> float:
    """Root mean square difference over all tensors that both have, in float64."""
    squares = [np.square(a[n].astype(np.float64) - b[n].astype(np.float64)).reshape(-1) for n in a if n in b]
    return float(np.sqrt(np.concatenate(squares).mean()))


def _parts(x: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (x[start : start + _AT_ONCE] for start in range(0, len(x), _AT_ONCE))
