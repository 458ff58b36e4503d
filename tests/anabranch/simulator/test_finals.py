"""The version that validation chose, on the test set: measured once, after the run, and by the run unseen."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest

from anabranch.datasets import fan_vibration
from anabranch.simulator.experiment import DataSection, Experiment, FleetSection, StopSection, TrainingSection
from anabranch.simulator.finals import SCORES, VERSION, keep_best, measure_finals
from anabranch.simulator.recorder import Recorder
from anabranch.simulator.results import NO_FINALS, RunSummary
from anabranch.simulator.running import BEST, Job, run_job
from anabranch.simulator.twin import TASK, Twin
from broker_aggregator.evaluation import Evaluator
from broker_aggregator.events import SaveEvaluation
from edge_agent.sources import Examples

FANS = Experiment(
    name="fans",
    bundle="fan_vibration",
    plan={"buffer": 3, "deadline_s": 60, "local_epochs": 1},
    data=DataSection(source="fan_vibration"),
    fleet=FleetSection(devices=3),
    training=TrainingSection(real=True),
    stop=StopSection(versions=4),
)


def run(experiment: Experiment) -> Twin:
    """A whole run with seed 1."""
    twin = Twin(experiment, 1)
    twin.run()
    twin.recorder.close()
    assert not twin.checker.violations
    return twin


@pytest.fixture(scope="module")
def twin() -> Twin:
    """Four versions of three fans."""
    return run(FANS)


def test_the_version_that_is_best_on_validation_is_measured_on_the_test_set(twin: Twin) -> None:
    """And the last one; each by its fake-quantized network and by its int8 model."""
    values = {row.version: row.value for row in twin.recorder.rows if row.value is not None}
    test = Examples(*fan_vibration.load_all().test)
    finals = measure_finals(twin)
    assert finals.best is not None
    assert finals.last is not None
    assert values[finals.best.version] == max(values.values())
    assert finals.last.version == twin.recorder.version
    for final in (finals.best, finals.last):
        vector = twin.store.release(TASK, final.version).vector
        assert final.value == Evaluator(twin.bundle, test).measure(vector)[1]
        assert final.int8 == pytest.approx(final.value, abs=0.02)


def test_what_is_kept_is_the_best_version_as_people_run_it(twin: Twin, tmp_path: Path) -> None:
    """An int8 model whose accuracy is the one that was told, a float one, and the vector to start from."""
    keep_best(twin, tmp_path)
    finals = measure_finals(twin)
    assert finals.best is not None
    x, y = fan_vibration.load_all().test
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    assert np.mean(session.run(None, {"x": x})[0].argmax(1) == y) == pytest.approx(finals.best.int8)
    assert {path.name for path in tmp_path.iterdir()} == {"int8.onnx", "float.onnx", "model.json", VERSION}
    assert np.array_equal(np.fromfile(tmp_path / VERSION, "<f4"), twin.store.release(TASK, finals.best.version).vector)


def test_a_run_chosen_on_the_test_set_is_judged_by_its_last_version_alone() -> None:
    """The best of many measurements on the test set would flatter it."""
    finals = measure_finals(run(replace(FANS, data=replace(FANS.data, measured_on="test"))))
    assert finals.best is None
    assert finals.last is not None


def test_without_a_second_held_out_part_nothing_is_judged(tmp_path: Path) -> None:
    """An .npz has one: what chose a version cannot judge it."""
    x, y = fan_vibration.load_all().train
    few = np.arange(0, len(y), 20)
    np.savez(
        tmp_path / "own.npz", x=x[few], y=y[few], client=np.arange(len(few)) % 3, test=np.arange(len(few)) % 5 == 0
    )
    own = replace(FANS, data=DataSection(source=str(tmp_path / "own.npz")), stop=StopSection(versions=1))
    assert measure_finals(run(own)) == NO_FINALS


def test_where_lower_is_better_the_best_version_is_the_lowest(twin: Twin) -> None:
    """The recorder follows the bundle."""
    values = [0.5, 0.2, 0.3]
    for better, expected in (("higher", 0.5), ("lower", 0.2)):
        recorder = Recorder()
        recorder.watch(twin)
        twin_bundle, twin.bundle = twin.bundle, replace(twin.bundle, better=better)
        for version, value in enumerate(values, 1):
            recorder.take([SaveEvaluation(TASK, version, 0.0, value)])
        twin.bundle = twin_bundle
        assert recorder.best_value == expected
        assert recorder.best is not None
        assert recorder.best.version == values.index(expected) + 1


def test_the_folder_holds_test_values_and_the_best_model(tmp_path: Path) -> None:
    """`run.json` has what `--json` prints; nothing of it moves the run, which is the same without a folder."""
    path = tmp_path / "fans.toml"
    path.write_text(
        'name = "fans"\nbundle = "fan_vibration"\n[plan]\nbuffer = 3\n[data]\nsource = "fan_vibration"\n'
        "[fleet]\ndevices = 3\n[training]\nreal = true\n[stop]\nversions = 2\n"
    )
    summary = run_job(Job(path, 2, tmp_path / "run"))
    read = msgspec.json.decode((tmp_path / "run" / "run.json").read_bytes(), type=RunSummary)
    assert read == summary
    assert summary.test_best is not None
    assert summary.test_best.version == summary.best_version
    assert (tmp_path / "run" / BEST / "int8.onnx").is_file()
    bare = Twin(replace(FANS, plan={"buffer": 3}, stop=StopSection(versions=2)), 2)
    bare.run()
    assert bare.trace.sha256 == summary.trace_sha256


@pytest.mark.parametrize(
    ("metric", "output", "y", "expected"),
    [
        ("accuracy", [[1.0, 2.0], [3.0, 0.0]], [1, 1], [1, 0]),
        ("accuracy", [[0.5], [-0.5], [0.1]], [1, 0, 0], [1, 1, 0]),
        ("absolute_error", [[1.0], [2.0]], [0.5, 4.0], [0.5, 2.0]),
        ("squared_error", [[1.0, 3.0]], [[0.0, 1.0]], [2.5]),
        ("reconstruction_error", [[0.25], [0.5]], [0, 0], [0.25, 0.5]),
    ],
)
def test_scores_are_those_of_the_workshop(metric: str, output: list, y: list, expected: list) -> None:
    """By hand, and as models/metrics.py has them."""
    import torch

    from models import metrics

    ours = SCORES[metric](np.array(output, np.float32), np.array(y))
    assert ours == pytest.approx(np.array(expected, np.float64))
    known = {m.name: m for m in vars(metrics).values() if isinstance(m, metrics.Metric)}
    theirs = known[metric].score(torch.tensor(output), torch.tensor(np.array(y)))
    assert np.asarray(ours, np.float64) == pytest.approx(theirs.double().numpy())
