"""One model trained once: pooled by its ONNX step, or federated in the twin; then judged on the test set.

Everything that is chosen (when to stop, which parameters to keep) is chosen on validation. The test set is looked at
once, at the end, with the network that trained and with the int8 model that is made of it. For one seed all variants
begin with the same parameters and see the same batches, so that their differences are paired.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the workshop is not installed: it lives in the checkout

from anabranch.simulator.experiment import Experiment, load_experiment
from anabranch.simulator.twin import TASK, Twin
from fl_protocol.better import improves
from fl_protocol.bundle import Bundle, fill_initializers
from fl_protocol.durable import write_durably
from models.build import build, compile_graphs
from models.gates import open_session
from models.spec import Examples, ModelSpec, Splits, load
from models.step import Step

Arrays = dict[str, NDArray[Any]]
Variant = Literal["float", "qat", "federated"]

FORMAT = 1  # of what is kept; another one where the code below makes other figures of the same settings
BATCH = 512  # of a measurement
EXPERIMENTS = Path(__file__).parent / "experiments" / "models"
TOLERANCE = 0.05  # two outputs of a regression agree within this share of their standard deviation


@dataclass(frozen=True)
class Schedule:
    """How long pooled training may go on: `patience` measurements of validation in a row without a better one end it.

    A measurement comes `per_epoch` times an epoch, `epochs` at the most. `most` training examples, chosen once for all
    seeds, where the whole set would take hours; `why` says so.
    """

    epochs: int = 60
    patience: int = 12
    per_epoch: int = 1
    most: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Case:
    """One training of one model."""

    model: str
    seed: int
    variant: Variant
    bits: int
    schedule: Schedule

    @cached_property
    def spec(self) -> ModelSpec:
        """The catalog's, with this width and with initial parameters of this seed."""
        spec = load(self.model)

        def module() -> torch.nn.Module:
            torch.manual_seed(self.seed)
            return spec.module()

        return replace(spec, module=module, bits=self.bits)

    @cached_property
    def splits(self) -> Splits:
        """The model's examples; of those to train with no more than the schedule allows."""
        splits = self.spec.examples()
        x, y = splits.train
        if self.schedule.most is None or len(y) <= self.schedule.most:
            return splits
        rows = np.sort(np.random.default_rng(0).permutation(len(y))[: self.schedule.most])
        return splits._replace(train=(x[rows], y[rows]))

    @property
    def experiment_file(self) -> Path:
        """The federation of this model."""
        return EXPERIMENTS / f"{self.model}.toml"


Extra = Callable[[NDArray[Any], NDArray[Any]], Mapping[str, float]]  # (outputs, y) -> more metrics


def run_case(case: Case, extra: Extra, cache: Path) -> dict[str, Any]:
    """The case's figures, from the cache where they are there. Raises `ConfigError`."""
    bundle = build(case.spec)
    path = cache / f"{case.model}-{case.variant}-{case.bits}-{case.seed}-{_content(case, bundle)}.json"
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text())
        return kept
    result = federated(case, bundle, extra, cache) if case.variant == "federated" else pooled(case, bundle, extra)
    cache.mkdir(parents=True, exist_ok=True)
    write_durably(path, json.dumps(result).encode())
    return result


def _content(case: Case, bundle: bytes) -> str:
    """A hash of all that the figures depend on but the libraries."""
    digest = hashlib.sha256(bundle)
    digest.update(json.dumps([FORMAT, case.variant, asdict(case.schedule)]).encode())
    if case.variant == "federated":
        digest.update(case.experiment_file.read_bytes())
    for part in case.splits:
        for array in part:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def pooled(case: Case, bundle: bytes, extra: Extra) -> dict[str, Any]:
    """Train on everybody's examples at once, in onnxruntime; keep what is best on validation."""
    spec, splits, read = case.spec, case.splits, Bundle.read(bundle)
    quantized = case.variant == "qat"
    step = Step(spec, quantized=quantized)
    graphs = (
        {n: read.graph(n) for n in ("train", "evaluate")} if quantized else compile_graphs(step, ("train", "evaluate"))
    )
    train, evaluate = (open_session(graphs[name]) for name in ("train", "evaluate"))
    state = {name: tensor.numpy() for name, tensor in step.entries.items()}
    fed = {name: np.array(value, np.float32) for name, value in spec.optimizer.hyper.items()}
    if "base" in step.feeds:  # the pull towards a base version is the federation's; pooled there is none
        fed |= {f"{name}.base": tensor.numpy() for name, tensor in step.parameters.items()} | {"proximal": _zero()}
    rng, schedule = np.random.default_rng([case.seed, 17]), case.schedule
    best: float | None = None
    kept, waited, steps, at = state, 0, 0, 0
    per_measure = max(1, -(-len(splits.train[1]) // spec.batch_size) // schedule.per_epoch)
    for batch in _batches(splits.train, spec.batch_size, schedule.epochs, rng):
        if "seed" in step.feeds:
            fed["seed"] = np.array(rng.integers(1 << 63), np.int64)
        *following, _, _ = train.run(None, {**state, **batch, **fed})
        state = dict(zip(state, following, strict=True))
        steps += 1
        if steps % per_measure:
            continue
        value = _measure(evaluate, state, splits.validation)
        if improves(value, best, spec.metric.better):
            best, kept, waited, at = value, state, 0, steps
        elif (waited := waited + 1) >= schedule.patience:
            break
    found = judge(case, step, kept, read if quantized else None, extra)
    return {"validation": best, "steps": steps, "best_step": at, **found}


def federated(case: Case, bundle: bytes, extra: Extra, cache: Path) -> dict[str, Any]:
    """The model's experiment in the twin, from the case's initial parameters; the version that validation chose."""
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{case.model}-{case.bits}-{case.seed}.bundle"
    write_durably(file, bundle)
    twin = Twin(replace(experiment_of(case), bundle=str(file)), case.seed)
    twin.run()
    recorder = twin.recorder
    recorder.close()
    if recorder.best is None or twin.checker.violations:
        raise SystemExit(f"{case.model}, seed {case.seed}: {twin.checker.violations[:1] or 'no version was measured'}")
    entries = twin.bundle.tensors(recorder.best.vector)
    found = judge(case, Step(case.spec), entries, twin.bundle, extra)
    made = {"versions": recorder.version, "best_version": recorder.best.version, "updates": recorder.counted}
    kilobytes = sum(row.num_bytes for row in twin.store.rows()) / 1000
    virtual_s = max(row.t_s for row in recorder.rows)
    assert len(twin.store.releases(TASK)) == recorder.version + 1
    return {"validation": recorder.best_value, **made, "update_kB": kilobytes, "virtual_s": virtual_s, **found}


def experiment_of(case: Case) -> Experiment:
    """The model's own experiment. Raises `ConfigError`."""
    return load_experiment(case.experiment_file)


def judge(
    case: Case, step: Step, entries: Mapping[str, NDArray[Any]], bundle: Bundle | None, extra: Extra
) -> dict[str, Any]:
    """The metrics on the test set: of the network that trained (`trained`), and with a bundle of its int8 model."""
    x, y = case.splits.test
    given = {name: torch.from_numpy(np.array(entries[name])) for name in step.forward} | step.constants
    with torch.no_grad():
        parts = [step.logits({**given, "x": torch.from_numpy(p)}).numpy() for p in _parts(x)]
    outputs = {"trained": np.concatenate(parts)}
    if bundle is not None:
        quantize = open_session(bundle.graph("quantize"))
        names = [output.name for output in quantize.get_outputs()]
        wanted = {value.name for value in quantize.get_inputs()}
        stored = quantize.run(names, {name: array for name, array in entries.items() if name in wanted})
        int8 = open_session(fill_initializers(bundle.graph("int8"), dict(zip(names, stored, strict=True))))
        outputs["int8"] = np.concatenate([int8.run(None, {"x": part})[0] for part in _parts(x)])
    spec, target = case.spec, torch.from_numpy(y)
    test = {
        name: {spec.metric.name: float(spec.metric.score(torch.from_numpy(o), target).double().mean()), **extra(o, y)}
        for name, o in outputs.items()
    }
    agreement = agree(outputs["trained"], outputs["int8"], bool(spec.labels)) if bundle is not None else None
    return {"test": test, "agreement": agreement}


def agree(one: NDArray[Any], other: NDArray[Any], classes: bool) -> float:
    """The share of examples for which two networks say the same: the same class, or nearly the same numbers."""
    one, other = one.reshape(len(one), -1), other.reshape(len(other), -1)
    if not classes:
        near = np.abs(one - other) <= TOLERANCE * one.std(axis=0)
        return float(near.all(axis=1).mean())
    if one.shape[1] == 1:
        logit = other[:, -1:] - (other[:, :1] if other.shape[1] > 1 else 0.0)  # an exported model gives (0, z) for z
        return float(((one > 0) == (logit > 0)).mean())
    return float((one.argmax(1) == other.argmax(1)).mean())


def _measure(evaluate: Any, state: Arrays, examples: Examples) -> float:
    wanted = {value.name for value in evaluate.get_inputs()}
    given = {name: array for name, array in state.items() if name in wanted}
    x, y = examples
    sums = [evaluate.run(["correct"], {**given, "x": a, "y": b})[0] for a, b in zip(_parts(x), _parts(y), strict=True)]
    return float(np.sum(sums, dtype=np.float64)) / len(y)


def _batches(examples: Examples, size: int, epochs: int, rng: np.random.Generator) -> Iterator[Arrays]:
    """Shuffled anew each epoch; an epoch's rest that fills no batch is left out."""
    x, y = examples
    for _ in range(epochs):
        rows = rng.permutation(len(y))
        for start in range(0, len(y) - size + 1, size):
            chosen = rows[start : start + size]
            yield {"x": x[chosen], "y": y[chosen]}


def _parts(array: NDArray[Any]) -> list[NDArray[Any]]:
    return [array[start : start + BATCH] for start in range(0, len(array), BATCH)]


def _zero() -> NDArray[np.float32]:
    return np.zeros((), np.float32)
