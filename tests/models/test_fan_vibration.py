"""The first model: its data is split honestly, and it learns in a fleet."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anabranch.datasets.fan_vibration import CLASSES, SPEEDS, WINDOW, load_all, load_fan, write_training_folder
from fl_protocol.bundle import Bundle, fill_initializers
from fl_protocol.errors import ConfigError
from models.fan_vibration.model import Config, FanVibration
from models.gates import next_entries, open_session, train_onnx

SHIPPED = Path(__file__).parents[2] / "anabranch" / "data" / "fan_vibration.bundle"


@pytest.fixture(scope="module")
def bundle():
    return Bundle.read(SHIPPED.read_bytes())


# --- the data ----------------------------------------------------------------------------------------------
def test_every_fan_has_all_classes_in_every_split():
    for speed in SPEEDS:
        for x, y in load_fan(speed):
            assert x.shape == (len(y), WINDOW, 3)
            assert (x.dtype, y.dtype) == (np.float32, np.int64)
            assert np.bincount(y, minlength=len(CLASSES)).tolist() == [len(y) // 3] * 3


def test_no_sample_is_in_two_splits():
    """Each split holds exactly its own seconds of each recording, and its windows reach both ends or nearly."""
    with np.load(SHIPPED.with_suffix(".npz")) as data:
        recording = data["xyz"][(data["speed_pct"] == 40) & (data["config"] == 2)]
    for (x, y), (start, end) in zip(load_fan(40), ((0, 2000), (2000, 2250), (2250, 3000)), strict=True):
        windows, seconds = x[y == 1], recording[start:end]
        np.testing.assert_array_equal(windows[0], seconds[:WINDOW])
        stride = next(s for s in range(1, WINDOW) if np.array_equal(windows[1], seconds[s : s + WINDOW]))
        assert len(windows) == (end - start - WINDOW) // stride + 1
        last = (len(windows) - 1) * stride
        np.testing.assert_array_equal(windows[-1], seconds[last : last + WINDOW])


def test_a_speed_that_was_not_recorded_is_refused():
    with pytest.raises(ConfigError, match="37"):
        load_fan(37)


def test_a_devices_folder_holds_its_training_examples_and_those_of_its_own_report(tmp_path):
    write_training_folder(55, tmp_path)
    splits = load_fan(55)
    files = {"fan-55.npz": splits.train, "validation-fan-55.npz": splits.validation}
    assert {file.name for file in tmp_path.iterdir()} == set(files)
    for name, (x, y) in files.items():
        with np.load(tmp_path / name) as data:
            np.testing.assert_array_equal(data["x"], x)
            np.testing.assert_array_equal(data["y"], y)


def test_the_pool_is_all_fans():
    fans = [load_fan(speed) for speed in SPEEDS]
    for split, pooled in enumerate(load_all()):
        np.testing.assert_array_equal(pooled[1], np.concatenate([fan[split][1] for fan in fans]))


# --- the network -------------------------------------------------------------------------------------------
def test_the_spectrum_is_welchs():
    """Against numpy's FFT: Hann window, half overlap, mean of the periodograms, one bin a hertz."""
    x = load_fan(80).test[0][:4]
    config = Config()
    features = FanVibration(config).spectrum(torch.from_numpy(x)).reshape(4, 3, 26).double().numpy()
    hann = np.hanning(config.segment + 1)[:-1, None]
    segments = [x[:, i : i + config.segment] for i in range(0, WINDOW - config.segment + 1, config.segment // 2)]
    waves = [np.fft.rfft((s - s.mean(1, keepdims=True)) * hann, axis=1)[:, 1:] for s in segments]
    log_power = np.log(np.mean(np.square(np.abs(waves)), 0) / config.segment + config.power_floor)
    level = log_power.mean(1, keepdims=True)
    expected = np.concatenate([log_power - level, (level - config.level_middle) / config.level_spread], 1)
    np.testing.assert_allclose(features, expected.transpose(0, 2, 1), atol=1e-3)


def test_tilt_and_gravity_leave_no_trace():
    x = torch.from_numpy(load_fan(60).test[0][:8])
    model = FanVibration(Config())
    torch.testing.assert_close(
        model.spectrum(x), model.spectrum(x + torch.tensor([3.0, -1, 0.5])), atol=1e-2, rtol=1e-3
    )


# --- the fleet ---------------------------------------------------------------------------------------------
class Fleet:
    """All fans in one process: just enough of federated averaging to see whether this model lends itself to it."""

    def __init__(self, bundle):
        self.bundle = bundle
        self.train, self.quantize = open_session(bundle.graph("train")), open_session(bundle.graph("quantize"))
        self.hyper = {name: np.array(v, np.float32) for name, v in bundle.hyper.items()}

    def trained(self, version, examples, steps, rng):
        x, y = examples
        layout = self.bundle.layout
        momenta = {e.name: np.zeros(e.shape, np.float32) for e in layout.with_role("optimizer")}
        entries = {**layout.split(version), **momenta}
        for _ in range(steps):
            chosen = rng.integers(0, len(y), self.bundle.batch_size)
            entries = next_entries(train_onnx(self.train, {**entries, "x": x[chosen], "y": y[chosen], **self.hyper}))
        return layout.join(entries)

    def accuracy(self, version, graph, examples):
        stored = shared = self.bundle.layout.split(version)
        if graph == "int8":
            names = [value.name for value in self.quantize.get_outputs()]
            stored = dict(zip(names, self.quantize.run(None, shared), strict=True))
        else:
            stored = {e.name: shared[e.name] for e in self.bundle.layout.with_role("parameter")}
        session = open_session(fill_initializers(self.bundle.graph(graph), stored))
        x, y = examples
        return float((session.run(None, {"x": x})[0].argmax(1) == y).mean())


def test_seventeen_fans_together_know_more_than_each_alone(bundle):
    """Federated averaging beats training alone by far, and int8 survives that ranges are averaged."""
    fleet, rng, everyone = Fleet(bundle), np.random.default_rng(0), load_all().test
    fans = [load_fan(speed).train for speed in SPEEDS]
    version, rounds, steps = bundle.initial, 12, 17
    for _ in range(rounds):
        version = np.mean([fleet.trained(version, fan, steps, rng) for fan in fans], 0, dtype=np.float32)
    alone = [
        fleet.accuracy(fleet.trained(bundle.initial, fan, rounds * steps, rng), "int8", everyone) for fan in fans[::4]
    ]
    together = fleet.accuracy(version, "int8", everyone)
    assert together >= np.mean(alone) + 0.2
    assert together >= fleet.accuracy(version, "float", everyone) - 0.01
