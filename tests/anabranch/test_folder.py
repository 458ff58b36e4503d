"""The run's folder: files as a person would write them, read back by the programs that they are for."""

import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.datasets.fan_vibration import SPEEDS, load_fan
from anabranch.demo.broker import Broker
from anabranch.demo.folder import (
    Folder,
    choose_speeds,
    device_of,
    fleet_key,
    read_bundle,
    to_toml,
    write_devices,
    write_gateway,
    write_task,
)
from anabranch.demo.story import Cast
from broker_aggregator.config import load_task
from edge_agent.config import load_config
from edge_agent.sources import InputSpec
from edge_agent.sources.folder import FolderSource
from fl_protocol.errors import ConfigError

BROKER = Broker("mosquitto", 12345, "3.1.1")


@pytest.fixture
def folder(tmp_path):
    """A run's folder with everything in it."""
    made = Folder.create(tmp_path / "run")
    keys = write_devices(made, BROKER, (20, 60), Cast(slow=("fan-60",)), seed=7)
    write_gateway(made, BROKER, keys)
    write_task(made, (20, 60), versions=30, minutes=3)
    return made


def test_fewer_devices_are_a_spread_of_speeds():
    """Slowest and fastest are always there."""
    assert choose_speeds(17) == SPEEDS
    assert choose_speeds(2) == (20, 100)
    for count in range(2, 18):
        speeds = choose_speeds(count)
        assert len(set(speeds)) == count
        assert (speeds[0], speeds[-1]) == (20, 100)
    for count in (1, 18, 0, -1):
        with pytest.raises(ConfigError, match=f"--devices {count}"):
            choose_speeds(count)


def test_agents_read_what_was_written(folder):
    """Fleet, keys, broker; the slow one may compute a tenth of the time; each device has a seed of its own."""
    fast, slow = (load_config(folder.agent_file(device_of(speed)), {}) for speed in (20, 60))
    assert fast.device.id == "fan-20"
    assert fast.broker.address == ("127.0.0.1", 12345)
    assert fast.broker.mqtt_version == "3.1.1"
    assert fast.gateway.public_key == slow.gateway.public_key == fleet_key(folder)
    assert (fast.training.duty_cycle, slow.training.duty_cycle) == (1.0, 0.1)
    assert fast.training.seed != slow.training.seed


def test_the_gateway_knows_its_devices(folder):
    """By the keys that their folders hold."""
    config = folder.gateway
    assert set(config.devices) == {"fan-20", "fan-60"}
    assert len(set(config.devices.values())) == 2
    assert config.broker.address == ("127.0.0.1", 12345)


def test_limits_reach_the_plan(folder):
    """`--versions` and `--minutes`; the buffer is half the fleet."""
    task = load_task(folder.task_file)
    assert task.start
    assert task.plan["stop"] == {"versions": 30, "minutes": 3}
    assert task.plan["buffer"] == 1
    with np.load(task.evaluation) as held_out:
        assert np.array_equal(held_out["x"][: len(load_fan(20).validation[0])], load_fan(20).validation[0])


def test_a_device_trains_on_its_training_seconds_and_reports_on_its_validation_seconds(folder):
    """The split of issue 2: 0-40 s train, 40-45 s validate; the last 15 s are nowhere in its folder."""
    config = load_config(folder.agent_file("fan-20"), {})
    dataset = FolderSource(config.data.path).load(InputSpec.of(read_bundle(folder)))
    fan = load_fan(20)
    assert np.array_equal(dataset.train.x, fan.train[0])
    assert np.array_equal(dataset.validation.x, fan.validation[0])
    seen = {window.tobytes() for window in (*dataset.train.x, *dataset.validation.x)}
    assert not any(window.tobytes() in seen for window in fan.test[0])


def test_tidy_leaves_what_a_person_wants(folder):
    """Report, model and summary; keys, stores and examples go."""
    folder.model.mkdir()
    folder.report.touch()
    folder.summary.touch()
    folder.tidy()
    assert sorted(path.name for path in folder.path.iterdir()) == ["model", "report.html", "summary.json"]


def test_tidy_leaves_nothing_of_a_run_that_came_to_nothing(folder):
    """Also the folder itself goes."""
    folder.tidy()
    assert not folder.path.exists()


scalars = st.one_of(
    st.text(), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)
)
names = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)


@given(st.dictionaries(names, st.dictionaries(names, scalars), max_size=3), st.dictionaries(names, scalars, max_size=3))
def test_toml_that_is_written_is_read_back(sections, top):
    """Property: any plain values, texts with quotes and control characters too."""
    top = {name: value for name, value in top.items() if name not in sections}
    assert tomllib.loads(to_toml({"": top, **sections})) == {**sections, **top}
