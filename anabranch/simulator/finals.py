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
    """The best version and the last one on the test set, after real training."""
    recorder = twin.recorder
    if not twin.experiment.training.real or not recorder.version:
        return NO_FINALS
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
