"""From a ticket to a certificate: done once, and gone on with after a power cut at any moment.

The folder holds `request.key` (what is asked for, on the disk before anybody hears of it), then `ca.pem`, `device.pem`
(key and certificate, one file so that they always fit), and at last `identity.toml`: with it the device is enrolled.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edge_agent.config import EnrollConfig
from edge_agent.health import serial_number
from edge_agent.leaving import check_leaving
from edge_agent.notify import Notifier
from fl_protocol.broker import BrokerConfig
from fl_protocol.certificates import (
    PrivateKey,
    check_issued,
    fingerprint,
    key_pem,
    load_key,
    make_key,
    make_request,
)
from fl_protocol.codec import encode
from fl_protocol.connecting import transport_to
from fl_protocol.durable import write_durably
from fl_protocol.enrolling import NOTHING, prove
from fl_protocol.errors import ConfigError, ProtocolError
from fl_protocol.messages import Certified, Enroll
from fl_protocol.settings import read_table
from fl_protocol.signing import SigningKey, unseal
from fl_protocol.succession import newest_key
from fl_protocol.ticket import Ticket, load_ticket
from fl_protocol.topics import Kind, build
from fl_protocol.transport import Connected, Delivery, Disconnected, Incoming, Transport

log = logging.getLogger("edge_agent")
ASK_S = 15.0  # without an answer it is asked again
LOOK_S = 0.5
Connect = Callable[..., Transport]
REQUEST, DEVICE, AUTHORITY, IDENTITY = "request.key", "device.pem", "ca.pem", "identity.toml"


def is_enrolled(config: EnrollConfig) -> bool:
    """Whether the device has a certificate, by the ticket that it holds now if there is one that can be read."""
    identity = config.directory / IDENTITY
    if not identity.exists():
        return False
    if not config.ticket.exists():
        return True
    known = read_table(identity).get("enroll", {}).get("claim")
    try:
        return bool(known == load_ticket(config.ticket).claim)
    except ConfigError as error:
        log.warning("%s; going on with the certificate that is here", error.message)
        return True


def enroll(config: EnrollConfig, signing: SigningKey, stop: threading.Event, notifier: Notifier | None = None) -> bool:
    """Ask until the gateway gives a certificate; False when asked to stop before. Raises `ConfigError`, `OSError`."""
    notifier, enrolling = notifier or Notifier({}), Enrolling(config, signing)
    notifier.ready()
    try:
        while not stop.is_set():
            notifier.alive(time.monotonic())
            if enrolling.step(LOOK_S):
                return True
    finally:
        enrolling.close()
    return False


def request_key(folder: Path) -> PrivateKey:
    """The key that a certificate is asked for, on the disk before it is. Raises `ConfigError`, `OSError`."""
    path = folder / REQUEST
    if not path.exists():
        write_durably(path, key_pem(make_key()), mode=0o600)
    return load_key(path.read_bytes())


def _keep(folder: Path, ticket: Ticket, fleet_key: str, key: PrivateKey, answer: Certified) -> None:
    broker = ticket.broker
    write_durably(folder / DEVICE, key_pem(key) + answer.certificate.encode(), mode=0o600)
    text = f"""\
# Made by the enrolment; the agent's own configuration stands above it.
[device]
id = "{answer.device}"
fleet = "{ticket.fleet}"

[gateway]
public_key = "{fleet_key}"

[broker]
host = "{broker.host}"
port = {broker.port}
ca = "{AUTHORITY}"
certificate = "{DEVICE}"

[enroll]
claim = "{ticket.claim}"
"""
    write_durably(folder / IDENTITY, text.encode(), mode=0o600)
    with suppress(FileNotFoundError):
        (folder / REQUEST).unlink()


class Enrolling:
    """One claim's conversation with the gateway. Raises `ConfigError` for a ticket that is none, `OSError`."""

    def __init__(self, config: EnrollConfig, signing: SigningKey, connect: Connect = transport_to) -> None:
        self._folder, self._ticket = config.directory, load_ticket(config.ticket)
        ticket, self._key = self._ticket, request_key(config.directory)
        self._fleet_key = ticket.public_key
        self._to = build(Kind.ENROLL, ticket.fleet, claim=ticket.claim)
        self._from = build(Kind.ENROLLED, ticket.fleet, claim=ticket.claim)
        csr = make_request(self._key, ticket.claim)
        request = Enroll(csr=csr, public_key=signing.public, proof=NOTHING, hardware=serial_number())
        self._payload = encode(prove(request, ticket.secret, ticket.fleet, ticket.claim))
        self._connected, self._due = False, 0.0
        write_durably(self._folder / AUTHORITY, ticket.ca.encode())
        host, port = ticket.broker.host, ticket.broker.enroll_port
        broker = BrokerConfig(host=host, port=port, username=ticket.claim, ca=self._folder / AUTHORITY)
        client_id = f"{ticket.claim}.{fingerprint(self._key.public_key())[:8]}"
        self._transport = connect(broker, client_id, session_expiry_s=0)
        log.info("no certificate yet: asking %s:%d by claim %s", host, port, ticket.claim)
        self._transport.start()

    def step(self, patience_s: float) -> bool:
        """Wait at most so long for something to happen, and see to it; True once the device is enrolled."""
        for incoming in self._transport.receive(patience_s):
            answer = self._heard(incoming)
            if answer is not None:
                _keep(self._folder, self._ticket, self._fleet_key, self._key, answer)
                log.info("enrolled in fleet %s as %s", self._ticket.fleet, answer.device)
                return True
        now = time.monotonic()
        if self._connected and now >= self._due:
            self._due = now + ASK_S
            check_leaving(self._to, self._payload)
            self._transport.publish(self._to, self._payload)
        return False

    def close(self) -> None:
        """Let go of the connection."""
        self._transport.close()

    def _heard(self, incoming: Incoming) -> Certified | None:
        """The answer that ends it."""
        match incoming:
            case Connected():
                self._connected, self._due = True, 0.0
                self._transport.subscribe([(self._from, 1)])
            case Disconnected(reason, retry_in_s):
                self._connected = False
                log.warning("cannot reach the gateway (%s); trying again in %.0f s", reason, retry_in_s)
            case Delivery(topic, payload, receipt=receipt):
                if receipt is not None:
                    self._transport.acknowledge(receipt)
                return self._answered(topic, payload)
        return None

    def _answered(self, topic: str, payload: bytes) -> Certified | None:
        ticket = self._ticket
        try:
            key = newest_key(payload, self._fleet_key, self._ticket.fleet)
            answer = unseal(Certified, payload, key, ticket.fleet, topic)
            self._fleet_key = key
            if answer.key != fingerprint(self._key.public_key()):
                if answer.key == NOTHING:
                    log.warning("the gateway refuses the request: %s %s", answer.code, answer.why)
                return None  # another device asks by a copy of this ticket
            if answer.status == "issued":
                check_issued(answer.certificate, ticket.ca.encode(), self._key.public_key(), answer.device or "")
                return answer
        except ProtocolError as error:
            log.warning("not the gateway's answer: %s", error)
            return None
        level = logging.ERROR if answer.status == "refused" else logging.INFO
        log.log(level, "%s: %s %s; asking again in %d s", answer.status, answer.code, answer.why, answer.retry_in_s)
        self._due = time.monotonic() + answer.retry_in_s
        return None
