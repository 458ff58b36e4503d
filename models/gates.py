"""What every bundle must pass before it is shipped: each gate measures, and says what it allows.

The reference is the same training step in torch float64. Float32 runs differ among themselves, so no gate asks for
equality: ONNX may be as far from the reference as torch float32 is, within a small factor.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from fl_protocol.bundle import Bundle, GraphName, fill_initializers
from fl_protocol.onnx_file import STANDARD_DOMAINS
from models.build import compile_graphs
from models.quantization import quantized_layers
from models.spec import Examples, ModelSpec
from models.step import Step

Arrays = dict[str, NDArray[Any]]

BATCHES = (32, 5, 1)
DRIFT_STEPS = 100
TRAINING_STEPS = 300
MAX_BUNDLE_OVERHEAD = 192 << 10  # bytes of a bundle beside 32 bytes a parameter


@dataclass(frozen=True)
class Gate:
    """One measurement against its limit."""

    name: str
    measured: str
    allowed: str
    passed: bool


@dataclass(frozen=True)
class Bench:
    """A bundle beside the torch model that it was compiled from."""

    bundle: Bundle
    spec: ModelSpec

    @cached_property
    def step(self) -> Step:
        """The reference."""
        return Step(self.spec)

    @cached_property
    def examples(self) -> tuple[Examples, Examples]:
        """Real examples, to train with and held out."""
        return self.spec.examples()

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        """The bundle's training step."""
        return open_session(self.bundle.graph("train"))

    @property
    def initial(self) -> Arrays:
        """Every entry of the layout where training starts."""
        shared = self.bundle.layout.split(self.bundle.initial)
        return {e.name: shared.get(e.name, np.zeros(e.shape, np.float32)) for e in self.bundle.layout.entries}

    @cached_property
    def trained(self) -> Arrays:
        """The entries after some training with the bundle's own graph: gates on zeros would prove little."""
        return self.run(self.initial, TRAINING_STEPS)

    def batches(self, size: int, seed: int = 0) -> Iterator[Arrays]:
        """Endless random batches of training examples."""
        x, y = self.examples[0]
        rng = np.random.default_rng(seed)
        while True:
            chosen = rng.integers(0, len(y), size)
            yield {"x": x[chosen], "y": y[chosen]}

    def hyper(self, **changed: float) -> Arrays:
        """The graph's hyperparameters, as scalars."""
        return {name: np.array(changed.get(name, v), np.float32) for name, v in self.bundle.hyper.items()}

    def run(self, entries: Arrays, steps: int) -> Arrays:
        """Train with the bundle's graph."""
        for _, batch in zip(range(steps), self.batches(self.bundle.batch_size), strict=False):
            entries = next_entries(train_onnx(self.session, {**entries, **batch, **self.hyper()}))
        return entries

    def run_torch(self, entries: Arrays, steps: int) -> Arrays:
        """The same in eager torch, float32."""
        for _, batch in zip(range(steps), self.batches(self.bundle.batch_size), strict=False):
            entries = next_entries(train_torch(self.step, {**entries, **batch, **self.hyper()}, torch.float32))
        return entries


def run_gates(bundle: Bundle, spec: ModelSpec) -> list[Gate]:
    """Every gate, measured on the real thing."""
    bench = Bench(bundle, spec)
    plain = Step(spec, quantized=False)
    plain_session = open_session(compile_graphs(plain, ("train",))["train"])
    return [
        _layout(bench),
        _operators(bundle),
        *(_one_step(bench, plain, plain_session, size) for size in BATCHES),
        *(_one_step(bench, bench.step, bench.session, size) for size in BATCHES),
        _drift(bench),
        _gradient(bench),
        _int8(bench),
        _size(bundle),
    ]


def open_session(graph: bytes) -> onnxruntime.InferenceSession:
    """A graph on one CPU thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def train_onnx(session: onnxruntime.InferenceSession, given: Arrays) -> Arrays:
    """One step in onnxruntime; the results by name."""
    wanted = {value.name for value in session.get_inputs()}
    results = session.run(None, {name: array for name, array in given.items() if name in wanted})
    return {value.name: result for value, result in zip(session.get_outputs(), results, strict=True)}


def train_torch(step: Step, given: Arrays, dtype: torch.dtype) -> Arrays:
    """The same step in eager torch, everything real in `dtype`."""
    tensors = {name: torch.tensor(array) for name, array in given.items()} | step.constants
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    return {name: t.numpy() for name, t in step.train(tensors).items()}


def next_entries(results: Arrays) -> Arrays:
    """A step's results as the entries of the next one."""
    return {name.removesuffix(".next"): array for name, array in results.items() if name.endswith(".next")}


def distance(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> float:
    """Root mean square difference over all tensors that both have, in float64."""
    squares = [np.square(a[n].astype(np.float64) - b[n].astype(np.float64)).reshape(-1) for n in a if n in b]
    return float(np.sqrt(np.concatenate(squares).mean()))


def _layout(bench: Bench) -> Gate:
    layout, expected = bench.bundle.layout, bench.step.layout
    return Gate(
        "manifest",
        f"layout {layout.fingerprint}, {len(bench.bundle.graphs)} graphs, hashes verified",
        f"layout {expected.fingerprint}",
        layout == expected,
    )


def _operators(bundle: Bundle) -> Gate:
    used: Counter[str] = Counter()
    foreign = set()
    for graph in bundle.graphs.values():
        model = onnx.load_from_string(graph)
        onnx.checker.check_model(model, full_check=True)
        used.update(node.op_type for node in model.graph.node)
        domains = {node.domain for node in model.graph.node} | {opset.domain for opset in model.opset_import}
        foreign |= domains - set(STANDARD_DOMAINS)
    return Gate("operators", f"{len(used)} kinds, foreign domains: {sorted(foreign) or 'none'}", "ai.onnx", not foreign)


def _one_step(bench: Bench, step: Step, session: onnxruntime.InferenceSession, size: int) -> Gate:
    given = {**bench.trained, **next(bench.batches(size, seed=size)), **bench.hyper()}
    reference = train_torch(step, given, torch.float64)
    ours, theirs = (
        distance(r, reference) for r in (train_onnx(session, given), train_torch(step, given, torch.float32))
    )
    # Now and then a value sits so near the middle between two codes that float32 and float64 round it apart; that
    # flips one code for ONNX and for torch alike, but not always the same one.
    allowed = 3 * theirs + (1e-6 if step.quantized else 1e-8)
    network = "int8-aware" if step.quantized else "float"
    return Gate(
        f"one step, {network} network, batch {size}",
        f"{ours:.1e} from float64",
        f"{allowed:.1e} (torch float32: {theirs:.1e})",
        ours <= allowed,
    )


def _drift(bench: Bench) -> Gate:
    rng = np.random.default_rng(0)
    start = bench.initial
    nudged = {
        name: (array * (1 + 1e-7 * rng.standard_normal(array.shape))).astype(np.float32)
        for name, array in start.items()
    }
    theirs = bench.run_torch(start, DRIFT_STEPS)
    allowed = 3 * distance(bench.run_torch(nudged, DRIFT_STEPS), theirs) + 1e-6
    ours = distance(bench.run(start, DRIFT_STEPS), theirs)
    return Gate(
        f"{DRIFT_STEPS} steps",
        f"{ours:.1e} from torch",
        f"{allowed:.1e} (3x two torch runs, 1e-7 apart at the start)",
        ours <= allowed,
    )


def _gradient(bench: Bench, samples: int = 12, width: float = 1e-6) -> Gate:
    """With no momentum and no decay, the momentum after a step is the gradient.

    The straight-through estimator is not the derivative of a rounded network, but that of the network in which what
    rounding added to each tensor is held still: that one is differentiated numerically here. Where integer arithmetic
    puts a ReLU exactly at zero, its two sides have two slopes, and the gradient may be either or lie between.
    """
    given = {**bench.trained, **next(bench.batches(bench.bundle.batch_size)), **bench.hyper(momentum=0, weight_decay=0)}
    results = train_onnx(bench.session, given)
    loss = _frozen_loss(bench, given)
    middle = loss("", (), 0.0)
    rng = np.random.default_rng(0)
    worst, largest, kinks, total = 0.0, 0.0, 0, 0
    for entry in bench.bundle.layout.with_role("parameter"):
        gradient = results[f"{entry.name}.momentum.next"]
        largest = max(largest, float(np.abs(gradient).max()))
        for flat in rng.choice(entry.size, min(samples, entry.size), replace=False):
            at = np.unravel_index(flat, entry.shape)
            left, right = ((loss(entry.name, at, side) - middle) / side for side in (-width, width))
            slope = float(gradient[at])
            worst = max(worst, min(left, right) - slope, slope - max(left, right))
            kinks += abs(right - left) > 1e-3 * largest
            total += 1
    return Gate(
        "gradient against finite differences",
        f"{worst / largest:.1e} of the largest, {total} samples, {kinks} at a kink",
        "1e-4, 5 % at a kink",
        worst <= 1e-4 * largest and kinks <= 0.05 * total,
    )


def _frozen_loss(bench: Bench, given: Arrays) -> Callable[[str, Any, float], float]:
    """The loss in float64 as a function of one parameter's element; roundings stay as the first call finds them."""
    step = Step(bench.spec)
    for _, layer in quantized_layers(step.module):
        layer.straight_through = _HeldRounding()

    def loss(name: str, at: Any, change: float) -> float:
        moved = dict(given)
        if name:
            moved[name] = given[name].astype(np.float64)
            moved[name][at] += change
        return float(train_torch(step, moved, torch.float64)["loss"])

    return loss


class _HeldRounding:
    """Adds to each operand of a layer what rounding added to it the first time."""

    def __init__(self) -> None:
        self._added: list[torch.Tensor] = []
        self._calls = 0

    def __call__(self, exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        operand = self._calls % 3  # a layer rounds its input, its weight and its bias, in this order
        self._calls += 1
        if operand == len(self._added):
            self._added.append((rounded - exact).detach())
        return exact + self._added[operand]


def _int8(bench: Bench) -> Gate:
    x, y = bench.examples[1]
    shared = {e.name: bench.trained[e.name] for e in bench.bundle.layout.shared}
    quantize = open_session(bench.bundle.graph("quantize"))
    names = [value.name for value in quantize.get_outputs()]
    stored = dict(zip(names, quantize.run(None, shared), strict=True))
    int8 = _logits(bench.bundle, "int8", stored, x)
    plain = _logits(
        bench.bundle, "float", {e.name: shared[e.name] for e in bench.bundle.layout.with_role("parameter")}, x
    )
    given = {n: torch.tensor(a) for n, a in {**shared, "x": x}.items()} | bench.step.constants
    with torch.no_grad():
        fake = bench.step.logits(given).numpy()
    agreement = float((int8.argmax(1) == fake.argmax(1)).mean())
    accuracy = [100 * float((logits.argmax(1) == y).mean()) for logits in (plain, fake, int8)]
    return Gate(
        "int8 against fake-quantized, held out",
        "{:.2%} agree; float, fake, int8: {:.1f} {:.1f} {:.1f} %".format(agreement, *accuracy),
        "99.5 % agree, int8 within 1 point of float",
        agreement >= 0.995 and accuracy[2] >= accuracy[0] - 1,
    )


def _logits(bundle: Bundle, graph: GraphName, stored: Arrays, x: NDArray[Any]) -> NDArray[Any]:
    logits: NDArray[Any] = open_session(fill_initializers(bundle.graph(graph), stored)).run(None, {"x": x})[0]
    return logits


def _size(bundle: Bundle) -> Gate:
    allowed = MAX_BUNDLE_OVERHEAD + 32 * bundle.layout.num_parameters
    size = sum(len(graph) for graph in bundle.graphs.values())
    listed = ", ".join(f"{name} {len(graph):,}" for name, graph in bundle.graphs.items())
    return Gate("size of the graphs", f"{size:,} bytes ({listed})", f"{allowed:,} bytes", size <= allowed)
