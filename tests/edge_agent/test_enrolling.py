"""The device's side of enrolment and renewal: what it believes, and what is on its disk whenever the power fails."""

import datetime as dt
import ssl
import threading
from pathlib import Path

import pytest

from broker_aggregator.pki import Pki, make_pki
from edge_agent import enrolling
from edge_agent.config import EnrollConfig, load_config
from edge_agent.enrolling import Enrolling, enroll, is_enrolled, request_key
from edge_agent.renewing import Renewal
from fl_protocol.broker import BrokerConfig
from fl_protocol.certificates import fingerprint, load_key, make_key, make_request
from fl_protocol.codec import decode_as
from fl_protocol.enrolling import claim_secret, is_proven, verify_renewal
from fl_protocol.errors import ConfigError
from fl_protocol.memory import MemoryTransport
from fl_protocol.memory_broker import MemoryBroker
from fl_protocol.messages import Certified, Enroll, Renew
from fl_protocol.signing import SigningKey, seal
from fl_protocol.ticket import Ticket, TicketBroker, load_ticket
from fl_protocol.topics import Kind, build
from fl_protocol.transport import Delivery
from tests.support.peer import Peer

FLEET, CLAIM, DEVICE = "farm", "c1", "fan-01"
FLEET_KEY, DEVICE_KEY = SigningKey(b"f" * 32), SigningKey(b"d" * 32)
NOW = dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
NOW_MS = round(NOW.timestamp() * 1000)


@pytest.fixture(scope="module")
def pki(tmp_path_factory) -> Pki:
    folder = tmp_path_factory.mktemp("pki")
    make_pki(folder, FLEET, ["localhost"], NOW)
    return Pki(folder)


@pytest.fixture
def config(pki, tmp_path) -> EnrollConfig:
    secret = claim_secret(FLEET_KEY, FLEET, CLAIM)
    ticket = Ticket(
        fleet=FLEET,
        claim=CLAIM,
        secret=secret,
        public_key=FLEET_KEY.public,
        issued=NOW_MS // 1000,
        ca=pki.authority.certificate_pem.decode(),
        broker=TicketBroker(host="gw.local", port=1883, enroll_port=1884),
    )
    (tmp_path / "ticket.toml").write_text(ticket.to_toml())
    return EnrollConfig(ticket=tmp_path / "ticket.toml", directory=tmp_path / "identity")


class Scene:
    """A gateway that answers as it should, or as a liar would, and a device; they take turns."""

    def __init__(self, pki: Pki, config: EnrollConfig) -> None:
        self.pki, self.config, self.broker = pki, config, MemoryBroker()
        self.peer = Peer(MemoryTransport(self.broker, "gateway"))
        self.peer.connected()
        self.peer.subscribe(build(Kind.ENROLL, FLEET, claim="+"))
        self.seen, self.enrolled = 0, False
        self.device: Enrolling | None = None

    def start(self) -> "Scene":
        """The device begins; after a power cut as well."""
        self.device = Enrolling(self.config, DEVICE_KEY, lambda _, name, **__: MemoryTransport(self.broker, name))
        return self

    def turn(self) -> bool:
        """The device does what is to be done."""
        assert self.device is not None
        self.enrolled = self.enrolled or self.device.step(0.0)
        return self.enrolled

    def request(self) -> Enroll:
        """The next request."""
        self.peer.until(lambda: self.turn() or len(self.peer.deliveries) > self.seen, "a request")
        self.seen += 1
        return decode_as(Enroll, self.peer.deliveries[self.seen - 1].payload)

    def answer(self, by: SigningKey = FLEET_KEY, **fields: object) -> None:
        """Say something about a claim."""
        topic = build(Kind.ENROLLED, FLEET, claim=CLAIM)
        self.peer.transport.publish(topic, seal(Certified(**fields), by, FLEET, topic))  # type: ignore[arg-type]

    def issue(self, request: Enroll, name: str = DEVICE, **fields: object) -> None:
        """A certificate for the request's key."""
        made = self.pki.issue(name, request.csr, NOW_MS, 90)
        self.answer(**{"status": "issued", "key": made.key, "device": DEVICE, "certificate": made.pem, **fields})

    def finish(self) -> "Scene":
        """Until the device is enrolled."""
        self.peer.until(self.turn, "the enrolment")
        return self


@pytest.fixture
def scene(pki, config, monkeypatch) -> Scene:
    monkeypatch.setattr(enrolling, "ASK_S", 0.05)
    return Scene(pki, config)


def test_a_device_enrols(scene, config) -> None:
    """With a proof that the gateway can check; then everything is on the disk, and the configuration knows it."""
    asked = scene.start().request()
    assert is_proven(asked, claim_secret(FLEET_KEY, FLEET, CLAIM), FLEET, CLAIM)
    scene.issue(asked)
    scene.finish()
    assert is_enrolled(config)
    file = config.directory.parent / "agent.toml"
    file.write_text('[enroll]\nticket = "ticket.toml"\ndirectory = "identity"\n[data]\npath = "d"\n')
    read = load_config(file, {})
    assert (read.device.id, read.device.fleet, read.gateway.public_key) == (DEVICE, FLEET, FLEET_KEY.public)
    assert read.broker.address == ("gw.local", 1883)
    assert read.broker.tls() is not None


def test_lies_are_not_believed(scene, config, pki) -> None:
    """Another's signature, another authority's certificate, another key's, another name's: it goes on asking."""
    asked = scene.start().request()
    scene.issue(asked, key=fingerprint(make_key().public_key()))  # meant for another device
    scene.issue(asked, by=SigningKey(b"x" * 32))
    scene.issue(asked, name="another")
    foreign = pki.folder.parent / "foreign"
    make_pki(foreign, FLEET, ["localhost"], NOW)
    scene.issue(asked, certificate=Pki(foreign).issue(DEVICE, asked.csr, NOW_MS, 90).pem)
    scene.request()
    scene.request()
    assert not is_enrolled(config)
    scene.issue(asked)
    scene.finish()


@pytest.mark.parametrize("written", ["request.key", "ca.pem", "device.pem", "identity.toml"])
def test_a_power_cut_at_each_file(scene, config, pki, monkeypatch, written) -> None:
    """Whatever is on the disk, the next start asks by the same key, or is enrolled already."""
    real, cut, keys = enrolling.write_durably, [], []

    def until_the_cut(path: Path, *arguments: object, **options: object) -> None:
        if path.name == written and not cut:
            cut.append(path)
            raise OSError("the power is gone")
        real(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(enrolling, "write_durably", until_the_cut)

    def first_life() -> None:
        asked = scene.start().request()
        keys.append(pki.key_of(asked.csr))
        scene.issue(asked)
        scene.finish()

    with pytest.raises(OSError, match="power"):
        first_life()
    assert not is_enrolled(config)
    asked = scene.start().request()
    keys.append(pki.key_of(asked.csr))
    scene.issue(asked)
    scene.finish()
    assert len(set(keys)) == 1
    assert is_enrolled(config)


def test_a_device_that_waits_or_is_refused_asks_again(scene) -> None:
    """After as long as the gateway says."""
    asked = scene.start().request()
    key = scene.pki.key_of(asked.csr)
    for status in ("waiting", "refused"):
        scene.answer(status=status, key=key, code="", why="because", retry_in_s=0)
        scene.request()
    scene.issue(asked)
    scene.finish()


def test_a_device_that_is_asked_to_stop(config) -> None:
    """SIGTERM while nobody answers: it ends, and is not enrolled."""
    stop = threading.Event()
    stop.set()
    assert enroll(config, DEVICE_KEY, stop) is False


def test_another_ticket_means_another_enrolment(scene, config) -> None:
    """A card that got a new ticket asks again, though it has a certificate; without a ticket it has what it has."""
    scene.issue(scene.start().request())
    scene.finish()
    config.ticket.write_text(config.ticket.read_text().replace(f'claim = "{CLAIM}"', 'claim = "c2"'))
    assert not is_enrolled(config)
    config.ticket.write_text("damaged = ")  # by a bad card: no reason to stop what works
    assert is_enrolled(config)
    config.ticket.unlink()
    assert is_enrolled(config)


def test_a_ticket_that_is_none(tmp_path) -> None:
    """The error says what is wrong and who makes one."""
    with pytest.raises(ConfigError, match="device ticket"):
        load_ticket(tmp_path / "none.toml")
    (tmp_path / "big.toml").write_bytes(b"#" * 20_000)
    with pytest.raises(ConfigError, match="20000 bytes"):
        load_ticket(tmp_path / "big.toml")
    (tmp_path / "short.toml").write_text('fleet = "f"\nsecret = "abc"\n')
    with pytest.raises(ConfigError) as caught:
        load_ticket(tmp_path / "short.toml")
    assert "abc" not in str(caught.value)


@pytest.fixture
def renewal(scene, config) -> Renewal:
    scene.issue(scene.start().request())
    scene.finish()
    context = ssl.create_default_context()
    return Renewal(config.directory, context, DEVICE_KEY, FLEET, DEVICE, lambda: FLEET_KEY.public)


TOPIC = build(Kind.CERTIFICATE, FLEET, device=DEVICE)


def asked_by(peer: Peer) -> list[Renew]:
    return [decode_as(Renew, d.payload) for d in peer.deliveries]


def test_a_certificate_is_renewed_after_two_thirds_of_its_life(renewal, config, pki) -> None:
    """Not before, and not without a clock; key and certificate are in one file, and the next is due later."""
    broker = MemoryBroker()
    listener = Peer(MemoryTransport(broker, "listener"))
    listener.connected()
    listener.subscribe(build(Kind.RENEW, FLEET, device="+"))
    own = MemoryTransport(broker, "own")
    device = Peer(own)
    assert not renewal.takes(device.connected(), own)
    day_ms = 86_400_000
    before = (config.directory / "device.pem").read_bytes()
    for wall_ms in (0, NOW_MS, NOW_MS + 58 * day_ms):
        renewal.tick(0.0, wall_ms, own)
    due = NOW_MS + 61 * day_ms
    renewal.tick(1.0, due, own)
    renewal.tick(2.0, due, own)  # it waits for an answer
    listener.until(lambda: bool(listener.deliveries), "the request")
    (request,) = asked_by(listener)
    verify_renewal(request, DEVICE_KEY.public, FLEET, DEVICE)
    assert (config.directory / "device.pem").read_bytes() == before
    made = pki.issue(DEVICE, request.csr, due, 90)
    said = Certified(status="issued", key=made.key, device=DEVICE, certificate=made.pem)
    assert renewal.takes(Delivery(TOPIC, seal(said, FLEET_KEY, FLEET, TOPIC), False, None), own)
    after = (config.directory / "device.pem").read_bytes()
    assert made.pem.encode() in after
    assert fingerprint(load_key(after).public_key()) == made.key
    assert not (config.directory / "request.key").exists()
    renewal.tick(1e6, due, own)
    assert not (config.directory / "request.key").exists()  # nothing was asked again


def test_a_false_renewal_changes_nothing(renewal, config, pki) -> None:
    """By another signature, or for another key."""
    before = (config.directory / "device.pem").read_bytes()
    own = MemoryTransport(MemoryBroker(), "own")
    made = pki.issue(DEVICE, make_request(make_key(), "x"), NOW_MS, 90)
    said = Certified(status="issued", key=made.key, device=DEVICE, certificate=made.pem)
    for key in (SigningKey(b"x" * 32), FLEET_KEY):
        assert renewal.takes(Delivery(TOPIC, seal(said, key, FLEET, TOPIC), False, None), own)
    assert (config.directory / "device.pem").read_bytes() == before


def test_without_a_clock_the_authority_is_checked_and_dates_are_not(pki, tmp_path, monkeypatch) -> None:
    """A Pi at its first start lives in 1970; the flag is set for nobody else."""
    broker = BrokerConfig(host="gw", ca=pki.folder / "ca.pem")
    no_check = 0x200000
    for year, unchecked in ((1970, True), (2028, False)):

        class Clock(dt.datetime):
            @classmethod
            def now(cls, tz=None, year=year):
                return dt.datetime(year, 1, 1, tzinfo=tz)

        monkeypatch.setattr("fl_protocol.broker.dt.datetime", Clock)
        context = broker.tls()
        assert context is not None
        assert bool(context.verify_flags & no_check) == unchecked
        assert context.verify_mode == ssl.CERT_REQUIRED


def test_a_key_of_its_own_is_made_once(tmp_path) -> None:
    """It is on the disk, for its owner alone, before it is used."""
    key = request_key(tmp_path)
    assert fingerprint(request_key(tmp_path).public_key()) == fingerprint(key.public_key())
    assert (tmp_path / "request.key").stat().st_mode & 0o777 == 0o600
