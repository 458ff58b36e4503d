"""What someone with a stolen card, a ticket, or a network cable tries on the broker: refused, and in its log."""

import contextlib

import pytest

from anabranch.doctor.probe import DENIED, Probe, RefusedError
from fl_protocol.codec import encode
from fl_protocol.messages import Ask
from tests.deploy.rig import FLEET, running, topic
from tests.support.waiting import wait_until

THIEF, VICTIM = "fan-0", "fan-1"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with running(tmp_path_factory.mktemp("red-team"), "broker", "enrollment", "aggregator") as running_gateway:
        yield running_gateway


def logged(gateway, words: str, name: str = "broker") -> None:
    wait_until(lambda: words in gateway.log(name), 10, f"the log of the {name} says {words!r}")


def heard_by(gateway, probe: Probe, *texts: str) -> list[str]:
    """The topics on which it heard anything, subscribed to these, while everything was said."""
    names = [f"dev/{VICTIM}/{name}" for name in ("state", "up/update", "dn/result", "twin/desired", "cmd/x/1")]
    names += ["task/fan/plan", "task/fan/manifest/stable", "task/fan/chunk/1", "op/cmd/x/1", "enroll/other/resp"]
    with probe, gateway.service("aggregator", client_id="crier") as crier:
        for text in texts:
            probe.subscribe(text)
        for name in names:
            crier.publish(topic(name), b"secret")
        probe.settle(1.0)
        return [said.topic for said in probe.messages if said.payload == b"secret"]


def test_a_forged_client_id_is_not_taken(gateway):
    """It says that it is another device: its certificate says who it is, and the other keeps its connection."""
    with gateway.device(VICTIM) as victim:
        with gateway.device(THIEF, client_id=VICTIM) as thief:
            assert thief.publish(topic(f"dev/{VICTIM}/up/update"), b"forged") == DENIED
            assert thief.publish(topic(f"dev/{THIEF}/up/get"), b"mine") != DENIED
        assert victim.publish(topic(f"dev/{VICTIM}/up/get"), b"still here") != DENIED
    logged(gateway, f"Denied PUBLISH from {THIEF}")


@pytest.mark.parametrize("client_id", [VICTIM, f"gateway-{FLEET}", "enrollment.bridge"])
def test_a_stranger_takes_nobodys_session(gateway, client_id):
    """At the open port anyone chooses a client id: that broker knows neither the devices nor the gateway."""
    before = gateway.log("broker")
    stranger = gateway.claim("stranger", client_id=client_id, clean=False, expiry_s=3600)
    with gateway.device(VICTIM) as victim, stranger, gateway.service("monitor") as monitor:
        assert not stranger.session_present
        assert victim.publish(topic(f"dev/{VICTIM}/up/get"), b"still here") != DENIED
        monitor.subscribe(topic("gw/state"))
        assert monitor.wait(lambda: monitor.messages)
        assert b"lost" not in monitor.messages[-1].payload
    assert "already connected, closing old connection" not in gateway.log("broker").removeprefix(before)
    logged(gateway, f"as {client_id} (", "enrollment")


@pytest.mark.parametrize(
    "text",
    ["#", "fl/#", "+/+/+/dev/+/#", f"fl/1/{FLEET}/dev/{VICTIM}/#", f"fl/1/{FLEET}/op/#", f"fl/1/{FLEET}/enroll/#"],
)
def test_another_devices_topics_are_not_heard(gateway, text):
    """However it subscribes; what it wanted is in the log."""
    assert [t for t in heard_by(gateway, gateway.device(THIEF), text) if "/task/" not in t] == []
    logged(gateway, f"{THIEF} 1 {text}")


def test_an_oversized_payload_ends_the_connection(gateway):
    """The gateway and everyone else go on; nobody hears it."""
    with gateway.device(THIEF) as thief:
        thief.publish(topic(f"dev/{THIEF}/up/update"), b"\0" * (600 << 10))
        assert thief.wait(lambda: thief.ended)
    logged(gateway, f"{THIEF} disconnected")
    assert gateway.processes["broker"].poll() is None
    with gateway.claim("abc") as claim:
        claim.publish(topic("enroll/abc/req"), b"\0" * 20_000)
        assert claim.wait(lambda: claim.ended)
    assert gateway.processes["enrollment"].poll() is None
    with gateway.device(THIEF) as thief:
        assert thief.publish(topic(f"dev/{THIEF}/up/get"), b"x") != DENIED


@pytest.mark.parametrize(
    "name",
    [
        f"dev/{THIEF}/../{VICTIM}/state",
        f"dev/{THIEF}/state/../../{VICTIM}/state",
        f"dev/{THIEF}//state",
        f"dev/./{VICTIM}/state",
        f"dev/%75/{VICTIM}",
        "../../etc/passwd",
        f"dev/{VICTIM}\u2028/state",
    ],
)
def test_path_traversal_leads_nowhere(gateway, name):
    """A topic is compared level by level: dots mean nothing, and what is not listed is refused."""
    with gateway.device(THIEF) as thief:
        assert thief.publish(topic(name), b"x") == DENIED
    logged(gateway, f"Denied PUBLISH from {THIEF}")


def test_traversal_below_its_own_updates_reaches_nobody(gateway):
    """What is below `up/` is listed one by one."""
    name = topic(f"dev/{THIEF}/up/../../{VICTIM}/state")
    with gateway.service("monitor") as monitor, gateway.device(THIEF) as thief:
        monitor.subscribe(topic(f"dev/{VICTIM}/state"))
        assert thief.publish(name, b'{"state": "lost"}') == DENIED
        monitor.settle(0.5)
        assert [s for s in monitor.messages if b"lost" in s.payload and not s.retained] == []
    assert gateway.processes["aggregator"].poll() is None


@pytest.mark.parametrize("name", ["+", "#", "../other", "other/..", "%u"])
def test_a_claim_named_like_a_filter_is_nobody(gateway, name):
    """The user name stands in the access list: one with wildcards would match others' answers."""
    texts = (topic("enroll/+/resp"), topic("enroll/#"), topic("enroll/other/resp"))
    assert heard_by(gateway, gateway.claim(name, client_id="odd"), *texts) == []
    with gateway.claim(name, client_id="odd") as claim:
        assert claim.publish(topic("enroll/other/req"), b"x") == DENIED


@pytest.mark.parametrize("name", ["+", "#"])
def test_a_certificate_named_like_a_filter_is_nobody(gateway, name):
    """No gateway issues one; if one did, it would have no rights."""
    gateway.issue(name)
    with contextlib.suppress(RefusedError, OSError), gateway.device(name) as odd:  # or not even let in
        assert odd.publish(topic(f"dev/{VICTIM}/state"), b"x") == DENIED
    with contextlib.suppress(RefusedError, OSError):
        assert [t for t in heard_by(gateway, gateway.device(name), "#") if "/task/" not in t] == []


@pytest.mark.parametrize(
    "name", [f"dev/{VICTIM}/cmd/reboot/1", f"dev/{VICTIM}/twin/desired", "task/fan/plan", "gw/sync"]
)
def test_a_poisoned_retained_command_does_not_stay(gateway, name):
    """Neither from a device, nor from a monitor, nor from a stranger."""
    for probe in (gateway.device(THIEF), gateway.service("monitor"), gateway.claim("abc")):
        with probe:
            assert probe.publish(topic(name), b"poison", retain=True) in (DENIED, 0x9A, None)
    with gateway.service("aggregator") as reader:
        reader.subscribe(topic(name))
        reader.settle(0.5)
        assert b"poison" not in [s.payload for s in reader.messages]


def test_a_device_cannot_fill_the_broker_with_what_it_leaves_there(gateway):
    """A broker has no bound for what is retained but its memory: topics that a device may make up are of commands, and
    what it leaves there of none that is open is taken off, readable or not."""
    names = [topic(f"dev/{THIEF}/cmd/{name}/{n}") for n in range(20) for name in ("pause", "X.Y")]
    with gateway.device(THIEF) as thief:
        for name in names:
            assert thief.publish(name, bytes(100_000), retain=True) in (0, 0x10)
        for name in ("alert/hot", "up/mine", "prediction/2"):
            assert thief.publish(topic(f"dev/{THIEF}/{name}"), b"x", retain=True) == DENIED

    def left() -> list[str]:
        with gateway.service("monitor") as monitor:
            monitor.subscribe(topic(f"dev/{THIEF}/cmd/#"))
            monitor.settle(0.5)
            return [s.topic for s in monitor.messages if s.retained]

    wait_until(lambda: left() == [], 20, "all of it is taken off")


def test_an_unsigned_command_of_an_operator_is_not_obeyed(gateway):
    """The operator's certificate lets it write `op/#`; the gateway believes the fleet's signature alone."""
    ask = encode(Ask(name="device-revoke", arguments={"device": VICTIM}))
    with gateway.service("operator") as operator:
        assert operator.publish(topic("op/cmd/device-revoke/1"), ask, retain=True) in (0, 0x10)
        logged(gateway, "E_SIG", "aggregator")
        operator.publish(topic("op/cmd/device-revoke/1"), b"", retain=True)


def test_a_claim_reads_no_models(gateway):
    """Nor anything else; that it asked is in the log."""
    texts = (topic("task/#"), topic("dev/#"), "#", topic("gw/#"))
    assert heard_by(gateway, gateway.claim("curious"), *texts) == []
    for text in texts:
        logged(gateway, f"claim-curious 1 {text}", "enrollment")


def test_a_stranger_leaves_nothing_retained(gateway):
    """On the open port nothing is retained, so no memory fills with it."""
    with gateway.claim("hoard") as claim:
        claim.publish(topic("enroll/hoard/req"), b"kept?", retain=True)
    for reader in (gateway.service("aggregator"), gateway.claim("hoard", client_id="again")):
        with reader:
            reader.subscribe(topic("enroll/hoard/req"))
            reader.settle(0.5)
            assert [s for s in reader.messages if s.retained] == []


def test_a_flood_of_requests_pushes_no_update_out(gateway):
    """A gateway that is away finds every update, and no request: devices ask again."""

    def away() -> Probe:
        return gateway.service("aggregator", client_id="away", clean=False, expiry_s=600)

    with away() as session:
        session.subscribe(topic("enroll/+/req"))
        session.subscribe(topic("dev/+/up/#"))
    with gateway.claim("flood") as claim, gateway.device(VICTIM) as device:
        for number in range(5):
            for _ in range(100):
                claim.send(topic("enroll/flood/req"), b"x" * 1000)
            claim.publish(topic("enroll/flood/req"), b"last")
            assert device.publish(topic(f"dev/{VICTIM}/up/update"), f"update {number}".encode()) in (0, 0x10)
    with away() as session:
        session.wait(lambda: len(session.messages) >= 5)
        session.settle(1.0)
        assert [s.payload for s in session.messages] == [f"update {number}".encode() for number in range(5)]
