"""What a run's versions are worth on the test set, which nothing in the run may look at.

The gateway stops and chooses by validation; the version that it would hand out is measured here, once, after the last
event. Nothing of it can move the run: it reads the store of a fleet that has come to rest.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.simulator.attacks.poison import Backdoor
from anabranch.simulator.data import load_shares
from anabranch.simulator.experiment import Experiment
from anabranch.simulator.results import NO_FINALS, Finals, Measurement
from anabranch.simulator.twin import Twin
from broker_aggregator.evaluation import BATCH, Evaluator, open_session
from broker_aggregator.events import Release
from broker_aggregator.export import export_version, int8_model
from edge_agent.sources import Examples
from fl_protocol.bundle import Bundle
from fl_protocol.durable import write_durably

VERSION = "version.f32"
Score = Callable[[NDArray[np.float32], NDArray[Any]], NDArray[Any]]  # (outputs, y) -> (n,)


def _correct(output: NDArray[np.float32], y: NDArray[Any]) -> NDArray[Any]:
    rows = output.reshape(len(y), -1)
    return np.equal(rows.argmax(1), y) if rows.shape[1] > 1 else np.equal(rows[:, 0] > 0, y.reshape(-1) > 0)


def _differences(output: NDArray[np.float32], y: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(output.reshape(len(y), -1) - y.reshape(len(y), -1), np.float64)


# By the metric's name, as models/metrics.py has them: those that outputs alone tell, without the model's torch code.
SCORES: Mapping[str, Score] = {
    "accuracy": _correct,
    "absolute_error": lambda output, y: np.abs(_differences(output, y)).mean(1),
    "squared_error": lambda output, y: np.square(_differences(output, y)).mean(1),
    "reconstruction_error": lambda output, y: output.reshape(len(y)),
}


def _test_set(experiment: Experiment, bundle: Bundle, seed: int) -> Examples | None:
    """The test set of an experiment that validates on something else; None where there is nothing else."""
    data = experiment.data
    test = load_shares(replace(experiment, data=replace(data, measured_on="test")), bundle, seed).held_out
    if data.measured_on == "validation" and test is not None:
        validation = load_shares(experiment, bundle, seed).held_out
        if validation is not None and np.array_equal(validation.x, test.x):
            return None  # the source has one held-out part: what chose a version cannot judge it
    return test


def measure_finals(twin: Twin) -> Finals:
    """The best version and the last one on the test set, and the last one tier by tier, after real training."""
    if not twin.experiment.training.real or not twin.recorder.version:
        return NO_FINALS
    return replace(_judge(twin), tiers=measure_tiers(twin), backdoor_success=measure_backdoor(twin))


def measure_tiers(twin: Twin) -> dict[str, float]:
    """The last version on the examples of each tier's own devices; on what they train on, where they hold none out."""
    release, values = twin.store.release(twin.task), {}
    for tier in dict.fromkeys(tier.name for tier in twin.experiment.fleet.tiers):
        of_tier = [device for device in twin.devices if device.spec.tier == tier and not device.spec.attack]
        mine = [device.source.dataset for device in of_tier]
        held_out = [data.validation for data in mine if len(data.validation)]
        parts = held_out or [data.train for data in mine]
        if parts:
            _, values[tier] = Evaluator(twin.bundle, Examples.concatenate(parts)).measure(release.vector)
    return values


def measure_backdoor(twin: Twin) -> float | None:
    """The share of held-out examples of other classes that the last version's int8 model takes for the backdoor's
    target once they bear its trigger; of the test set where there is one. None without a backdoor."""
    backdoor = twin.attackers.backdoor
    if backdoor is None:
        return None
    examples = _test_set(twin.experiment, twin.bundle, twin.seed)
    held_out = twin.held_out if examples is None else examples
    if held_out is None:
        return None
    return success(twin.bundle, twin.store.release(twin.task), backdoor, held_out)


def success(bundle: Bundle, release: Release, backdoor: Backdoor, examples: Examples) -> float | None:
    """What `measure_backdoor` tells of one version on these examples; None where all are of the target's class."""
    victims = backdoor.victims(examples)
    if not len(victims):
        return None
    session = open_session(int8_model(bundle, release.vector))
    aim = np.full(len(victims), backdoor.target)
    parts = [slice(start, start + BATCH) for start in range(0, len(victims), BATCH)]
    hits = sum(_correct(session.run(None, {"x": victims.x[p]})[0], aim[p]).sum() for p in parts)
    return float(hits / len(victims))


def _judge(twin: Twin) -> Finals:
    """The best version and the last one on the test set."""
    recorder = twin.recorder
    examples = _test_set(twin.experiment, twin.bundle, twin.seed)
    if examples is None:
        return NO_FINALS
    last = measure(twin.bundle, twin.store.release(twin.task), examples)
    if recorder.best is None or twin.experiment.data.measured_on == "test":
        return Finals(None, last)  # the best one was chosen on the test set: nothing has judged it
    best = last if recorder.best.version == last.version else measure(twin.bundle, recorder.best, examples)
    return Finals(best, last)


def measure(bundle: Bundle, release: Release, examples: Examples) -> Measurement:
    """One version measured, with the network that trains and with the int8 model that is handed out."""
    _, value = Evaluator(bundle, examples).measure(release.vector)
    return Measurement(version=release.version, value=value, int8=int8_value(bundle, release, examples))


def int8_value(bundle: Bundle, release: Release, examples: Examples) -> float | None:
    """The metric of a version's int8 model; None for a metric that outputs alone do not tell."""
    score = SCORES.get(bundle.metric)
    if score is None:
        return None
    session = open_session(int8_model(bundle, release.vector))
    parts = [examples[start : start + BATCH] for start in range(0, len(examples), BATCH)]
    return float(sum(score(session.run(None, {"x": part.x})[0], part.y).sum() for part in parts) / len(examples))


def keep_best(twin: Twin, folder: Path) -> None:
    """Write the best version, or where none was measured the last one, as files to use, and as a vector to start from.

    Raises `OSError`.
    """
    recorder = twin.recorder
    release = recorder.best or twin.store.release(twin.task)
    folder.mkdir(exist_ok=True)
    export_version(twin.bundle, release, recorder.best_value, folder)
    write_durably(folder / VERSION, release.vector.astype("<f4").tobytes())
