"""Sensors' messages over a real broker into the ring: nothing is lost while the device trains, and nothing ends it."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent.config import AgentConfig, load_config
from edge_agent.data import Data, open_data
from edge_agent.payloads import Reason
from edge_agent.ring_files import look
from edge_agent.sensors import read_counts
from edge_agent.sources import InputSpec
from edge_agent.trainer import OnnxTrainer
from edge_agent.training import WorkOrder
from fl_protocol.errors import ConfigError
from fl_protocol.mqtt import MqttTransport
from tests.edge_agent.rig import BUNDLE, FLEET_KEY
from tests.support.mosquitto import Mosquitto
from tests.support.waiting import wait_until

SPEC = InputSpec((1, 4), "float32", (), "int64", ())
SENSORS = """
[data]
source = "ring"
[ring]
flush_s = 0.2
[[sensors.channels]]
name = "rms"
topic = "fan/sensor/rms/state"
[sensors.window]
count = 4
"""


def settings(directory: Path, port: int, sensors: str = SENSORS) -> AgentConfig:
    """A device's configuration whose sensors are on a broker of this machine."""
    path = directory / "agent.toml"
    path.write_text(
        f"""
        [device]
        id = "fan-1"
        fleet = "plant"
        state_dir = "state"
        [gateway]
        public_key = "{FLEET_KEY.public}"
        [sensors.broker]
        host = "127.0.0.1"
        port = {port}
        reconnect_max_s = 1
        {sensors}
        """
    )
    return load_config(path, {})


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """The sensors' broker."""
    broker = Mosquitto(tmp_path / "sensors", persistence=False)
    yield broker
    broker.stop()


class House:
    """Who publishes what sensors measure."""

    def __init__(self, port: int) -> None:
        self._transport = MqttTransport("127.0.0.1", port, "house", reconnect_min_s=0.1, reconnect_max_s=0.5)
        self._transport.start()

    def say(self, topic: str, payload: object, *, retain: bool = False, qos: int = 1) -> None:
        data = payload if isinstance(payload, bytes) else str(payload).encode()
        self._transport.publish(topic, data, retain=retain, qos=qos)
        self._transport.receive(0.0)

    def close(self) -> None:
        self._transport.close()


@pytest.fixture
def house(broker: Mosquitto) -> Iterator[House]:
    house = House(broker.port)
    yield house
    house.close()


@pytest.fixture
def opened(tmp_path: Path, broker: Mosquitto) -> Iterator[Data]:
    """Sensors that listen."""
    data = open_data(settings(tmp_path, broker.port))
    data.start()
    _subscribed(broker)
    yield data
    data.close()


def _subscribed(broker: Mosquitto, times: int = 1) -> None:
    wait_until(lambda: broker.log.read_text().count("Sending SUBACK to plant.fan-1.sensors") >= times, 10, "a SUBACK")


def heard(data: Data) -> dict[str, object]:
    """The counts."""
    assert data.sensors
    return data.sensors.counts()


def examples(data: Data) -> np.ndarray:
    """The features that are there to be trained on and held out."""
    try:
        dataset = data.source.load(SPEC)
    except ConfigError:
        return np.empty((0, 1, 4), np.float32)
    return np.concatenate([dataset.train.x, dataset.validation.x])


def test_numbers_become_examples_that_training_reads(opened: Data, house: House, tmp_path: Path) -> None:
    """In order, on the disk after `flush_s`; the newest window is what a prediction is about."""
    for number in range(42):
        house.say("fan/sensor/rms/state", number)
    wait_until(lambda: len(examples(opened)) == 10, 10, "ten examples")
    np.testing.assert_array_equal(examples(opened).ravel(), np.arange(40))
    assert opened.forgettable
    assert opened.forgettable.newest(SPEC).tolist() == [[[36, 37, 38, 39]]]
    assert look(tmp_path / "state/ring").examples == 10
    assert (tmp_path / "state/ring").stat().st_mode & 0o077 == 0
    wait_until(lambda: heard(opened)["messages"] == 42, 10, "all messages")


def test_messages_that_come_while_the_device_trains_are_not_lost(opened: Data, house: House) -> None:
    """A training takes both cores; each of 4000 messages at QoS 0 is heard."""
    x = np.zeros((64, *BUNDLE.x_shape), np.float32)
    from edge_agent.sources import Dataset, Examples

    dataset = Dataset(Examples(x, np.zeros(64, np.int64)), Examples(x[:0], np.zeros(0, np.int64)), x[:1])
    trainer, stop, steps = OnnxTrainer(BUNDLE), threading.Event(), []

    def train() -> None:
        while not stop.is_set():
            order = WorkOrder(hyper=BUNDLE.hyper, batch_size=32, local_epochs=5, max_local_steps=20)
            result = trainer.train(
                BUNDLE.initial, dataset, order, BUNDLE.personal, np.random.default_rng(0), lambda: False
            )
            steps.append(result.local_steps)

    training = threading.Thread(target=train)
    training.start()
    try:
        wait_until(lambda: steps, 30, "a training")
        before = len(steps)
        for number in range(4000):
            house.say("fan/sensor/rms/state", number, qos=1)
            if number % 100 == 99:
                wait_until(lambda: house._transport.backlog < 8000, 30, "the publisher's queue")
        wait_until(lambda: heard(opened)["messages"] == 4000, 60, "every message")
        assert len(steps) > before
    finally:
        stop.set()
        training.join()
    assert heard(opened)["examples"] == 1000
    assert heard(opened)["not used"] == {}
    assert "lost for want of room" not in heard(opened)
    wait_until(lambda: len(examples(opened)) == 1000, 10, "every example")
    np.testing.assert_array_equal(examples(opened).ravel(), np.arange(4000))


def test_a_broker_that_was_gone_is_a_gap(opened: Data, house: House, broker: Mosquitto) -> None:
    """The window in hand goes; what is retained when the connection is back is not of now."""
    for number in (1, 2):
        house.say("fan/sensor/rms/state", number)
    wait_until(lambda: heard(opened)["messages"] == 2, 10, "two messages")
    broker.kill()
    wait_until(lambda: heard(opened)["not used"] == {Reason.GAP: 1}, 10, "a gap")
    broker.restart()
    _subscribed(broker, 2)
    for number in (3, 4, 5, 6):
        house.say("fan/sensor/rms/state", number)
    wait_until(lambda: len(examples(opened)) == 1, 20, "an example")
    assert examples(opened).tolist() == [[[3, 4, 5, 6]]]


def test_a_retained_value_is_not_of_now(tmp_path: Path, broker: Mosquitto, house: House) -> None:
    """ESPHome retains its states: the one that lies there at the start may be of yesterday."""
    house.say("fan/sensor/rms/state", 99, retain=True)
    wait_until(lambda: "PUBACK to house" in broker.log.read_text(), 10, "it lies there")
    data = open_data(settings(tmp_path, broker.port))
    data.start()
    try:
        wait_until(lambda: heard(data)["not used"] == {Reason.RETAINED: 1}, 10, "a retained message")
        for number in range(4):
            house.say("fan/sensor/rms/state", number, retain=True)
        wait_until(lambda: heard(data)["examples"] == 1, 10, "an example")
    finally:
        data.close()
    again = open_data(settings(tmp_path, broker.port))
    assert examples(again).tolist() == [[[0, 1, 2, 3]]]
    assert read_counts(tmp_path / "state/ring")["messages"] == 5
    again.close()


def test_junk_from_the_broker_ends_nothing(opened: Data, house: House) -> None:
    """Counted by its reason, and the next number is heard."""
    for junk in (b"", b"\xff\xfe\x00", b"nan", b"{", b"1e999", b"x" * 100_000):
        house.say("fan/sensor/rms/state", junk)
    for number in range(4):
        house.say("fan/sensor/rms/state", number)
    wait_until(lambda: heard(opened)["examples"] == 1, 10, "an example")
    assert heard(opened)["not used"] == {Reason.NOT_A_NUMBER: 5, Reason.TOO_LARGE: 1}


def test_forgetting_while_sensors_speak(opened: Data, house: House, tmp_path: Path) -> None:
    """What was is gone from disk and memory; what comes is kept."""
    for number in range(1, 11):
        house.say("fan/sensor/rms/state", number)
    wait_until(lambda: len(examples(opened)) == 2, 10, "two examples")
    wait_until(lambda: heard(opened)["messages"] == 10, 10, "ten messages")
    assert opened.forgettable
    assert opened.forgettable.forget().examples == 2
    assert len(examples(opened)) == 0
    assert not [f for f in (tmp_path / "state/ring").iterdir() if f.is_file()]
    for number in range(20, 24):
        house.say("fan/sensor/rms/state", number)
    wait_until(lambda: len(examples(opened)) == 1, 10, "an example")
    assert examples(opened).tolist() == [[[20, 21, 22, 23]]]  # 9 and 10 are not in it


def test_a_disk_that_fails_ends_the_agent_and_says_why(tmp_path: Path, broker: Mosquitto, house: House) -> None:
    """The thread's end is the process's: a device that silently collects nothing is worse."""
    failed = threading.Event()
    data = open_data(settings(tmp_path, broker.port), failed.set)
    data.start()
    _subscribed(broker)
    (tmp_path / "state/ring").rmdir()
    for number in range(4):
        house.say("fan/sensor/rms/state", number)
    assert failed.wait(10)
    with pytest.raises(ConfigError, match="cannot use the ring"):
        data.close()


# --- configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[data]\nsource = "ring"', "[sensors] has no channels"),
        ("", "data.path is missing"),
        (SENSORS.replace('"ring"', '"folder"\npath = "x"'), '[sensors] has 1 channels, and data.source is "folder"'),
        (SENSORS.replace("count = 4", "count = 4\nsize = 3"), "unknown key `sensors.window.size`"),
        (SENSORS.replace('name = "rms"\n', ""), "sensors.channels[0]"),
    ],
)
def test_a_configuration_that_cannot_be(tmp_path: Path, text: str, said: str) -> None:
    """Said when it is read."""
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, 1883, text)
    assert said in str(caught.value)


def test_the_counts_name_no_value(opened: Data, house: House) -> None:
    """They are told in the log, and by `data show`."""
    house.say("fan/sensor/rms/state", "secret-31337")
    for number in range(4):
        house.say("fan/sensor/rms/state", 31337 + number)
    wait_until(lambda: heard(opened)["examples"] == 1, 10, "an example")
    assert "3133" not in json.dumps(heard(opened))
