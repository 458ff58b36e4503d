"""What `gateway up` wrote, run for real: who may read and write what, which certificates count, what a crash takes."""

import datetime as dt
import signal
import socket
import ssl
import sys
import time

import pytest

from anabranch.doctor.probe import DENIED, Probe, RefusedError
from broker_aggregator.authority import Authority
from fl_protocol.codec import decode_as
from fl_protocol.messages import GatewayState
from tests.deploy.rig import FLEET, Gateway, running, topic
from tests.support.waiting import wait_until

ME, OTHER = "fan-0", "fan-1"
WRITES = (
    "state",
    "info",
    "health",
    "event",
    "prediction",
    "twin/reported",
    "up/update",
    "up/offer",
    "up/chunk",
    "up/get",
    "up/want",
    "up/slot",
    "up/renew",
    "cmd/x/1",
)
NOBODYS = ("alert/hot", "up/x", "up/get/x", "cmd/x/1/x", "cmd/x", "info/x")  # a device may not make up topics
READS = ("state", "twin/desired", "dn/result", "dn/chunk", "dn/cert", "cmd/x/1")
SHARED = ("task/fan/plan", "task/fan/manifest/stable", "task/fan/chunk/3", "gw/state", "gw/sync")
BINARY = (f"dev/{ME}/up/update", f"dev/{ME}/dn/chunk", "task/fan/chunk/3")
SECRET = ("op/cmd/task-start/1", "enroll/abc/req", "enroll/abc/resp")
EVERYTHING = tuple(
    topic(name)
    for name in (*(f"dev/{d}/{t}" for d in (ME, OTHER) for t in sorted({*WRITES, *READS, *NOBODYS})), *SHARED, *SECRET)
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with running(tmp_path_factory.mktemp("gateway"), "broker", "enrollment", "aggregator") as running_gateway:
        yield running_gateway


def heard(gateway: Gateway, probe: Probe) -> set[str]:
    """Of everything that there is, what a client gets that subscribes to all of it."""
    with gateway.service("aggregator", client_id=f"crier-{probe.client_id}") as crier, probe:
        probe.subscribe("#")
        for name in EVERYTHING:
            probe.subscribe(name)
        for name in EVERYTHING:
            assert crier.publish(name, b"secret") in (0, 0x10), name
        crier.publish(topic("gw/sync"), b"the end")
        probe.settle(1.0)
        return {said.topic for said in probe.messages if said.payload == b"secret"}


def allowed(probe: Probe, names: tuple[str, ...] = EVERYTHING) -> set[str]:
    """Of everything that there is, what a client may write."""
    with probe:
        return {name for name in names if probe.publish(name, b"x") != DENIED}


def test_a_device_writes_its_own_topics_and_no_others(gateway):
    """All of another device's, `op/`, tasks, the gateway's state and what nobody reads are refused."""
    assert allowed(gateway.device(ME)) == {topic(f"dev/{ME}/{name}") for name in WRITES}


def test_a_device_reads_its_own_topics_and_the_tasks(gateway):
    """No wildcard helps: not another's topics, nor its own updates, nor `op/`, nor an enrolment."""
    assert heard(gateway, gateway.device(ME)) == {topic(f"dev/{ME}/{name}") for name in READS} | {*map(topic, SHARED)}


def test_a_monitor_writes_nothing_and_reads_what_is_for_people(gateway):
    """No chunks, no updates, no enrolment."""
    assert allowed(gateway.service("monitor")) == set()
    assert heard(gateway, gateway.service("monitor")) == readable()


def test_an_operator_writes_commands_and_reads_what_is_for_people(gateway):
    """`op/#` and no more."""
    assert allowed(gateway.service("operator")) == {name for name in EVERYTHING if "/op/" in name}
    assert heard(gateway, gateway.service("operator")) == readable()


def readable() -> set[str]:
    return {n for n in EVERYTHING if "/enroll/" not in n and "/up/" not in n and "chunk" not in n}


def test_a_device_at_the_services_listener_may_nothing(gateway):
    """Its certificate is good there, its name has no rights."""
    gateway.issue("lost")
    where = gateway.device("lost").where
    for probe in (0, 1):
        client = Probe(type(where)("localhost", gateway.services_port, where.tls), f"lost-{probe}")
        assert (heard(gateway, client) if probe else allowed(client)) == set()


def test_a_claim_writes_its_request_and_reads_its_answer(gateway):
    """The request reaches the gateway's broker, the answer comes back; of all else it hears and writes nothing."""
    request, answer = topic("enroll/abc/req"), topic("enroll/abc/resp")
    assert allowed(gateway.claim("abc"), (*EVERYTHING, topic("enroll/xyz/req"))) == {request}
    with gateway.service("aggregator") as aggregator, gateway.claim("abc") as claim:
        aggregator.subscribe(topic("enroll/+/req"))
        claim.subscribe(answer)
        claim.publish(request, b"csr")
        assert aggregator.wait(lambda: (request, b"csr") in [(m.topic, m.payload) for m in aggregator.messages])
        aggregator.publish(answer, b"certificate")
        assert claim.wait(lambda: (answer, b"certificate") in [(m.topic, m.payload) for m in claim.messages])
    assert heard(gateway, gateway.claim("abc")) == {answer}
    assert heard(gateway, gateway.claim("xyz")) == set()
    assert heard(gateway, gateway.claim(None)) == set()


def test_nothing_listens_but_what_was_said(gateway):
    """mosquitto opens port 1883 beside its listeners if a listener's setting stands above the first one."""
    opened = [
        line.rsplit(" ", 1)[1].rstrip(".")
        for name in ("broker", "enrollment")
        for line in gateway.log(name).splitlines()
        if "listen socket" in line
    ]
    assert set(opened) == {str(p) for p in (gateway.port, gateway.enroll_port, gateway.services_port)}
    services = [
        line
        for line in gateway.log("broker").splitlines()
        if f"port {gateway.services_port}." in line and "ipv" in line
    ]
    assert len(services) == 1  # the loopback address only
    assert "ipv4" in services[0]


def test_the_aggregator_is_there_for_a_device(gateway):
    """Its retained state, with the fleet's key, over mutual TLS."""
    with gateway.device("reader") as device:
        device.subscribe(topic("gw/state"))
        assert device.wait(lambda: any(decodes(m.payload) for m in device.messages))


def decodes(payload: bytes) -> bool:
    return payload[:1] == b"{" and bool(decode_as(GatewayState, payload).fleet_key)


def refused(probe: Probe) -> bool:
    try:
        with probe:
            return False
    except (OSError, RefusedError):
        return True


def test_only_certificates_of_this_authority_that_are_in_date_are_let_in(gateway):
    """Neither another authority's, though it has the fleet's name, nor an expired one, nor none."""
    now = dt.datetime.now(dt.UTC)
    gateway.issue("stranger", authority=Authority.create(FLEET, now))
    gateway.issue("late", now=now - dt.timedelta(days=60))
    assert refused(gateway.device("stranger"))
    assert refused(gateway.device("late"))
    assert not refused(gateway.device("good"))
    bare = gateway.device("good").where
    assert refused(Probe(type(bare)(bare.host, gateway.port, gateway.tls()), "bare"))
    assert refused(Probe(type(bare)(bare.host, gateway.port), "plain", answer_s=3.0))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_is_1_2_at_least(gateway, version):
    """On all three listeners."""
    for port in (gateway.port, gateway.enroll_port, gateway.services_port):
        context = gateway.tls(gateway.pki / "services/monitor.pem")
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # else this side refuses TLS 1.1 before the broker can
        context.minimum_version = context.maximum_version = version
        try:
            with (
                socket.create_connection(("127.0.0.1", port), 5) as plain,
                context.wrap_socket(plain, server_hostname="gw.local") as tls,
            ):
                word = tls.version()
        except OSError:
            word = None
        assert word == (None if version is ssl.TLSVersion.TLSv1_1 else version.name.replace("_", "."))


def test_a_revoked_certificate_is_refused_ten_seconds_later(gateway):
    """SIGHUP, as the path unit has it sent; nobody else notices."""
    serial = gateway.issue("thief")
    with gateway.device("bystander") as bystander:
        assert not refused(gateway.device("thief"))
        gateway.revoke(serial)
        began = time.monotonic()
        gateway.reload()
        wait_until(lambda: refused(gateway.device("thief")), 10, "the revoked certificate is refused")
        assert time.monotonic() - began < 10
        assert bystander.publish(topic("dev/bystander/up/get"), b"x") in (0, 0x10)
    gateway.revoke(number=3)
    gateway.reload()
    wait_until(lambda: not refused(gateway.device("thief")), 10, "taken back")


def test_the_gateway_ends_a_devices_session(gateway):
    """By taking it over: on the services' listener client ids are free."""
    with gateway.device("gone") as device, gateway.service("aggregator", client_id="gone"):
        assert device.wait(lambda: device.ended)
    assert "Client gone already connected, closing old connection" in gateway.log("broker")


def test_a_crash_takes_nothing_that_is_older_than_the_autosave(tmp_path):
    """kill -9 of the broker: retained and queued messages are there again, once the disk was written."""
    with running(tmp_path, "broker") as gateway:
        names = [f"dev/fan-{n}/twin/desired" for n in range(20)]
        with gateway.device("fan-0", clean=False, expiry_s=3600) as device:
            device.subscribe(topic("dev/fan-0/dn/result"))
            device.cut()
        with gateway.service("aggregator") as aggregator:
            for name in names:
                assert aggregator.publish(topic(name), b"kept", retain=True) in (0, 0x10)
            for n in range(50):
                assert aggregator.publish(topic("dev/fan-0/dn/result"), f"queued {n}".encode()) in (0, 0x10)
            written = time.time()
            disk = tmp_path / "var/lib/anabranch-broker/mosquitto.db"
            # mosquitto counts whole seconds: what was published before the second write began is in it.
            wait_until(lambda: disk.exists() and disk.stat().st_mtime > written + 2, 20, "the disk is written")
        gateway.kill("broker", signal.SIGKILL)
        gateway.start("broker")
        with gateway.device("fan-0", clean=False, expiry_s=3600) as device:
            assert device.session_present
            device.wait(lambda: len(device.messages) >= 50)
            assert [m.payload for m in device.messages] == [f"queued {n}".encode() for n in range(50)]
        with gateway.service("aggregator") as aggregator:
            aggregator.subscribe(topic("dev/+/twin/desired"))
            assert aggregator.wait(lambda: len(aggregator.messages) >= 20)
            assert {m.topic for m in aggregator.messages} == {topic(name) for name in names}


def test_a_database_that_kills_the_broker_at_each_start_is_set_aside(tmp_path):
    """As one does that is more than the memory limit: after three such ends it starts without, and says so."""
    with running(tmp_path, "broker") as gateway:
        with gateway.service("aggregator") as aggregator:
            for n in range(60):
                assert aggregator.publish(topic(f"task/fan/chunk/{n}"), bytes(200_000), retain=True) in (0, 0x10)
        gateway.processes["broker"].send_signal(signal.SIGTERM)
        gateway.processes["broker"].wait(20)
        conf = gateway.etc / "mosquitto/broker.conf"
        limit = next(line for line in conf.read_text().splitlines() if line.startswith("memory_limit"))
        conf.write_text(conf.read_text().replace(limit, f"memory_limit {8 << 20}"))
        for _ in range(3):
            gateway.run("broker", ["/bin/sh", str(gateway.etc / "broker.sh"), str(conf)])
            assert gateway.processes["broker"].wait(20) is not None
        gateway.start("broker")
        with gateway.device(ME) as device:
            assert device.publish(topic(f"dev/{ME}/up/get"), b"x") in (0, 0x10)
        assert "its database is set aside" in gateway.log("broker")
        assert (tmp_path / "var/lib/anabranch-broker/mosquitto.db.set-aside").stat().st_size > 60 * 200_000


def test_from_a_ticket_to_a_device_that_is_heard_and_out_again(tmp_path):
    """Real programs: a ticket, an agent on both ports of this gateway, and `device revoke` with the unit's SIGHUP."""
    with running(tmp_path, "broker", "enrollment", "aggregator", name="localhost") as gateway:
        done = gateway.aggregator("device", "ticket", ME, "--output", tmp_path / "tickets")
        assert done.returncode == 0, done.stderr
        card = tmp_path / "card"
        (card / "data").mkdir(parents=True)
        (card / "agent.toml").write_text(
            f"""
[enroll]
ticket = "{tmp_path}/tickets/{ME}.toml"
directory = "identity"
[device]
state_dir = "state"
[data]
path = "data"
[health]
state_s = 0.0
"""
        )
        gateway.run("agent", [sys.executable, "-m", "edge_agent", "run", "--config", str(card / "agent.toml")])
        wait_until(lambda: f"{ME} has enrolled" in gateway.log("aggregator"), 60, "the device is heard")
        with gateway.service("monitor") as monitor:
            monitor.subscribe(topic(f"dev/{ME}/state"))
            assert monitor.wait(lambda: monitor.messages)
        assert gateway.aggregator("device", "revoke", ME).returncode == 0
        gateway.reload()
        wait_until(lambda: "CERTIFICATE_REVOKED" in gateway.log("agent"), 30, "the device is out")
