"""The doctor against real brokers, each with something that a fleet ought to know of."""

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path

import pytest

from anabranch.doctor.examination import Orders, examine
from anabranch.doctor.findings import Finding
from anabranch.doctor.probe import Probe, Where
from tests.deploy.rig import running, topic
from tests.support.mosquitto import accepts, free_port
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]


def examined(where: Where, root: str = "anabranch-doctor/test", queue: int = 300, **options) -> dict[str, Finding]:
    orders = Orders(where, root, queue, **options)
    return {f.check: f for f in examine(orders, dt.datetime.now(dt.UTC), lambda _: None)}


def those(found: dict[str, Finding], verdict: str) -> set[str]:
    return {name for name, finding in found.items() if finding.verdict == verdict}


def doctor(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "anabranch", "doctor", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


def test_an_open_broker_can_everything_and_keeps_no_secret(mosquitto_with):
    """Clear text, strangers and others' topics are warnings; nothing fails."""
    broker = mosquitto_with("sys_interval 1")
    found = examined(Where("127.0.0.1", broker.port))
    assert those(found, "warning") == {"TLS", "strangers", "others' topics"}
    assert those(found, "fails") == set()
    assert those(found, "unknown") == {"clock", "the broker's disk"}
    assert "mosquitto version 2" in found["$SYS"].what
    assert "of ours in flight" in found["limits, as told"].what


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_it_clears_away_what_it_leaves(mosquitto_with, version):
    """No retained message and no session stays."""
    broker = mosquitto_with("sys_interval 1")
    where = Where("127.0.0.1", broker.port)
    examined(where, version=version)
    broker.save()
    assert not broker.holds(b"anabranch-doctor")
    with Probe(where, "after") as after:
        after.subscribe("#")
        after.subscribe("$SYS/broker/clients/disconnected", 0)
        assert after.wait(lambda: any(s.payload == b"0" for s in after.messages))
        assert [s.topic for s in after.messages if not s.topic.startswith("$SYS")] == []


def test_a_small_packet_limit_is_found_to_the_kilobyte(mosquitto_with):
    """By trying: on MQTT 3.1.1 nobody says it."""
    broker = mosquitto_with("max_packet_size 20000")
    finding = examined(Where("127.0.0.1", broker.port), version="3.1.1")["packet size"]
    assert finding.verdict == "warning"
    size = int(finding.what.split()[-2].replace(",", ""))
    assert 20000 - 1100 <= size <= 20000
    assert "`max_packet = 18432`" in finding.mend or "`max_packet = 19456`" in finding.mend


def test_a_packet_limit_below_a_plan_fails(mosquitto_with):
    """MQTT 5: it is told, too."""
    broker = mosquitto_with("max_packet_size 8000")
    found = examined(Where("127.0.0.1", broker.port))
    assert found["packet size"].verdict == "fails"
    assert "packets up to 8,000 bytes" in found["limits, as told"].what


def test_a_tiny_queue_is_counted(mosquitto_with):
    """The broker acknowledged all 300, and kept so many."""
    broker = mosquitto_with("max_queued_messages 40")
    finding = examined(Where("127.0.0.1", broker.port))["queue, messages"]
    assert finding.verdict == "fails"
    assert finding.what.startswith("40 of 300 messages")
    assert "about 5 devices" in finding.meaning


def test_a_queue_bounded_in_bytes(mosquitto_with):
    """The number holds, the bytes do not."""
    broker = mosquitto_with("max_queued_bytes 1000000\nmax_queued_messages 1000")
    found = examined(Where("127.0.0.1", broker.port))
    assert found["queue, messages"].verdict == "works"
    assert found["queue, bytes"].verdict == "warning"
    assert found["queue, bytes"].what.startswith(("15 of 64", "16 of 64"))


def test_few_in_flight_on_3_1_1(mosquitto_with):
    """mosquitto's window for clients that cannot name theirs."""
    broker = mosquitto_with("max_inflight_messages 5")
    finding = examined(Where("127.0.0.1", broker.port), version="3.1.1")["messages in flight"]
    assert finding.verdict == "warning"
    assert finding.what.startswith("5 to one client")


def test_without_retained_messages_no_device_hears_of_a_task(mosquitto_with):
    """Both the message and the will, which is retained: what cannot be tried does not stop the rest."""
    broker = mosquitto_with("retain_available false")
    found = examined(Where("127.0.0.1", broker.port))
    assert found["retained, exact"].verdict == "fails"
    assert found["last will"].verdict in ("unknown", "fails")
    assert found["persistent session"].verdict == "works"


def test_without_persistence_all_the_same_works(mosquitto_with):
    """What a crash takes cannot be seen from outside, and that is said."""
    broker = mosquitto_with(persistence=False)
    found = examined(Where("127.0.0.1", broker.port))
    assert those(found, "fails") == set()
    assert "cannot be seen from here" in found["the broker's disk"].what


def test_a_user_that_may_not_use_the_topics_is_told_so(mosquitto_with, tmp_path):
    """An access list; `--topic` is the mend."""
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite elsewhere/#\n")
    acl.chmod(0o700)
    broker = mosquitto_with(f"acl_file {acl}")
    where = Where("127.0.0.1", broker.port)
    assert "--topic" in examined(where)["topics"].mend
    found = examined(where, "elsewhere/doctor")
    assert those(found, "fails") == set()
    assert found["others' topics"].verdict == "works"
    assert found["$SYS"].verdict == "unknown"


def test_amqtt_fails_where_it_does(tmp_path):
    """MQTT 3.1.1 only, and nothing again after a cut connection."""
    port = free_port()
    file = tmp_path / "amqtt.json"
    settings = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    file.write_text(json.dumps(settings))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", file], stdout=log, stderr=log
        )
    try:
        wait_until(lambda: accepts(port), 30, "amqtt listens")
        found = examined(Where("127.0.0.1", port))
        assert found["MQTT 5"].verdict == "warning"
        assert found["MQTT 3.1.1"].verdict == "works"
        assert found["QoS 1 after a cut"].verdict == "fails"
        assert found["retained, exact"].verdict == "works"
        assert "clearing away" not in found
    finally:
        process.kill()
        process.wait(10)


def test_the_gateways_own_broker(tmp_path):
    """As an operator everything works and nothing is open; a device's certificate has one connection at a time."""
    with running(tmp_path, "broker", "aggregator") as gateway:
        operator = gateway.pki / "services/operator.pem"
        url = f"mqtts://localhost:{gateway.services_port}"
        tls = ("--ca", gateway.pki / "ca.pem", "--cert", operator, "--key", operator.with_suffix(".key"))
        done = doctor("--broker", url, *tls, "--queue", 2000, "--json")
        found = {f["check"]: f for f in json.loads(done.stdout)["findings"]}
        assert done.returncode == 0, done.stdout
        assert {f["verdict"] for name, f in found.items() if name != "the broker's disk"} == {"works"}
        assert "TLSv1.3" in found["TLS"]["what"]
        assert "packets up to 524,288 bytes" in found["limits, as told"]["what"]
        device = gateway.device("fan-0")
        assert examined(device.where)["client ids"].verdict == "warning"
        with gateway.service("aggregator", client_id="reader") as reader:
            reader.subscribe("#")
            reader.settle()
            assert {s.topic for s in reader.messages} == {topic("gw/state")}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--broker", "gw.local"), "is no broker's address"),
        (("--broker", "http://gw.local"), "is no broker's address"),
        (("--broker", "mqtt://gw.local:x"), "names no port"),
        (("--broker", "mqtt://gw.local", "--ca", "ca.pem"), "mqtts:// is the one with TLS"),
        (("--broker", "mqtts://gw.local", "--cert", "a.pem"), "--cert and --key belong together"),
        (("--broker", "mqtts://gw.local", "--ca", "/nowhere.pem"), "cannot use the TLS files"),
        (("--broker", "mqtt://localhost", "--topic", "a/+/b"), "is no topic"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, words):
    """With the option and the mend."""
    done = doctor(*options)
    assert done.returncode == 2
    assert words in done.stderr
    assert "hint:" in done.stderr


def test_where_nobody_answers():
    """It ends with 1, and says what was tried."""
    done = doctor("--broker", f"mqtt://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "no connection" in done.stdout
