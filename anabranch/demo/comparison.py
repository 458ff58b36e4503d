"""What federation is worth: the same graph trained on one fan alone and on all fans' data pooled, measured alike.

The budget is counted in steps of the training graph. Pooled training gets as many as all devices of the federation
spent together on updates that were accepted; a model trained alone gets as many as the average device. Batch size and
hyper-parameters are the federation's; the optimizer keeps its state, since nothing interrupts it. All are judged as
int8 models on the test split (the last 15 s of each recording), the mean over fans.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from statistics import fmean
from threading import Event

import numpy as np

from anabranch.datasets.fan_vibration import load_all, load_fan
from broker_aggregator.export import int8_model
from edge_agent.sources import Dataset, Examples
from edge_agent.trainer import OnnxTrainer, WorkOrder, open_session, run
from fl_protocol.bundle import Bundle
from fl_protocol.errors import ConfigError
from fl_protocol.messages import Plan
from fl_protocol.tensors import Vector

THREADS = 2
BASELINES = files("anabranch") / "data" / "fan_baselines.json"
Accuracy = Mapping[int, float]  # speed -> share of test windows told right


@dataclass(frozen=True)
class Comparison:
    """Accuracy by fan of the pooled model and of each model trained alone; `source` says where they come from."""

    pooled: Accuracy
    alone: Mapping[int, Accuracy]  # trained on -> measured on -> accuracy
    pooled_steps: int
    alone_steps: int
    source: str

    @property
    def pooled_mean(self) -> float:
        """The pooled model on all fans."""
        return fmean(self.pooled.values())

    @property
    def alone_mean(self) -> float:
        """The models trained alone, each on all fans."""
        return fmean(fmean(on.values()) for on in self.alone.values())

    @property
    def alone_own_mean(self) -> float:
        """The models trained alone, each on its own fan."""
        return fmean(on[fan] for fan, on in self.alone.items())


class Judge:
    """Measures versions as models that stand alone, on each fan's test split."""

    def __init__(self, bundle: Bundle, speeds: Sequence[int]) -> None:
        self._bundle = bundle
        self._tests = {speed: load_fan(speed).test for speed in speeds}

    def accuracy(self, version: Vector, make: Callable[[Bundle, Vector], bytes] = int8_model) -> dict[int, float]:
        """Accuracy by fan of `version`, shape (layout.size,), as the ONNX model that `make` makes of it."""
        session = open_session(make(self._bundle, version), threads=1)
        return {
            speed: float((run(session, ["logits"], {"x": x})[0].argmax(1) == y).mean())
            for speed, (x, y) in self._tests.items()
        }


def train_alike(
    bundle: Bundle, plan: Plan, examples: Examples, steps: int, seed: int, should_pause: Callable[[], bool]
) -> Vector:
    """A version trained for `steps` by the bundle's own graph with the plan's settings, from its first parameters."""
    hyper = {**bundle.hyper, **{name: float(value) for name, value in plan.hyper.items()}}
    epochs = -(-steps * plan.batch_size // len(examples)) + 1  # enough; `steps` is what ends it
    order = WorkOrder(plan.batch_size, epochs, steps, hyper)
    dataset = Dataset(examples, examples[:0], examples.x[-1:])
    rng = np.random.default_rng(seed)
    trained = OnnxTrainer(bundle).train(bundle.initial, dataset, order, bundle.personal, rng, should_pause)
    return np.concatenate([trained.parameters, trained.statistics])


def compare_live(bundle: Bundle, plan: Plan, speeds: Sequence[int], steps: int, seed: int) -> Comparison:
    """Train all models now; `steps` is what the federation spent in all."""
    judge, given_up = Judge(bundle, speeds), Event()
    alone_steps = max(1, steps // len(speeds))

    def should_pause() -> bool:
        if given_up.is_set():
            raise InterruptedError
        return False

    def measured(examples: Examples, num_steps: int, number: int) -> dict[int, float]:
        return judge.accuracy(train_alike(bundle, plan, examples, num_steps, seed * 1000 + number, should_pause))

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            pooled = pool.submit(measured, Examples(*load_all(speeds).train), steps, 0)
            alone = {
                speed: pool.submit(measured, Examples(*load_fan(speed).train), alone_steps, number)
                for number, speed in enumerate(speeds, 1)
            }
            results = {speed: future.result() for speed, future in alone.items()}
            return Comparison(pooled.result(), results, steps, alone_steps, f"trained live, seed {seed}")
        finally:
            given_up.set()
            pool.shutdown(cancel_futures=True)


def compare_quick(bundle: Bundle) -> Comparison:
    """The same from a file, which names the script and the seeds that made it.

    Raises `ConfigError` for a file that cannot be read, or is of another bundle.
    """
    try:
        page = json.loads(BASELINES.read_text("utf-8"))
        if page["bundle_sha256"] != bundle.sha256:
            raise ValueError(f"it is of bundle {page['bundle_sha256']:.12}, this one is {bundle.sha256:.12}")
        return Comparison(
            pooled=_by_speed(page["pooled"]),
            alone={int(fan): _by_speed(on) for fan, on in page["alone"].items()},
            pooled_steps=page["pooled_steps"],
            alone_steps=page["alone_steps"],
            source=f"{BASELINES.name}, made by {page['made_by']} (mean of seeds {page['seeds']})",
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"cannot use {BASELINES}: {type(error).__name__} {error}",
            "make it by `python benchmarks/fan_baselines.py`",
        ) from None


def _by_speed(accuracy: Mapping[str, float]) -> dict[int, float]:
    return {int(speed): value for speed, value in accuracy.items()}
