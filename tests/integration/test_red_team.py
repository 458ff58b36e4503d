"""Who holds the broker, a device's keys or old messages tries it on real programs: refused, logged, and all goes on.

The attacker here is connected as the gateway itself: whoever runs the broker can say anything on any topic. What the
broker refuses before that is in tests/deploy/test_red_team_broker.py.
"""

import contextlib
import datetime as dt
import json
import signal
import sqlite3
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from broker_aggregator.authority import Authority
from fl_protocol.broker import BrokerConfig
from fl_protocol.certificates import key_pem, make_key
from fl_protocol.codec import decode_as, encode
from fl_protocol.connecting import transport_to
from fl_protocol.keyfile import load_or_create_key
from fl_protocol.messages import Desired, Envelope, Manifest, Update
from fl_protocol.signing import SigningKey, seal, seal_update, unseal_update
from fl_protocol.succession import hand_over
from fl_protocol.topics import Kind, build
from fl_protocol.transport import Disconnected
from tests.support.gatehouse import FLEET, Gatehouse
from tests.support.learning import TASK, learning_house, status, wait_version
from tests.support.peer import Peer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(400)
DEVICE, THIEF = "fan-01", SigningKey(b"t" * 32)
DEEP = b"\x91" * 200_000  # msgpack: a list in a list in a list
WIDE = b"\xdd\xff\xff\xff\xff"  # a list of four billion
LONG = b"\x81\xa4body\xc6\xff\xff\xff\xff"  # four gigabytes of bytes are said to follow


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gatehouse]:
    house, _ = learning_house(tmp_path_factory.mktemp("red-team"))
    yield house
    house.close()


@pytest.fixture
def attacker(house: Gatehouse) -> Iterator[Peer]:
    services = house.pki / "services"
    tls = {"ca": house.pki / "ca.pem", "certificate": services / "aggregator.pem", "key": services / "aggregator.key"}
    config = BrokerConfig(host="127.0.0.1", port=house.service_port, **tls)
    with Peer(transport_to(config, "attacker", session_expiry_s=0)) as peer:
        peer.connected()
        yield peer


@pytest.fixture(autouse=True)
def alive_and_well(house: Gatehouse) -> Iterator[None]:
    """After each attack the same processes go on learning from each other."""
    programs = dict(house.processes)
    yield
    wait_version(house, status(house)["version"] + 2, 120)
    assert house.processes == programs
    assert all(process.poll() is None for process in programs.values())


def topic(kind: Kind, **ids: str) -> str:
    return build(kind, FLEET, **{"device": DEVICE, "task": TASK, "channel": "stable", **ids})


def says(house: Gatehouse, program: str, before: str, *words: str) -> None:
    def said() -> bool:
        new = house.log(program).removeprefix(before)
        return any(all(word in line for word in words) for line in new.splitlines())

    wait_until(said, 60, f"the log of {program} says {words}")


def first_of(attacker: Peer, name: str, such: Callable[[bytes], bool] = bool) -> bytes:
    """The next message on a topic."""
    attacker.transport.subscribe([(name, 1)])
    found: list[bytes] = []

    def met() -> bool:
        attacker.acknowledge()
        found.extend(d.payload for d in attacker.deliveries if d.topic == name and such(d.payload))
        return bool(found)

    attacker.until(met, f"a message on {name}", 60)
    return found[0]


def test_a_replayed_update_is_told_again_and_counted_once(house: Gatehouse, attacker: Peer) -> None:
    payload = first_of(attacker, topic(Kind.UPDATE))
    wait_version(house, status(house)["version"] + 2, 120)
    update = decode_as(Update, decode_as(Envelope, payload).body)
    for _ in range(5):
        attacker.transport.publish(topic(Kind.UPDATE), payload)

    def repeated(said: bytes) -> bool:
        result = json.loads(said)
        return bool(result.get("seq") == update.seq and result.get("repeat"))

    first_of(attacker, topic(Kind.RESULT), repeated)
    rows = [row for row in house_rows(house) if row == update.seq]
    assert len(rows) == 1


def house_rows(house: Gatehouse) -> list[int]:
    """The seq of every update in the ledger."""
    with contextlib.closing(sqlite3.connect(f"file:{house.folder / 'data/store.sqlite'}?mode=ro", uri=True)) as db:
        return [row[0] for row in db.execute("SELECT seq FROM ledger WHERE device = ?", [DEVICE])]


@pytest.mark.parametrize(
    ("payload", "code"),
    [(DEEP, "E_SCHEMA"), (WIDE, "E_SCHEMA"), (LONG, "E_SCHEMA"), (b"", ""), (b"\x00" * 300_000, "E_S")],
    ids=["deep", "wide", "long", "empty", "large"],
)
def test_bombs_at_the_gateway(house: Gatehouse, attacker: Peer, payload: bytes, code: str) -> None:
    before = house.log("aggregator")
    attacker.transport.publish(topic(Kind.UPDATE), payload or b"{}")
    if code:
        says(house, "aggregator", before, topic(Kind.UPDATE), code)


def test_an_update_that_another_key_signed_or_that_unpacks_to_too_much(house: Gatehouse, attacker: Peer) -> None:
    payload = first_of(attacker, topic(Kind.UPDATE))
    device = load_or_create_key(house.folder / "card" / "state" / "device.key")
    update = unseal_update(decode_as(Envelope, payload), device.public, FLEET, topic(Kind.UPDATE))
    before = house.log("aggregator")
    attacker.transport.publish(topic(Kind.UPDATE), seal_update(update, THIEF, FLEET, topic(Kind.UPDATE)))
    says(house, "aggregator", before, DEVICE, "E_SIG")
    # The device itself is the attacker: its own key, and a payload that claims to be gigabytes, or nothing like it.
    bombs = [struct.pack("<Q", 1 << 40) * 8, b"\xff" * 1000, msgpack.packb({"n": 1 << 62})]
    answers = []
    for number, bomb in enumerate(bombs):
        bad = replace(update, incarnation="f" * 16, seq=number, payload=bomb, sha256=None)
        attacker.transport.publish(topic(Kind.UPDATE), seal_update(bad, device, FLEET, topic(Kind.UPDATE)))

        def of_this(said: bytes, number: int = number) -> bool:
            result = json.loads(said)
            return bool(result["incarnation"] == "f" * 16 and result["seq"] == number)

        answers.append(json.loads(first_of(attacker, topic(Kind.RESULT), of_this)))
    assert {a["verdict"] for a in answers} <= {"rejected", "stale"}
    assert all(a["code"].startswith("E_") for a in answers)


@pytest.mark.parametrize("device", ["..", "%2e%2e", "fan-01\\..", "FAN-01"])
def test_names_that_are_no_ids_reach_nothing(house: Gatehouse, attacker: Peer, device: str) -> None:
    before = house.log("aggregator")
    attacker.transport.publish(f"fl/1/{FLEET}/dev/{device}/up/update", b"x")
    says(house, "aggregator", before, "E_SCHEMA", "no topic of ours")


def test_a_plan_and_a_manifest_of_before_are_downgrades(house: Gatehouse, attacker: Peer) -> None:
    """Captured and played again, retained: the next device would otherwise go back to it."""
    old = first_of(attacker, topic(Kind.MANIFEST))
    wait_version(house, status(house)["version"] + 3, 120)
    before = house.log("card")
    attacker.transport.publish(topic(Kind.MANIFEST), old, retain=True)
    says(house, "card", before, "E_DOWNGRADE", "manifest/stable")


def test_what_the_fleets_key_did_not_sign_is_not_believed(house: Gatehouse, attacker: Peer) -> None:
    """Unsigned, signed by a thief, signed for another topic, changed after it was signed; all retained."""
    real, plan = first_of(attacker, topic(Kind.DESIRED)), first_of(attacker, topic(Kind.PLAN))
    forged = seal(Desired(tasks=(), counter=1 << 40), THIEF, FLEET, topic(Kind.DESIRED))
    unsigned = encode(Desired(tasks=(), counter=1 << 40))
    other = seal(Desired(tasks=(), counter=1 << 40), THIEF, FLEET, topic(Kind.PLAN))
    changed = json.dumps({**json.loads(real), "tasks": [], "counter": 1 << 40}).encode()
    for name, payloads in ((Kind.DESIRED, (forged, unsigned, other, changed)), (Kind.PLAN, (forged, b"{}", b"[]"))):
        for payload in payloads:
            before = house.log("card")
            attacker.transport.publish(topic(name), payload, retain=True)
            with contextlib.suppress(AssertionError):  # the same complaint is not logged twice a minute
                wait_until(lambda b=before: len(house.log("card")) > len(b), 2)
    says(house, "card", "", "E_SIG", "twin/desired")
    says(house, "card", "", "E_SIG", f"{TASK}/plan")
    says(house, "aggregator", "", DEVICE, "E_SIG")
    attacker.transport.publish(topic(Kind.DESIRED), real, retain=True)
    attacker.transport.publish(topic(Kind.PLAN), plan, retain=True)


def test_a_forged_hand_over_of_the_fleets_key(house: Gatehouse, attacker: Peer) -> None:
    before = house.log("card")
    chain = hand_over(None, THIEF, SigningKey(b"u" * 32), FLEET)
    attacker.transport.publish(topic(Kind.KEYS), encode(chain), retain=True)
    says(house, "card", before, "E_SIG", "gw/key")
    attacker.transport.publish(topic(Kind.KEYS), b"", retain=True)


@pytest.mark.parametrize("payload", [DEEP, WIDE, b"\x00" * 300_000], ids=["deep", "wide", "large"])
def test_bombs_at_the_agent(house: Gatehouse, attacker: Peer, payload: bytes) -> None:
    before = house.log("card")
    attacker.transport.publish(topic(Kind.GRANT), payload)
    attacker.transport.publish(topic(Kind.DESIRED), b"[" * 100_000)
    says(house, "card", before, "E_S")


def test_a_version_that_is_too_large_is_never_fetched(house: Gatehouse, attacker: Peer) -> None:
    """Even the fleet's own key does not make a device take what its bundle cannot hold."""
    key = load_or_create_key(house.folder / "data" / "fleet.key")
    gateway = house.processes["aggregator"]
    gateway.send_signal(signal.SIGSTOP)  # nothing newer comes, but for what is on its way
    before, answered = house.log("card"), set[int]()
    attacker.transport.subscribe([(topic(Kind.MANIFEST), 1)])

    def refused() -> bool:
        attacker.acknowledge()
        told = [json.loads(d.payload) for d in attacker.deliveries if d.topic == topic(Kind.MANIFEST)]
        for now in (m for m in told if m["size"] < 1 << 30 and m["version"] not in answered):
            answered.add(now["version"])
            bad = Manifest(
                **{k: now[k] for k in ("task", "plan_revision", "fingerprint", "chunk_size")},
                version=now["version"] + 1,
                sha256="0" * 64,
                size=1 << 30,
                counter=now["counter"],
            )
            attacker.transport.publish(topic(Kind.MANIFEST), seal(bad, key, FLEET, topic(Kind.MANIFEST)))
        return "E_SIZE" in house.log("card").removeprefix(before)

    try:
        attacker.until(refused, "the device refuses it", 60)
    finally:
        gateway.send_signal(signal.SIGCONT)


def test_an_enrolment_that_was_overheard_is_worth_nothing(house: Gatehouse, attacker: Peer) -> None:
    """The very bytes of a device that got in."""
    name = f"fl/1/{FLEET}/enroll/+/req"
    attacker.transport.subscribe([(name, 1)])
    house.boot(house.device("second", house.ticket("fan-02")))
    wait_until(lambda: "fan-02 has enrolled" in house.log("aggregator"), 90, "it gets in")
    attacker.until(lambda: any(d.topic.endswith("/req") for d in attacker.deliveries), "its request")
    request = next(d for d in attacker.deliveries if d.topic.endswith("/req"))
    house.kill("second")
    before = house.log("aggregator")
    attacker.transport.publish(request.topic, request.payload)
    says(house, "aggregator", before, "E_CLAIM")


def test_a_certificate_that_is_over_opens_nothing(house: Gatehouse) -> None:
    """The authority's own, for this very device, until last week. A revoked one: test_enrolling.py."""
    authority = Authority.load((house.pki / "ca.key").read_bytes(), (house.pki / "ca.pem").read_bytes())
    key = make_key()
    made = authority.certify_client(DEVICE, key.public_key(), dt.datetime.now(dt.UTC) - dt.timedelta(days=9), 1)
    assert made.not_valid_after_utc < dt.datetime.now(dt.UTC)
    file: Path = house.folder / "expired.pem"
    file.write_bytes(key_pem(key) + made.public_bytes(Encoding.PEM))
    before = house.log("broker")
    config = BrokerConfig(host="127.0.0.1", port=house.port, ca=house.pki / "ca.pem", certificate=file)
    with Peer(transport_to(config, DEVICE, session_expiry_s=0)) as peer:
        peer.until(lambda: bool(peer.of(Disconnected)), "it is not let in")
    says(house, "broker", before, "certificate")
