"""Activities of people: they are split honestly, the spectrum is Welch's, and the convolutions learn in int8."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from anabranch.datasets import har
from anabranch.datasets.source import DATASETS
from fl_protocol.bundle import Bundle
from fl_protocol.errors import ConfigError
from models.gates import Bench, open_session, run_gates
from models.har_cnn.model import Config, HarCnn
from models.spec import load

SHIPPED = Path(__file__).parents[2] / "anabranch" / "data" / "har_cnn.bundle"
REAL = Path(os.environ.get(DATASETS) or "../shared/datasets")
# UCI HAR may not lie in this repository; where somebody has it, every rule here holds for it as well.
KINDS = ("made up", "real") if (REAL / har.ARCHIVE).is_file() else ("made up",)


def write_made_up_archive(folder):
    """Thirty people with the archive's format: each activity a direction of gravity, some with a gait."""
    rng, people, each = np.random.default_rng(0), 30, 4
    y = np.tile(np.repeat(np.arange(6), each), people)
    subject = np.repeat(np.arange(1, people + 1), 6 * each)
    gravity, gait, hertz = (
        rng.normal(0, 0.6, (6, 9, 1)),
        rng.normal(0, 0.4, (6, 9, 1)),
        np.array([1.5, 2, 2.5, 0, 0, 0]),
    )
    phase = 2 * np.pi * (hertz[y, None] * np.arange(har.WINDOW) / 50 + rng.random((len(y), 1)))
    posture = rng.normal(0, 0.4, (len(y), 9, 1))  # so that activities are not told apart with ease
    x = gravity[y] + posture + gait[y] * np.sin(phase)[:, None] + rng.normal(0, 0.1, (len(y), 9, har.WINDOW))
    is_test = np.isin(subject, har.TESTERS)
    np.savez(
        folder / har.ARCHIVE,
        x=x.astype(np.float32),
        y=y,
        subject=subject,
        is_test=is_test,
        channels=np.array(har.CHANNELS),
        classes=np.array([c.replace(" ", "_").upper() for c in har.CLASSES]),
    )


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    if request.param == "real":
        yield REAL
        return
    made_up = tmp_path_factory.mktemp("datasets")
    write_made_up_archive(made_up)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATASETS, str(made_up))
        yield made_up


@pytest.fixture(scope="module")
def bench(folder):
    return Bench(Bundle.read(SHIPPED.read_bytes()), load("har_cnn"))


# --- the data ----------------------------------------------------------------------------------------------
def test_every_person_is_in_one_split_and_the_official_test_people_test(folder):
    splits = [*((person,) for person in har.PEOPLE), har.VALIDATORS, har.TESTERS]
    assert sorted(person for split in splits for person in split) == list(range(1, 31))
    loaded = [*map(har.load_person, har.PEOPLE), har.load_validation(), har.load_test()]
    with np.load(folder / har.ARCHIVE) as data:
        assert set(data["subject"][data["is_test"]]) == set(har.TESTERS)
        for people, (x, y) in zip(splits, loaded, strict=True):
            chosen = np.isin(data["subject"], people)
            np.testing.assert_array_equal(x, data["x"][chosen].transpose(0, 2, 1))
            np.testing.assert_array_equal(y, data["y"][chosen])
            assert (x.shape[1:], x.dtype, y.dtype) == ((har.WINDOW, 9), np.float32, np.int64)
            assert set(y) == set(range(len(har.CLASSES)))


def test_signals_and_activities_have_the_order_of_the_archive(folder):
    with np.load(folder / har.ARCHIVE) as data:
        assert tuple(data["channels"]) == har.CHANNELS
        assert tuple(c.replace("_", " ").lower() for c in data["classes"]) == har.CLASSES


def test_the_pool_is_all_people_that_train(folder):
    x, y = har.load_training()
    assert len(x) == len(y) == sum(len(har.load_person(person)[1]) for person in har.PEOPLE)


@pytest.mark.parametrize("person", [0, har.TESTERS[0], 31])
def test_a_person_who_does_not_train_is_refused(person):
    with pytest.raises(ConfigError, match=f"person {person} "):
        har.load_person(person)


def test_without_the_data_the_operator_hears_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setenv(DATASETS, str(tmp_path))
    with pytest.raises(ConfigError, match=DATASETS):
        har.load_validation()


# --- the spectrum -------------------------------------------------------------------------------------------
def test_the_spectrum_is_welchs():
    """Against numpy's FFT: three segments under a Hann window that overlap by half, the mean of their periodograms.

    From the second bin on: what gravity leaves in the first one under a Hann window is taken out of ours.
    """
    c = Config()
    model = HarCnn(c)
    signals = torch.randn(2, len(c.mean), c.window, generator=torch.Generator().manual_seed(0))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(c.segment) / c.segment)
    starts = range(0, c.window - c.segment + 1, c.segment // 2)
    segments = np.stack([signals.numpy()[..., s : s + c.segment] for s in starts])
    power = np.square(np.abs(np.fft.rfft(segments * hann))).mean(0)[..., 1 : c.bins + 1] / c.segment
    ours = torch.exp(model.log_power(signals)) - c.power_floor
    np.testing.assert_allclose(ours.numpy().reshape(power.shape)[..., 1:], power[..., 1:], rtol=1e-3, atol=1e-4)


def test_gravity_leaves_no_trace_in_the_spectrum():
    """It is in the means: a constant added to a signal changes no bin."""
    c = Config()
    model = HarCnn(c)
    signals = torch.randn(2, len(c.mean), c.window, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.spectrum(signals + 3.0), model.spectrum(signals), rtol=1e-3, atol=1e-3)


# --- the model ---------------------------------------------------------------------------------------------
def test_the_network_sees_each_signal_in_its_own_unit(folder):
    """The constants are the training people's: close to 0 and 1 after them, whatever the unit."""
    config, (x, _) = Config(), har.load_training()
    model = HarCnn(config)
    assert len(model.mean) == len(model.deviation) == len(har.CHANNELS)
    if folder == REAL:
        np.testing.assert_allclose(x.mean((0, 1)), config.mean, atol=0.01)
        np.testing.assert_allclose(x.std((0, 1)), config.deviation, atol=0.01)


def test_the_shipped_bundle_passes_every_gate(bench):
    assert [gate for gate in run_gates(bench.bundle, bench.spec) if not gate.passed] == []


def test_convolutions_run_on_int8_kernels(bench, tmp_path):
    """Every layer, as onnxruntime optimizes the graph: no float product is left."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(bench.bundle.graph("int8"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert (kinds.count("QLinearConv"), kinds.count("QGemm")) == (3, 1)
    assert not {"Conv", "FusedConv", "Gemm"} & set(kinds)


def test_a_few_hundred_steps_teach_it_what_unseen_people_do(bench):
    """300 steps of 32 on pooled people are under two epochs of the real data: 89 % of nine unseen people's windows."""
    x, y = bench.examples[1]
    shared = {e.name: bench.trained[e.name] for e in bench.bundle.layout.shared}
    results = open_session(bench.bundle.graph("evaluate")).run(["correct"], {**shared, "x": x, "y": y})
    assert results[0] / len(y) >= 0.85
