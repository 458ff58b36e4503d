"""What the devices of an experiment have to learn from."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch import datasets
from anabranch.datasets import fan_vibration
from anabranch.datasets.har import VALIDATORS
from anabranch.datasets.source import DATASETS
from anabranch.simulator.data import device_name, dirichlet, load_shares, read_bundle
from anabranch.simulator.experiment import DataSection, Experiment, FleetSection
from fl_protocol.errors import ConfigError
from tests.anabranch.datasets.made_up import write_datasets

STAND_IN = Experiment(name="test")
FANS = replace(STAND_IN, bundle="fan_vibration", data=DataSection(source="fan_vibration"))


def shares(experiment: Experiment, devices: int, seed: int = 0):
    """What so many devices have."""
    experiment = replace(experiment, fleet=FleetSection(devices=devices))
    return load_shares(experiment, read_bundle(experiment)[1], seed)


@given(st.integers(1, 12), st.integers(0, 60), st.floats(0.05, 100), st.integers(0, 2**32 - 1))
def test_dirichlet_gives_every_example_away_once(parts, more, alpha, seed) -> None:
    """And something to each; whatever alpha."""
    y = np.random.default_rng(seed).integers(0, 4, parts + more)
    rows = dirichlet(y, parts, alpha, np.random.default_rng(seed))
    assert len(rows) == parts
    assert min(map(len, rows)) >= 1
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(y)))


def test_a_small_alpha_makes_devices_differ() -> None:
    """With 0.1 most devices know few classes, with 1000 all know all."""
    y = np.repeat(np.arange(5), 200)
    classes = {
        alpha: np.mean([len(np.unique(y[rows])) for rows in dirichlet(y, 10, alpha, np.random.default_rng(0))])
        for alpha in (0.1, 1000.0)
    }
    assert classes[0.1] < 3.5
    assert classes[1000.0] == 5


def test_more_devices_than_examples_are_refused() -> None:
    """There is nothing to give to one of them."""
    with pytest.raises(ConfigError, match="3 examples for 4 devices"):
        dirichlet(np.zeros(3), 4, 1.0, np.random.default_rng(0))


@given(st.integers(1, 12000))
def test_names_sort_as_their_numbers(count) -> None:
    """For any size of the fleet."""
    some = sorted({0, count // 3, count // 2, count - 1})
    assert [device_name(n, count) for n in some] == sorted(device_name(n, count) for n in some)


def test_stand_in_devices_have_as_many_examples_as_they_are_told() -> None:
    """Between the two numbers, another mix for another seed; the optimum itself is what measures."""
    experiment = replace(STAND_IN, data=DataSection(examples=(10, 20)))
    one, other = ([len(d.train) for _, d in shares(experiment, 50, seed).devices] for seed in (0, 1))
    assert set(one) <= set(range(10, 21))
    assert one != other
    assert shares(experiment, 3).held_out is None
    with pytest.raises(ConfigError, match="smaller number first"):
        shares(replace(experiment, data=DataSection(examples=(20, 10))), 3)


def test_fewer_devices_than_clients_are_a_spread_of_them() -> None:
    """The slowest fan and the fastest among them, each with its own windows; the test set is not touched."""
    three = shares(FANS, 3)
    speeds = fan_vibration.SPEEDS
    assert [name for name, _ in three.devices] == [f"fan-{speeds[i]}" for i in (0, len(speeds) // 2, -1)]
    first = fan_vibration.load_fan(speeds[0])
    assert np.array_equal(three.devices[0][1].train.x, first.train[0])
    assert np.array_equal(three.held_out.x, fan_vibration.load_all().validation[0])
    with pytest.raises(ConfigError, match="17 clients"):
        shares(FANS, 18)


@pytest.mark.parametrize("source", datasets.SHIPPED)
def test_every_data_set_is_a_source_of_devices(source) -> None:
    """Its clients, each with what it trains on and holds out; the gateway measures with the part that is named."""
    federation = datasets.load(source)
    for measured_on in ("validation", "test"):
        experiment = replace(STAND_IN, data=DataSection(source=source, measured_on=measured_on))
        experiment = replace(experiment, fleet=FleetSection(devices=len(federation.clients)))
        bundle = replace(read_bundle(experiment)[1], x_shape=federation.test.x.shape[1:])
        loaded = load_shares(experiment, bundle, 0)
        assert [name for name, _ in loaded.devices] == [client.name for client in federation.clients]
        assert all(len(d.train) == len(c.train.x) for (_, d), c in zip(loaded.devices, federation.clients, strict=True))
        assert np.array_equal(loaded.held_out.x, getattr(federation, measured_on).x)
        assert np.array_equal(loaded.held_out.y, getattr(federation, measured_on).y)


def test_numbers_to_predict_have_no_classes_to_spread() -> None:
    """A split by Dirichlet deals classes out: refused for a regression, whose clients are its own."""
    experiment = replace(STAND_IN, data=DataSection(source="ratings", split="dirichlet"))
    bundle = replace(read_bundle(experiment)[1], x_shape=(1,))
    with pytest.raises(ConfigError, match="no classes to spread"):
        load_shares(experiment, bundle, 0)


def test_who_validates_trains_when_the_test_set_measures(tmp_path, monkeypatch) -> None:
    """21 people instead of 18; nothing that is measured with is trained on either way."""
    write_datasets(tmp_path)
    monkeypatch.setenv(DATASETS, str(tmp_path))
    har = replace(STAND_IN, bundle="har_cnn", data=DataSection(source="har"))
    with pytest.raises(ConfigError, match="18 clients"):
        shares(har, 21)
    validated = shares(har, 18)
    tested = shares(replace(har, data=replace(har.data, measured_on="test")), 21)
    assert {name for name, _ in tested.devices} - {name for name, _ in validated.devices} == {
        f"person-{person}" for person in VALIDATORS
    }
    for loaded in (validated, tested):
        seen = {x.tobytes() for _, d in loaded.devices for x in d.train.x}
        assert not seen & {x.tobytes() for x in loaded.held_out.x}


def test_an_npz_of_ones_own(tmp_path) -> None:
    """Arrays by the names that the experiment gives; what is marked is held out, the rest split by its client."""
    path, rng = tmp_path / "mine.npz", np.random.default_rng(0)
    client, test = np.array([2, 2, 1, 1, 1, 2]), np.array([0, 0, 0, 1, 0, 1])
    x, y = rng.normal(size=(6, 40)).astype(np.float32), np.arange(6)
    np.savez(path, x=x, label=y, client=client, test=test)
    data = DataSection(source=str(path), y="label")
    two = shares(replace(STAND_IN, data=data), 2)
    assert [(name, d.train.y.tolist()) for name, d in two.devices] == [("client-1", [2, 4]), ("client-2", [0, 1])]
    assert two.held_out.y.tolist() == [3, 5]
    spread = shares(replace(STAND_IN, data=replace(data, split="dirichlet")), 4)
    assert sorted(label for _, d in spread.devices for label in d.train.y.tolist()) == [0, 1, 2, 4]
    with pytest.raises(ConfigError, match=r"mine\.npz"):
        shares(replace(STAND_IN, data=replace(data, y="missing")), 2)
    with pytest.raises(ConfigError, match=r"shape \(40,\).*\(200, 3\)"):
        shares(replace(STAND_IN, data=data, bundle="fan_vibration"), 2)


def test_what_is_not_there_is_named() -> None:
    """A source, or a bundle: the error says what there is."""
    with pytest.raises(ConfigError) as error:
        shares(replace(STAND_IN, data=DataSection(source="nowhere")), 2)
    assert "fan_vibration" in error.value.hint
    with pytest.raises(ConfigError) as error:
        read_bundle(replace(STAND_IN, bundle="nothing"))
    assert "stand_in" in error.value.hint
