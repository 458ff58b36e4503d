"""From a ticket to mutual TLS with real programs: mosquitto, the aggregator, agents, and kill -9."""

import json
import signal
import time
from collections.abc import Iterator

import pytest

from fl_protocol.broker import BrokerConfig
from fl_protocol.codec import encode
from fl_protocol.connecting import transport_to
from fl_protocol.enrolling import NOTHING
from fl_protocol.messages import Enroll
from fl_protocol.topics import Kind, build
from tests.support.gatehouse import FLEET, Gatehouse
from tests.support.peer import Peer
from tests.support.waiting import wait_until


@pytest.fixture
def house(tmp_path) -> Iterator[Gatehouse]:
    house = Gatehouse(tmp_path)
    yield house
    house.close()


def connected(house: Gatehouse, name: str) -> None:
    wait_until(lambda: f"connected to the broker at 127.0.0.1:{house.port}" in house.log(name), 30, f"{name} connects")


def test_from_a_ticket_to_mutual_tls_and_out_again(house) -> None:
    """A card with a ticket gets in, a copy of it does not, and a revoked device is out within ten seconds."""
    ticket = house.ticket("fan-01")
    assert ticket.stat().st_mode & 0o777 == 0o600
    card = house.device("card", ticket)
    house.boot(card)
    connected(house, "card")
    wait_until(lambda: "fan-01 has enrolled" in house.log("aggregator"), what="the claim is used up")
    assert json.loads(house.command("device", "tickets", "--json").stdout) == []
    assert (card / "identity" / "device.pem").stat().st_mode & 0o777 == 0o600
    assert not (card / "identity" / "request.key").exists()

    house.boot(house.device("copy", ticket))
    wait_until(lambda: "E_CLAIM" in house.log("copy"), 30, "the copy is refused")
    assert "E_CLAIM" in house.log("aggregator")

    began = time.monotonic()
    assert house.command("device", "revoke", "fan-01").returncode == 0
    house.reload_broker()
    wait_until(lambda: "CERTIFICATE_REVOKED" in house.log("card"), 10, "the device is out, and does not come back")
    assert time.monotonic() - began < 10


def test_a_power_cut_in_the_middle_of_enrolment(house) -> None:
    """The key that asked is on the disk: after the cut it asks again, and gets the certificate that it asked for."""
    card = house.device("card", house.ticket("fan-01"))
    house.processes["aggregator"].send_signal(signal.SIGSTOP)
    house.boot(card)
    wait_until(lambda: (card / "identity" / "request.key").exists(), 30, "the device has made its key")
    wait_until(lambda: "/req'" in house.log("broker"), 30, "it has asked")
    key = (card / "identity" / "request.key").read_bytes()
    house.kill("card")
    house.processes["aggregator"].send_signal(signal.SIGCONT)
    wait_until(lambda: "certificate" in house.log("aggregator"), 30, "the gateway has issued it")
    house.boot(card)
    connected(house, "card")
    assert key in (card / "identity" / "device.pem").read_bytes()


def test_a_killed_gateway_remembers_its_claims(house) -> None:
    """kill -9 between ticket and device."""
    card = house.device("card", house.ticket("fan-01"))
    house.kill("aggregator")
    house.boot(card)
    house.start_aggregator()
    connected(house, "card")


def test_two_tickets_on_one_image_are_two_devices(house) -> None:
    """The card is the same, the ticket is not."""
    for name in ("fan-01", "fan-02"):
        house.boot(house.device(name, house.ticket(name)))
    for name in ("fan-01", "fan-02"):
        connected(house, name)
    devices = json.loads(house.command("devices", "--json").stdout)
    assert {d["id"] for d in devices} == {"fan-01", "fan-02"}


def test_a_claim_reads_no_models(house) -> None:
    """On the enrolment's listener nothing is heard but the answer to one's own request."""
    house.ticket("fan-01")
    broker = BrokerConfig(host="127.0.0.1", port=house.enroll_port, username="c1", ca=house.pki / "ca.pem")
    with Peer(transport_to(broker, "spy", session_expiry_s=0)) as spy:
        spy.connected()
        own = build(Kind.ENROLLED, FLEET, claim="c1")
        spy.transport.subscribe(
            [(name, 1) for name in (f"fl/1/{FLEET}/#", build(Kind.ENROLLED, FLEET, claim="+"), own)]
        )
        card = house.device("card", house.ticket("fan-02"))
        house.boot(card)
        connected(house, "card")
        asked = Enroll(csr="", public_key="0" * 64, proof=NOTHING)
        spy.transport.publish(build(Kind.ENROLL, FLEET, claim="c1"), encode(asked))
        spy.until(lambda: any(d.topic == own for d in spy.deliveries), "the answer to its own request")
        assert {d.topic for d in spy.deliveries} == {own}
