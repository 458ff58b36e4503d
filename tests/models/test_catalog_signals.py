"""The catalog's models of signals that predict no class: each sees its data as it should, and learns."""

from pathlib import Path

import numpy as np
import torch

from anabranch.datasets import load as load_data
from anabranch.datasets.fan_vibration import load_all
from fl_protocol.bundle import Bundle, fill_initializers
from models.air_forecast.model import AirForecast
from models.air_forecast.model import Config as AirConfig
from models.anomaly_autoencoder.model import AnomalyAutoencoder
from models.anomaly_autoencoder.model import Config as AnomalyConfig
from models.fan_vibration.model import Config as FanConfig
from models.fan_vibration.model import FanVibration
from models.gates import Bench, open_session, train_onnx
from models.spec import load

SHIPPED = Path(__file__).parents[2] / "anabranch" / "data"


def bench_of(name):
    return Bench(Bundle.read((SHIPPED / f"{name}.bundle").read_bytes()), load(name))


def int8_output(bench, steps, x):
    """What the int8 model says that is made after so many steps."""
    trained, quantize = bench.run(bench.initial, steps), open_session(bench.bundle.graph("quantize"))
    stored = quantize.run(None, {value.name: trained[value.name] for value in quantize.get_inputs()})
    names = [value.name for value in quantize.get_outputs()]
    graph = fill_initializers(bench.bundle.graph("int8"), dict(zip(names, stored, strict=True)))
    return open_session(graph).run(None, {"x": x})[0]


# --- air_forecast ------------------------------------------------------------------------------------------
def last_hour(x):
    """The forecast that nothing will change."""
    return x[:, -1, :1]


def test_a_forecast_is_what_is_there_now_times_a_factor():
    """Of a model that has learnt that nothing changes, and whatever the dust is, a forecast is never negative."""
    x, _ = load_data("beijing_air").validation
    x = torch.from_numpy(x[:64])
    model = AirForecast(AirConfig())
    assert (model(x) > 0).all()
    with torch.no_grad():
        model.change.weight.zero_()
        model.change.bias.fill_(np.log(2.0))
        torch.testing.assert_close(model(x), 2 * last_hour(x))


def test_columns_are_scaled_by_the_training_stations():
    """Mean and deviation are the training data's; but for what is rare, rain and stale readings (9, 15)."""
    config, (x, _) = AirConfig(), load_data("beijing_air").train
    columns = x.reshape(-1, x.shape[2]).astype(np.float64)
    columns[:, : config.pollutants] = np.log1p(columns[:, : config.pollutants])
    np.testing.assert_allclose(config.mean, columns.mean(0), atol=0.2)
    usual = [i for i in range(x.shape[2]) if i not in (9, 15)]
    np.testing.assert_allclose(np.array(config.deviation)[usual], columns.std(0)[usual], rtol=0.02)
    assert all(config.deviation[i] > columns.std(0)[i] for i in (9, 15))


def test_an_hour_of_a_sensors_nonsense_makes_no_nan():
    """A reading below zero counts as none at all: its logarithm would be NaN, and NaN would reach all parameters."""
    x, _ = load_data("beijing_air").validation
    broken = torch.from_numpy(x[:4].copy())
    broken[:, 3, 2] = -999.0
    assert AirForecast(AirConfig())(broken).isfinite().all()


def test_an_epoch_teaches_it_more_than_that_nothing_changes():
    """After 1,500 steps the int8 model is 5 % nearer on validation than persistence is."""
    bench = bench_of("air_forecast")
    x, y = bench.examples.validation
    assert np.abs(int8_output(bench, 1500, x) - y).mean() <= 0.95 * np.abs(last_hour(x) - y).mean()


# --- anomaly_autoencoder -----------------------------------------------------------------------------------
def test_it_trains_and_validates_on_balanced_fans_only():
    splits = load("anomaly_autoencoder").examples()
    assert [set(np.unique(y)) for _, y in splits] == [{0}, {0}, {0, 1, 2}]


def test_the_score_is_the_error_in_the_spectrum_that_fan_vibration_sees():
    """A decoder that says 0 leaves the mean square of `FanVibration.spectrum`."""
    x = torch.from_numpy(load_all().validation[0][::10])
    model = AnomalyAutoencoder(AnomalyConfig())
    with torch.no_grad():
        model.decode2.weight.zero_()
        model.decode2.bias.zero_()
        torch.testing.assert_close(model(x), FanVibration(FanConfig()).spectrum(x).square().mean(1))


def test_labels_change_nothing():
    """The loss is the output: with other labels a step has the same results."""
    bench = bench_of("anomaly_autoencoder")
    given = {**bench.initial, **next(bench.batches(32)), **bench.hyper()}
    with_others = train_onnx(bench.session, {**given, "y": given["y"] + 1})
    for name, array in train_onnx(bench.session, given).items():
        np.testing.assert_array_equal(array, with_others[name])


def test_unbalanced_fans_score_higher_than_a_bottleneck_without_hidden_layers_can_tell():
    """On validation (seconds 40 to 45, of all fans) it tells more pairs apart than PCA with as many components."""
    bench = bench_of("anomaly_autoencoder")
    x, y = load_all().validation
    spectrum = FanVibration(FanConfig()).spectrum
    train, seen = (spectrum(torch.from_numpy(part)).detach().numpy() for part in (bench.examples.train[0], x))
    mean = train.mean(0)
    _, _, axes = np.linalg.svd(train - mean, full_matrices=False)
    kept = axes[: AnomalyConfig.code]
    left = (seen - mean) - (seen - mean) @ kept.T @ kept
    assert told_apart(int8_output(bench, 1500, x), y) > told_apart(np.square(left).mean(1), y)


def told_apart(scores, y):
    """The share of pairs, one balanced and one not, of which the unbalanced fan scores higher (the AUC)."""
    return float((scores[y > 0][:, None] > scores[y == 0][None, :]).mean())
