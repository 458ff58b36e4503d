"""Over a real mosquitto that takes small packets only: whichever end starts again goes on where it was."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fl_protocol.codec import decode_as, encode
from fl_protocol.file_source import FileSource, sha256_of
from fl_protocol.messages import Chunk, Get, Grant, Offer
from fl_protocol.mqtt import MqttTransport
from fl_protocol.parts import FileParts
from fl_protocol.transfer import Fetch, Inbox, Outgoing, Upload, chunk_size_for
from fl_protocol.transport import Connected, Delivery, Disconnected
from tests.support.mosquitto import Mosquitto
from tests.support.waiting import wait_until

SIZE, CAP = 1_500_000, 20_000
ABOUT = {"task": "fan", "incarnation": "0" * 16, "seq": 1, "base_version": 0, "fingerprint": "0" * 32}


class End:
    """One end's connection; `die` drops it in the middle of whatever it did, and the next one has its client id."""

    def __init__(self, broker: Mosquitto, name: str, hears: list[str]) -> None:
        self.transport = MqttTransport("127.0.0.1", broker.port, name, reconnect_min_s=0.05, reconnect_max_s=0.2)
        self._hears, self.limits = hears, None
        self.transport.start()

    def heard(self) -> Iterator[tuple[str, bytes]]:
        """What has come, acknowledged when the next is asked for; subscribes when it connects."""
        for event in self.transport.receive(0.01):
            match event:
                case Connected(limits=limits):
                    self.limits = limits
                    self.transport.subscribe([(topic, 1) for topic in self._hears])
                    yield "connected", b""
                case Disconnected():
                    yield "disconnected", b""
                case Delivery(topic=topic, payload=payload, receipt=receipt):
                    yield topic, payload
                    if receipt is not None:
                        self.transport.acknowledge(receipt)


@pytest.fixture
def broker(mosquitto_with: Callable[..., Mosquitto]) -> Mosquitto:
    """Packets of 20 kB at most."""
    return mosquitto_with(f"max_packet_size {CAP}")


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    """Closes what is given to it."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    """The object on its sender's disk."""
    path = tmp_path / "object"
    path.write_bytes(random.Random(9).randbytes(SIZE))
    return FileSource(path, sha256_of(path))


def test_an_upload_outlives_both_ends(
    broker: Mosquitto, source: FileSource, tmp_path: Path, closing: ExitStack
) -> None:
    """Gateway and device start again at a third and at two thirds, and the broker forgets nobody's session."""
    chunk_size = chunk_size_for("5", CAP)
    sent: list[int] = []
    restarts: list[float] = []
    finished: list[bool] = []

    class State:
        device = gateway = None  # made anew at each start

    def start_device() -> None:
        State.device = End(broker, "device", ["dn/grant"])
        State.upload = Upload(source, chunk_size, **ABOUT, retry_s=0.5)
        closing.callback(State.device.transport.close)

    def start_gateway(now: float) -> None:
        State.gateway = End(broker, "gateway", ["up/offer", "up/chunk"])
        State.parts = FileParts(tmp_path / "uploads")
        State.inbox = Inbox(1 << 22, 60, retry_s=0.5, parts=State.parts, now=now)
        closing.callback(State.gateway.transport.close)

    now = [0.0]
    start_gateway(0.0)
    start_device()

    def step() -> bool:
        now[0] += 0.02
        device, gateway = State.device, State.gateway
        for topic, payload in device.heard():
            if topic == "connected":
                State.upload.resume()
            elif topic == "dn/grant":
                for chunk in State.upload.granted(decode_as(Grant, payload), now[0]):
                    sent.append(chunk.index)
                    device.transport.publish("up/chunk", encode(chunk))
        if device.limits and (offer := State.upload.offer(now[0])):
            device.transport.publish("up/offer", encode(offer))
        for topic, payload in gateway.heard():
            if topic == "up/offer":
                offer = decode_as(Offer, payload)
                reception = State.inbox.open(offer.sha256, offer.size, offer.chunk_size, "ann", now[0])
                gateway.transport.publish("dn/grant", encode(reception.offered(now[0])))
            elif topic == "up/chunk" and (found := State.inbox.get("ann", source.sha256)) and not found.done:
                if found.add(decode_as(Chunk, payload), now[0]):
                    found.verify()
                    finished.append(State.parts.finish(f"ann.{source.sha256}", tmp_path / "uploads" / "whole"))
                elif grant := found.next_grant(now[0]):
                    gateway.transport.publish("dn/grant", encode(grant))
                if len(restarts) < 2 and found.progress > (len(restarts) + 1) / 3:
                    restarts.append(found.progress)
                    (gateway if len(restarts) == 1 else device).transport.close()
                    start_gateway(now[0]) if len(restarts) == 1 else start_device()
                    return False
        for _, grant in State.inbox.next_grants(now[0]):
            gateway.transport.publish("dn/grant", encode(grant))
        return bool(finished)

    wait_until(step, 60, "the object")
    assert len(restarts) == 2
    assert (tmp_path / "uploads" / "whole").read_bytes() == source.read(0, SIZE)
    assert sorted(path.name for path in (tmp_path / "uploads").iterdir()) == ["whole"]
    assert {*sent} == {*range(-(-SIZE // chunk_size))}
    assert len(sent) <= len({*sent}) + 2 * 32  # two windows at each restart


def test_a_download_outlives_both_ends(
    broker: Mosquitto, source: FileSource, tmp_path: Path, closing: ExitStack
) -> None:
    """The device starts again at each quarter: it asks for what it has not, and the file takes its name once."""
    chunk_size = chunk_size_for("5", CAP)
    gateway = End(broker, "gateway", ["up/get"])
    closing.callback(gateway.transport.close)
    outgoing = Outgoing(source, chunk_size)
    sent: list[int] = []
    restarts = [0.25, 0.5, 0.75]

    class State:
        device = fetch = None

    def start() -> None:
        State.device = End(broker, "device", ["dn/chunk"])
        State.parts = FileParts(tmp_path / "objects")
        part = State.parts.open(source.sha256, source.sha256, SIZE, chunk_size)
        State.fetch = Fetch(source.sha256, SIZE, chunk_size, retry_s=0.5, part=part)
        closing.callback(State.device.transport.close)

    start()
    assert State.fetch.progress == 0
    now = [0.0]

    def step() -> bool:
        now[0] += 0.02
        for topic, payload in gateway.heard():
            if topic == "up/get":
                get = decode_as(Get, payload)
                for chunk in outgoing.chunks(get.missing, get.window):
                    sent.append(chunk.index)
                    gateway.transport.publish("dn/chunk", encode(chunk), qos=0)
        for topic, payload in State.device.heard():
            if topic == "connected":
                State.fetch.resume()
            elif topic == "dn/chunk" and State.fetch.add(decode_as(Chunk, payload), now[0]):
                State.fetch.verify()
                return State.parts.finish(source.sha256, tmp_path / "objects" / source.sha256)
            if restarts and State.fetch.progress > restarts[0]:
                before = State.fetch.progress
                restarts.pop(0)
                State.device.transport.close()
                start()
                assert State.fetch.progress == before
                return False
        if State.device.limits and (get := State.fetch.next_get(now[0])):
            State.device.transport.publish("up/get", encode(get))
        return False

    wait_until(step, 60, "the object")
    assert restarts == []
    assert sha256_of(tmp_path / "objects" / source.sha256) == source.sha256
    assert [path.name for path in (tmp_path / "objects").iterdir()] == [source.sha256]
    assert len(sent) <= len({*sent}) + 3 * 32
