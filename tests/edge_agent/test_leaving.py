"""No example and no label leaves: a closed list, held where the agent publishes; every byte of a real one watched."""

import ast
import asyncio
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import events as e
from edge_agent.leaving import LEAVING, check_leaving
from edge_agent.ring import Ring
from edge_agent.ring_files import look
from edge_agent.segments import Form
from edge_agent.sensing import RingConfig
from edge_agent.sources import InputSpec
from edge_agent.sources.checks import told
from edge_agent.sources.folder import FolderSource
from fl_protocol import messages as m
from fl_protocol.codec import MESSAGE_OF, encode
from fl_protocol.errors import ConfigError, ProtocolError
from fl_protocol.mqtt import MqttTransport
from fl_protocol.signing import SigningKey
from fl_protocol.topics import Kind, parse
from fl_protocol.transport import Undeliverable
from tests.edge_agent.rig import BUNDLE_BYTES, DEVICE, DEVICE_KEY, FLEET, FLEET_KEY, ROOT, topic
from tests.edge_agent.scripted import ScriptedGateway
from tests.edge_agent.small import small_bundle
from tests.edge_agent.test_service import Bench
from tests.support.fleet import make_update
from tests.support.forwarder import Forwarder
from tests.support.mosquitto import Mosquitto
from tests.support.waiting import wait_until

BITS = (0x3F3579BD, 0x3EC0FFEF, 0xBF1A2B3D, 0x3F5EED5F, 0xBE9ABCD7, 0x3D5C3B1F)
MARKS = np.array(BITS, "<u4").view("<f4")
LABEL_WORDS = ("label-mark-31337", "label-mark-41441", "label-mark-51551")
LABEL_NUMBER = 1_234_567_891


def traces(number: float) -> set[bytes]:
    """How a marked number could stand in a stream: as any number of a machine, or in figures."""
    found = {struct.pack(order + kind, number) for order in "<>" for kind in "fd"}
    if number == int(number):
        found |= {struct.pack(order + kind, int(number)) for order in "<>" for kind in "iq"}
    return found | {f"{number:.{figures}g}".lstrip("-").encode() for figures in (6, 7, 9, 17)}


def all_traces() -> set[bytes]:
    """Of every marked feature and label."""
    numbers = [float(mark) for mark in MARKS] + [float(LABEL_NUMBER)]
    return {t for number in numbers for t in traces(number)} | {word.encode() for word in LABEL_WORDS}


def found_in(data: bytes) -> set[bytes]:
    """What of that stands in these bytes."""
    return {trace for trace in all_traces() if trace in data}


# --- the list ----------------------------------------------------------------------------------------------------


def test_the_list_is_of_the_devices_own_topics() -> None:
    """Each with the message that the protocol has there; nothing that others say, no update without an envelope."""
    assert {kind: MESSAGE_OF.get(kind, m.CommandProgress) for kind in LEAVING} == LEAVING
    assert all(kind.value.startswith(("dev/{device}/", "enroll/{claim}/req")) for kind in LEAVING)


def test_whoever_publishes_asks_first() -> None:
    """Every function of the agent that calls `publish` asks the list; and no other way to the socket is known."""
    publishing = set()
    for path in (ROOT / "edge_agent").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
                names = {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls}
                if "publish" in names:
                    publishing.add(path.stem)
                    assert "check_leaving" in names, f"{path.name}: {node.name}"
    assert publishing == {"service", "enrolling", "renewing"}


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in LEAVING], ids=lambda kind: kind.name)
def test_a_topic_that_is_not_listed(kind: Kind) -> None:
    """Whatever the message is."""
    name = topic(kind, version="1", name="x", cid="1", claim="c")
    for message in (m.DeviceState(state="ready", boot=1, bseq=1, n=1), b"anything"):
        with pytest.raises(ProtocolError, match="not on the list"):
            check_leaving(name, message)


@pytest.mark.parametrize("kind", LEAVING, ids=lambda kind: kind.name)
def test_a_message_that_is_not_its_topics(kind: Kind) -> None:
    """A listed topic carries its own message alone: no bytes, no other class, and no class of one's own."""

    class Smuggler(m.DeviceEvent):
        pass

    for message in (b"\x00examples", m.Sync(within_s=1), Smuggler(event="x", message="y")):
        with pytest.raises(ProtocolError):
            check_leaving(topic(kind, claim="c", name="x", cid="1"), message)


def test_bytes_are_an_update_in_its_envelope() -> None:
    """An envelope around something else is refused, too; so is a field that no schema knows."""
    update = make_update("fan-20", 1, 0, [0.0, 0.0, 0.0])
    signature = bytes(64)
    check_leaving(topic(Kind.UPDATE), encode(m.Envelope(body=encode(update), signature=signature)))
    smuggled = replace(update, extra={"x": [0.5]})
    for body, extra in ((b"examples", {}), (encode(smuggled), {}), (encode(update), {"x": [0.5]})):
        with pytest.raises(ProtocolError):
            check_leaving(topic(Kind.UPDATE), encode(m.Envelope(body=body, signature=signature, extra=extra)))
    with pytest.raises(ProtocolError, match="not on the list"):
        check_leaving(topic(Kind.HEALTH), m.Health(extra={"x": [0.5]}))


def test_the_service_sends_nothing_that_is_not_listed(tmp_path: Path) -> None:
    """What is added by mistake stays inside, and is told as undeliverable."""
    bench = Bench(tmp_path)
    service = bench.start()
    published: list[str] = []
    service._transport.publish = lambda topic, *_, **__: published.append(topic)  # type: ignore[method-assign]
    for effect in (
        e.Send(topic(Kind.DESIRED), m.DeviceEvent(event="x", message="0.5 0.25 0.125")),
        e.Send("somewhere/else", b"examples"),
        e.Send(topic(Kind.HEALTH), b"examples"),
    ):
        answer = service._perform(effect)
        assert isinstance(answer, Undeliverable)
        assert answer.topic == effect.topic
    assert not published
    service._perform(e.Send(topic(Kind.EVENT), m.DeviceEvent(event="x", message="y")))
    assert published == [topic(Kind.EVENT)]
    service.close()


CELLS = st.sampled_from(
    ["0.5", "1", "0", "", "nan", "x", *LABEL_WORDS, str(LABEL_NUMBER), *(f"{v:.9g}" for v in MARKS)]
)


@given(rows=st.lists(st.lists(CELLS, min_size=1, max_size=9), min_size=1, max_size=4), label=st.sampled_from(["", "y"]))
def test_complaints_about_examples_quote_none(tmp_path_factory: Any, rows: list[list[str]], label: str) -> None:
    """Event `no examples` and the state's reason leave the device: file, row and column, and no cell."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "a.csv").write_text("\n".join(",".join(row) for row in rows))
    complaint = ""
    try:
        FolderSource(folder, label).load(InputSpec((2, 3), "float32", (), "int64", ("a", "b")))
    except ConfigError as error:
        complaint = told(error)
    assert not found_in(complaint.encode())


def test_a_wrong_label_in_a_file_is_not_told(tmp_path: Path) -> None:
    """The person at the device reads it; the fleet does not."""
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2, 3), np.float32), y=np.full(3, LABEL_NUMBER))
    with pytest.raises(ConfigError, match=str(LABEL_NUMBER)) as caught:
        FolderSource(tmp_path).load(InputSpec((2, 3), "float32", (), "int64", ("a", "b")))
    assert not found_in(told(caught.value).encode())
    assert "row 0" in told(caught.value)


# --- every byte --------------------------------------------------------------------------------------------------


class Recorder(Forwarder):
    """A wire that keeps every byte of the agent's."""

    def __init__(self, target: int) -> None:
        self.sent = bytearray()
        super().__init__(target)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        if way == "up":
            reader = _Listening(reader, self.sent)  # type: ignore[assignment]
        await super()._pass(reader, writer, way)


class _Listening:
    def __init__(self, reader: asyncio.StreamReader, heard: bytearray) -> None:
        self._reader, self._heard = reader, heard

    async def read(self, size: int) -> bytes:
        data = await self._reader.read(size)
        self._heard += data
        return data


def configuration(directory: Path, fleet: int, sensors: int, shape: tuple[int, ...], label: str) -> Path:
    """A device with a ring, on two brokers."""
    rows, channels = shape if len(shape) == 2 else (1, shape[0])
    path = directory / "agent.toml"
    path.write_text(
        f"""
        [device]
        id = "{DEVICE}"
        fleet = "{FLEET}"
        state_dir = "state"
        [broker]
        host = "127.0.0.1"
        port = {fleet}
        [gateway]
        public_key = "{FLEET_KEY.public}"
        [data]
        source = "ring"
        [ring]
        flush_s = 0.2
        [inference]
        interval_s = 0.1
        [health]
        measure_s = 0.2
        publish_s = 0.2
        state_s = 0.0
        [sensors]
        label = {{ topic = "plant/condition"{label} }}
        window = {{ count = {rows}, order = "time-channel" }}
        [sensors.broker]
        host = "127.0.0.1"
        port = {sensors}
        """
        + "".join(
            f'[[sensors.channels]]\nname = "c{i}"\ntopic = "zigbee2mqtt/fan"\nfield = "c{i}"\n' for i in range(channels)
        )
    )
    return path


def fill_ring(directory: Path, form: Form, classes: int) -> None:
    """A few hundred examples that are nothing but marks."""
    rng = np.random.default_rng(5)
    ring = Ring(directory, form, RingConfig())
    for number in range(300):
        x = MARKS[rng.integers(len(MARKS), size=form.shape)]
        ring.append(x, number % classes if classes else LABEL_NUMBER, 1_800_000_000.0 + number)
    ring.close()


@pytest.fixture
def wires(tmp_path: Path) -> Iterator[tuple[Mosquitto, Recorder, Mosquitto, Recorder]]:
    """The fleet's broker and the sensors', each behind a wire that is watched."""
    with ExitStack() as stack:
        ends: list[Any] = []
        for name in ("fleet", "sensors"):
            broker = Mosquitto(tmp_path / name, persistence=False)
            stack.callback(broker.stop)
            ends += [broker, Recorder(broker.port)]
            stack.callback(ends[-1].close)
        yield tuple(ends)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("labelled", [True, False], ids=["classes", "numbers"])
def test_no_byte_of_an_example_or_a_label_leaves_a_real_agent(
    tmp_path: Path, wires: tuple[Mosquitto, Recorder, Mosquitto, Recorder], labelled: bool
) -> None:
    """It trains on a ring of marks, float32 deltas and all, hears more of them, predicts, complains, and ends.

    Both its sockets are watched; so is every topic that it publishes on.
    """
    fleet, wire, sensors, sensor_wire = wires
    bundle = BUNDLE_BYTES if labelled else without_labels()
    gateway_transport = MqttTransport("127.0.0.1", fleet.port, "gateway", max_incoming=8 << 20)
    state = tmp_path / "state"
    state.mkdir()
    (state / "device.key").write_text("64" * 32)
    assert SigningKey(bytes.fromhex("64" * 32)).public == DEVICE_KEY.public
    gateway = ScriptedGateway(gateway_transport, bundle, FLEET_KEY, FLEET, {DEVICE: DEVICE_KEY.public})
    gateway.codec = {"name": "none"}
    shape = gateway.bundle.x_shape
    words = f", classes = {list(LABEL_WORDS)}" if labelled else ""
    config = configuration(tmp_path, wire.port, sensor_wire.port, shape, words)
    from edge_agent.config import load_config

    form = load_config(config, {}).sensors.form
    fill_ring(state / "ring", form, len(gateway.bundle.labels))
    on_disk = b"".join(path.read_bytes() for path in (state / "ring").glob("*.ring"))
    assert all(struct.pack("<f", float(mark)) in on_disk for mark in MARKS)  # the search finds what is there

    house = MqttTransport("127.0.0.1", sensors.port, "house")
    house.start()
    watcher = MqttTransport("127.0.0.1", fleet.port, "watcher", max_incoming=8 << 20)
    watcher.start()
    watcher.subscribe([("#", 0)])
    topics: set[str] = set()
    log = (tmp_path / "log.txt").open("w")
    agent = subprocess.Popen(
        [sys.executable, "-m", "edge_agent", "run", "--config", str(config)],
        stderr=log,
        stdout=log,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    said = 0

    def turn() -> None:
        nonlocal said
        gateway.step()
        topics.update(event.topic for event in watcher.receive(0.0) if hasattr(event, "topic"))
        values = {f"c{i}": float(MARKS[(said + i) % len(MARKS)]) for i in range(form.shape[1])}
        house.publish("zigbee2mqtt/fan", str(values).replace("'", '"').encode(), qos=0)
        if said % 50 == 0:
            label = LABEL_WORDS[said // 50 % 3] if labelled else str(LABEL_NUMBER)
            house.publish("plant/condition", label.encode(), qos=0)
        said += 1
        house.receive(0.0)

    def done() -> bool:
        turn()
        predicted = not labelled or len(gateway.of(m.Prediction)) > 3
        return gateway.version >= 4 and predicted and len(gateway.of(m.Health)) > 3

    try:
        wait_until(done, 120, "four versions and predictions")
        heard = look(state / "ring").examples
        wait_until(lambda: (turn(), look(state / "ring").examples > heard)[1], 60, "windows")
        agent.terminate()
        assert agent.wait(20) == 0
    finally:
        agent.kill()
        agent.wait()
        log.close()
        for transport in (house, watcher, gateway_transport):
            transport.close()
    sent = bytes(wire.sent)
    assert len(sent) > 4 * 4 * gateway.bundle.layout.num_parameters  # four whole float32 deltas are in it
    assert gateway.updates[0].payload[:64] in sent  # and the wire has heard them
    assert DEVICE.encode() in sent
    assert found_in(sent) == set()
    assert found_in(bytes(sensor_wire.sent)) == set()
    assert b"zigbee2mqtt/fan" in sensor_wire.sent
    mine = {parse(name).kind for name in topics if f"/dev/{DEVICE}/" in name}
    assert {Kind.STATE, Kind.INFO, Kind.HEALTH, Kind.UPDATE} <= mine
    assert (Kind.PREDICTION in mine) == labelled  # the other model's first output is nearly what was measured
    assert mine <= set(LEAVING) | {Kind.RESULT, Kind.DESIRED, Kind.GRANT, Kind.CHUNK_DOWN, Kind.DELTA, Kind.SLOT}
    assert found_in((tmp_path / "log.txt").read_bytes()) == set()  # nor does it stand in the log


def without_labels() -> bytes:
    """The small model, as a regression: any number is a label."""
    return small_bundle(labels=())


def test_the_search_finds_what_it_looks_for() -> None:
    """A control: each mark, as each kind of number, in the middle of other bytes."""
    for mark in MARKS:
        for trace in traces(float(mark)):
            assert found_in(b"\x00\x01" + trace + b"\x02")
    assert found_in(str(LABEL_NUMBER).encode())
    assert found_in(struct.pack(">q", LABEL_NUMBER))
    assert not found_in(os.urandom(1 << 16))
