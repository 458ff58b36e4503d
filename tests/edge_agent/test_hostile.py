"""A hostile bundle reaches an agent: it says so with a code, in its state, as an event and in its log, and no graph of
it is ever loaded."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from edge_agent.__main__ import main
from edge_agent.events import SaveObject, Send, Train
from edge_agent.worker import ThreadWorker
from fl_protocol.bundle import Bundle
from fl_protocol.messages import DeviceEvent, DeviceState, Get
from fl_protocol.mqtt import MqttTransport
from fl_protocol.signing import SigningKey
from fl_protocol.topics import Kind
from tests.edge_agent.rig import (
    BUNDLE_BYTES,
    FLEET_KEY,
    STRANGERS_KEY,
    TASK,
    Rig,
    all_of,
    chunks_of,
    complaints,
)
from tests.edge_agent.scripted import ScriptedGateway
from tests.edge_agent.test_cli import DEVICE, FLEET, Running, fill, write_config
from tests.edge_agent.test_service import Bench
from tests.support.hostile_bundles import HOSTILE, oversized, with_graph, with_manifest, with_personal, with_wrong_hash
from tests.support.mosquitto import Mosquitto
from tests.support.waiting import wait_until

IN_GRAPHS = ("custom domain", "data in another file", "a billion elements", "branches within branches", "a function")
BUNDLES = {
    **{name: (with_graph(BUNDLE_BYTES, HOSTILE[name][0]), "E_SCHEMA", HOSTILE[name][1]) for name in IN_GRAPHS},
    "a file of another hash": (with_wrong_hash(BUNDLE_BYTES), "E_SHA", "does not have its SHA-256"),
    "an unknown feed": (with_manifest(BUNDLE_BYTES, feeds=["clock"]), "E_SCHEMA", "manifest is wrong"),
    "personal values": (with_personal(BUNDLE_BYTES, 4), "E_SIZE", "personal.f32 holds 4 bytes"),
    "no bundle": (b"#!/bin/sh\n" * 100, "E_SCHEMA", "not a bundle"),
    "oversized": (oversized(BUNDLE_BYTES), "E_SIZE", "at most 67108864 are read"),
}


def send(gateway: ScriptedGateway, data: bytes) -> None:
    """From now on the gateway's plan names these bytes."""
    sha256 = hashlib.sha256(data).hexdigest()
    gateway.bundle, gateway.bundle_bytes = replace(gateway.bundle, sha256=sha256), data
    gateway.objects[sha256] = data


def events(gateway: ScriptedGateway) -> list[DeviceEvent]:
    """What devices complained of."""
    return [message for message in gateway.of(DeviceEvent) if isinstance(message, DeviceEvent)]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench whose device has examples, and which fails when any graph is loaded."""

    def load(bundle: Bundle) -> NoReturn:
        raise AssertionError(f"a trainer was made for {bundle.name}")

    monkeypatch.setattr("tests.edge_agent.test_service.ThreadWorker", lambda _: ThreadWorker(load))
    bench = Bench(tmp_path)
    bench.fill()
    yield bench
    for service in bench.services:
        service.close()


@pytest.mark.parametrize("name", BUNDLES)
def test_an_agent_refuses_a_hostile_bundle_and_says_why(
    name: str, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """As an event with its code, in the log, and in the state while it waits for a better one."""
    data, code, said = BUNDLES[name]
    send(bench.gateway, data)
    caplog.set_level(logging.ERROR)
    bench.start()
    bench.until(lambda: events(bench.gateway), "an event")
    event = events(bench.gateway)[0]
    assert (event.event, event.code) == ("refused", code)
    assert said in event.message
    assert any(record.message.startswith(f"refused: {code}") for record in caplog.records)
    if name != "oversized":  # whose plan is refused: there is nothing to wait for

        def waits() -> bool:
            state = bench.gateway.of(DeviceState)[-1]
            return isinstance(state, DeviceState) and state.state == "sleeping" and code in state.why

        bench.until(waits, "a state that says why")
    assert not bench.gateway.updates


def test_bytes_that_are_not_those_of_the_plan_are_refused() -> None:
    """E_SHA, although the bundle itself is in order: nothing is stored, nothing trained."""
    rig = Rig()
    rig.connect()
    rig.desire(TASK)
    effects = rig.plan(bundle_sha256="0" * 64)
    (get,) = (send.message for send in all_of(Send, effects) if isinstance(send.message, Get))
    for chunk in chunks_of(BUNDLE_BYTES, get.chunk_size):
        effects += rig.hear(Kind.CHUNK_DOWN, replace(chunk, sha256="0" * 64))
    assert [complaint.code for complaint in complaints(effects)] == ["E_SHA"]
    assert not all_of(SaveObject, effects)
    assert not all_of(Train, effects)


def test_a_plan_that_a_stranger_signed_names_nothing(bench: Bench) -> None:
    """E_SIG: its bundle is not even asked for."""
    bench.gateway.key = STRANGERS_KEY
    bench.start()
    bench.until(lambda: events(bench.gateway), "an event")
    assert {event.code for event in events(bench.gateway)} == {"E_SIG"}
    assert not bench.gateway.updates


def test_the_process_that_refused_a_bundle_has_not_loaded_onnxruntime(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """Over a real broker: none of its libraries is mapped; after a good bundle they are."""
    config = write_config(tmp_path, mosquitto.port)
    fill(tmp_path / "data")
    assert main(["identity", "--config", str(config)]) == 0
    key = SigningKey(bytes.fromhex((tmp_path / "state/device.key").read_text())).public
    transport = MqttTransport("127.0.0.1", mosquitto.port, "gateway")
    gateway = ScriptedGateway(transport, BUNDLE_BYTES, FLEET_KEY, FLEET, {DEVICE: key})
    good = gateway.bundle
    send(gateway, with_graph(BUNDLE_BYTES, HOSTILE["custom domain"][0]))
    agent = Running(config)

    def loaded() -> bool:
        return "onnxruntime" in Path(f"/proc/{agent.process.pid}/maps").read_text()

    def turn(condition: bool) -> bool:
        gateway.step()
        return condition

    try:
        wait_until(lambda: turn(bool(events(gateway))), 30, "an event")
        assert "E_SCHEMA" in agent.log
        assert not loaded()
        gateway.bundle, gateway.bundle_bytes = good, BUNDLE_BYTES
        gateway.publish()
        wait_until(lambda: turn(gateway.version >= 1), 30, "a version of the good bundle")
        assert loaded()
    finally:
        agent.process.kill()
        agent.process.wait()
        transport.close()
