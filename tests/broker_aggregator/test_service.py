"""The gateway over a real broker: what arrives broken is answered and forgotten, what is accepted survives kill -9."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from broker_aggregator.asking import ask_gateway
from broker_aggregator.config import GatewayConfig, GatewaySection
from broker_aggregator.objects import add_bundle
from broker_aggregator.reading import replay, status
from broker_aggregator.service import Service
from broker_aggregator.store import SqliteStore
from broker_aggregator.store_reader import StoreReader
from fl_protocol.broker import BrokerConfig
from fl_protocol.bundle import Bundle
from fl_protocol.codec import decode, decode_as, encode
from fl_protocol.compression import encode_statistics, make_compressor
from fl_protocol.keyfile import load_or_create_key
from fl_protocol.messages import Chunk, GatewayState, Get, Manifest, Plan, Result, TaskStatus, Update
from fl_protocol.mqtt import MqttTransport
from fl_protocol.signing import seal_update, unseal
from fl_protocol.topics import Kind, build, parse
from fl_protocol.transfer import Fetch
from tests.support.fleet import FLEET, key_of, make_update
from tests.support.mosquitto import Mosquitto
from tests.support.peer import Peer
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
BUNDLE_FILE = ROOT / "anabranch" / "data" / "fan_vibration.bundle"
FAN = "fan-0"


def config_for(broker: Mosquitto, folder: Path) -> GatewayConfig:
    return GatewayConfig(
        gateway=GatewaySection(fleet=FLEET, data_dir=folder / "gw"),
        broker=BrokerConfig(host="127.0.0.1", port=broker.port, reconnect_max_s=1),
        devices={FAN: key_of(FAN).public, "fan-1": key_of("fan-1").public},
    )


@pytest.fixture
def config(mosquitto, tmp_path) -> GatewayConfig:
    return config_for(mosquitto, tmp_path)


@pytest.fixture
def service(config) -> Iterator[Service]:
    service = Service(config, SqliteStore(config.store_path), load_or_create_key(config.key_path))
    service.transport.start()
    yield service
    service.transport.close()
    service.store.close()


@pytest.fixture
def fan(mosquitto) -> Iterator["Device"]:
    device = Device(mosquitto.port)
    with device.peer:
        device.peer.connected()
        device.peer.subscribe(f"fl/1/{FLEET}/dev/{FAN}/dn/#", f"fl/1/{FLEET}/task/#", f"fl/1/{FLEET}/gw/#")
        yield device


class Device:
    """A scripted device at the other end of the broker."""

    def __init__(self, port: int) -> None:
        self.peer = Peer(MqttTransport("127.0.0.1", port, FAN, reconnect_min_s=0.05, reconnect_max_s=0.2))

    def until(self, condition: Callable[[], object], what: str = "", seconds: float = 20.0) -> None:
        """Listen and acknowledge until the condition holds."""

        def met() -> bool:
            self.peer.acknowledge()
            return bool(condition())

        self.peer.until(met, what, seconds)

    def publish(self, kind: Kind, payload: bytes, device: str = FAN) -> None:
        self.peer.transport.publish(build(kind, FLEET, device=device), payload)

    def update(self, update: Update, device: str = FAN) -> bytes:
        payload = seal_update(update, key_of(device), FLEET, build(Kind.UPDATE, FLEET, device=device))
        self.publish(Kind.UPDATE, payload, device)
        return payload

    def of(self, kind: Kind) -> list[bytes]:
        return [d.payload for d in self.peer.deliveries if parse(d.topic).kind is kind]

    def results(self, key: str) -> list[Result]:
        topic = build(Kind.RESULT, FLEET, device=FAN)
        return [unseal(Result, payload, key, FLEET, topic) for payload in self.of(Kind.RESULT)]


def serve_until(service: Service, fan: Device, condition: Callable[[], object], what: str) -> None:
    """Let the gateway turn while the device listens."""

    def turned() -> object:
        service.turn(0.01)
        fan.until(lambda: True)
        return condition()

    wait_until(turned, 20, what)


def create_task(config: GatewayConfig, service: Service, **plan: object) -> Bundle:
    """The real model as a running task, by the operator's own command, the gateway turning in this thread."""
    from concurrent.futures import ThreadPoolExecutor

    bundle = add_bundle(config.bundles, BUNDLE_FILE)
    arguments = {
        "task": "fan",
        "bundle_sha256": bundle.sha256,
        "bundle_size": BUNDLE_FILE.stat().st_size,
        "plan": {"buffer": 1, **plan},
    }
    with ThreadPoolExecutor(1) as pool:
        for name in ("task-create", "task-start"):
            answer = pool.submit(ask_gateway, config, name, arguments)
            wait_until(lambda a=answer: service.turn(0.01) or a.done(), 20, name)
            assert answer.result().status == "successful", answer.result()
    return bundle


def sound_update(bundle: Bundle, seq: int, base_version: int, **changes: object) -> Update:
    layout = bundle.layout
    delta = np.random.default_rng(seq).normal(size=layout.num_parameters).astype(np.float32) * 1e-3
    codec = {"name": "uq", "step": "1.0"}
    payload = make_compressor(codec, layout).compress(delta, np.random.default_rng(0))
    statistics = encode_statistics(bundle.initial[layout.num_parameters :])
    fields = {"fingerprint": layout.fingerprint, "codec": codec, "payload": payload, "statistics": statistics}
    return make_update(FAN, seq, base_version, [], **{**fields, **changes})


def test_a_device_gets_plan_bundle_and_versions_and_its_verdict(service, fan, config):
    """The whole conversation: signed plan and manifest, the bundle in chunks, an update, the next version."""
    bundle = create_task(config, service)
    key = service.key.public
    serve_until(service, fan, lambda: fan.of(Kind.MANIFEST), "a manifest")
    plan = unseal(Plan, fan.of(Kind.PLAN)[-1], key, FLEET, build(Kind.PLAN, FLEET, task="fan"))
    manifest_topic = build(Kind.MANIFEST, FLEET, task="fan", channel="stable")
    first = unseal(Manifest, fan.of(Kind.MANIFEST)[-1], key, FLEET, manifest_topic)
    assert (plan.bundle_sha256, first.version) == (bundle.sha256, 0)

    for sha256, size in ((plan.bundle_sha256, plan.bundle_size), (first.sha256, first.size)):
        fetch, heard = Fetch(sha256, size, first.chunk_size), len(fan.of(Kind.CHUNK_DOWN))
        now = 0.0
        while not fetch.done:
            now += 1
            if (get := fetch.next_get(now)) is not None:
                fan.publish(Kind.GET, encode(get))
            serve_until(service, fan, lambda n=heard: len(fan.of(Kind.CHUNK_DOWN)) > n, "chunks")
            for payload in fan.of(Kind.CHUNK_DOWN)[heard:]:
                fetch.add(decode_as(Chunk, payload), now)
            heard = len(fan.of(Kind.CHUNK_DOWN))
        assert fetch.data()
    assert Bundle.read(BUNDLE_FILE.read_bytes()).layout == bundle.layout

    fan.update(sound_update(bundle, 1, 0))
    serve_until(service, fan, lambda: len(fan.of(Kind.MANIFEST)) >= 2 and fan.of(Kind.RESULT), "the next version")
    assert [r.verdict for r in fan.results(key)] == ["accepted"]
    second = unseal(Manifest, fan.of(Kind.MANIFEST)[-1], key, FLEET, manifest_topic)
    assert second.version == 1
    assert second.counter > first.counter
    serve_until(service, fan, lambda: fan.of(Kind.BROADCAST), "the broadcast of its blocks")


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", None),
        (b"\x00", "E_SCHEMA"),
        (b"\xff" * 1000, "E_SCHEMA"),
        (b"\xdd\xff\xff\xff\xff", "E_SCHEMA"),
        ("truncated", "E_SCHEMA"),
        ("body", "E_SCHEMA"),
        (b"\x00" * (300 << 10), "E_SIZE"),
    ],
)
def test_what_cannot_be_read_is_answered_and_forgotten(service, fan, config, payload, code):
    """Malformed, truncated, oversized: a code on the device's results, and the next update counts as ever."""
    bundle = create_task(config, service)
    if payload == "truncated":
        topic = build(Kind.UPDATE, FLEET, device=FAN)
        payload = seal_update(sound_update(bundle, 1, 0), key_of(FAN), FLEET, topic)[:-20]
    elif payload == "body":
        from fl_protocol.messages import Envelope

        payload = encode(Envelope(body=b"rubbish", signature=b"\0" * 64))
        code = None  # nobody signed it, so nobody is answered; it is logged
    fan.publish(Kind.UPDATE, payload)
    fan.update(sound_update(bundle, 2, 0))
    serve_until(service, fan, lambda: [r for r in fan.results(service.key.public) if r.seq == 2], "the verdict")
    told = fan.results(service.key.public)
    assert [r.code for r in told if r.seq == 0] == ([code] if code else [])
    assert [r.verdict for r in told if r.seq == 2] == ["accepted"]


def test_a_device_cannot_speak_for_another(service, fan, config):
    """A foreign id in the payload is E_AUTH; on a foreign topic the signature is not that device's."""
    bundle = create_task(config, service)
    fan.update(replace(sound_update(bundle, 1, 0), device="fan-1"))
    serve_until(service, fan, lambda: fan.of(Kind.RESULT), "the verdict")
    assert [r.code for r in fan.results(service.key.public)] == ["E_AUTH"]
    forged = seal_update(
        replace(sound_update(bundle, 2, 0), device="fan-1"),
        key_of(FAN),
        FLEET,
        build(Kind.UPDATE, FLEET, device="fan-1"),
    )
    fan.publish(Kind.UPDATE, forged, "fan-1")
    fan.update(sound_update(bundle, 3, 0))
    serve_until(service, fan, lambda: len(fan.of(Kind.RESULT)) >= 2, "the next verdict")
    rows = service.store.query("SELECT device, seq FROM ledger WHERE disposal NOT NULL")
    assert [tuple(row) for row in rows] == [(FAN, 3)]


def test_lies_in_gets_and_topics_change_nothing(service, fan, config):
    """Another object's hash, a bitmap of another size, a topic of no kind: no answer, no harm."""
    bundle = create_task(config, service)
    get = Get(sha256="0" * 64, size=10, chunk_size=10, window=1, missing=b"\1")
    fan.publish(Kind.GET, encode(get))
    fan.publish(Kind.GET, encode(replace(get, sha256=bundle.sha256, chunk_size=1, missing=b"\1")))
    fan.peer.transport.publish(f"fl/1/{FLEET}/dev/{FAN}/up/nonsense", b"x")
    fan.update(sound_update(bundle, 1, 0))
    serve_until(service, fan, lambda: fan.of(Kind.RESULT), "the verdict")
    assert not fan.of(Kind.CHUNK_DOWN)


def test_a_message_that_the_process_does_not_survive_twice_is_put_aside(config, mosquitto, fan, monkeypatch):
    """In hand at two crashes: quarantined and acknowledged, so that the third start serves again."""
    from broker_aggregator.coordinator import Coordinator

    original = Coordinator.handle

    def fragile(self: Coordinator, event, now):
        if getattr(getattr(event, "message", None), "ts", 0) == 666:
            raise RuntimeError("a bug that this message finds")
        return original(self, event, now)

    monkeypatch.setattr(Coordinator, "handle", fragile)
    poison = encode(Get(sha256="0" * 64, size=10, chunk_size=10, window=1, missing=b"\1", ts=666))
    crashes = 0
    for _ in range(3):
        service = Service(config, SqliteStore(config.store_path), load_or_create_key(config.key_path))
        service.transport.start()
        try:
            serve_until(service, fan, lambda: fan.of(Kind.GATEWAY), "birth")
            if not crashes:
                fan.publish(Kind.GET, poison)
            quarantine = config.gateway.data_dir / "quarantine"
            serve_until(service, fan, lambda q=quarantine: q.exists() and list(q.iterdir()), "quarantine")
        except RuntimeError:
            crashes += 1
        finally:
            service.transport.close()
            service.store.close()
    assert crashes == 2
    assert poison in next((config.gateway.data_dir / "quarantine").iterdir()).read_bytes()


def test_a_rotten_bundle_stops_no_command_and_is_mended_by_adding_it_again(service, fan, config):
    """One flipped bit on the gateway's disk: `task pause` works, and copying the bundle again heals it."""
    from concurrent.futures import ThreadPoolExecutor

    bundle = create_task(config, service)
    kept = config.bundles / bundle.sha256
    data = bytearray(kept.read_bytes())
    data[1000] ^= 1
    kept.write_bytes(data)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask_gateway, config, "task-pause", {"task": "fan"})
        wait_until(lambda: service.turn(0.01) or answer.done(), 20, "the answer")
    assert answer.result().status == "successful"
    assert not list(service.objects.chunks(bundle.sha256, 16384, None, 0))
    assert add_bundle(config.bundles, BUNDLE_FILE).sha256 == bundle.sha256
    assert list(service.objects.chunks(bundle.sha256, 16384, None, 0))


def run_gateway(config_file: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "broker_aggregator", "run", "--config", str(config_file)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=(config_file.parent / "gateway.log").open("ab"),
    )


def command(config_file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "broker_aggregator", *words, "--config", str(config_file)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def config_file(mosquitto, tmp_path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(
        f'[gateway]\nfleet = "{FLEET}"\ndata_dir = "gw"\n[broker]\nhost = "127.0.0.1"\nport = {mosquitto.port}\n'
        f'reconnect_max_s = 1\n[devices]\n"{FAN}" = "{key_of(FAN).public}"\n'
    )
    (tmp_path / "task.toml").write_text(
        f'task = "fan"\nbundle = "{BUNDLE_FILE}"\nstart = true\n[plan]\nbuffer = 1\ndeadline_s = 5\n'
    )
    return path


def test_kill_9_of_the_gateway_loses_no_accepted_update(config_file, fan, tmp_path):
    """Killed three times amid a stream of updates: every `accepted` that a device heard is in the store, once."""
    bundle = Bundle.read(BUNDLE_FILE.read_bytes())
    gateway = run_gateway(config_file)
    created = command(config_file, "task", "create", str(tmp_path / "task.toml"))
    assert created.returncode == 0, created.stderr
    key = load_or_create_key(tmp_path / "gw" / "fleet.key").public
    heard: dict[int, str] = {}

    def verdicts() -> dict[int, str]:
        for result in fan.results(key):
            heard[result.seq] = result.verdict
        return heard

    seq = 0
    for _ in range(3):
        for _ in range(6):
            seq += 1
            fan.update(sound_update(bundle, seq, seq - 1))  # each makes a version
        fan.until(lambda n=seq: n - 3 in verdicts(), "verdicts before the kill", 30)
        gateway.send_signal(signal.SIGKILL)
        gateway.wait()
        gateway = run_gateway(config_file)
        for again in range(1, seq + 1):  # as agents do when the gateway is born again
            if again not in heard:
                fan.update(sound_update(bundle, again, again - 1))
        fan.until(lambda n=seq: set(verdicts()) >= set(range(1, n + 1)), f"every verdict of {seq}", 30)
    fan.until(lambda: decode(Kind.GATEWAY, fan.of(Kind.GATEWAY)[-1]).boot == 4, "the fourth birth", 30)
    gateway.send_signal(signal.SIGTERM)
    assert gateway.wait(10) == 0
    store = StoreReader(tmp_path / "gw" / "store.sqlite")
    rows = store.query("SELECT seq, disposal FROM ledger WHERE disposal NOT NULL")
    assert sorted(row["seq"] for row in rows) == sorted(s for s, v in heard.items() if v == "accepted")
    (task,) = status(store)
    again = list(replay(store, "fan"))
    assert sum(r.updates for r in again) == task["disposals"]["counted"] > 3
    assert all(r.same for r in again)
    store.close()


def test_the_command_line_from_birth_to_export(config_file, mosquitto, fan, tmp_path):
    """run, task create, status, devices, replay, export, pause, start, stop, delete; nothing retained is left."""
    gateway = run_gateway(config_file)
    assert command(config_file, "task", "create", str(tmp_path / "task.toml")).returncode == 0
    bundle = Bundle.read(BUNDLE_FILE.read_bytes())
    for seq in (1, 2):
        fan.update(sound_update(bundle, seq, seq - 1))  # each makes a version
    fan.until(lambda: len(fan.of(Kind.MANIFEST)) >= 3, "two versions", 30)
    for words in (
        ["status"],
        ["devices"],
        ["replay", "fan"],
        ["identity"],
        ["status", "--json"],
        ["devices", "--json"],
    ):
        done = command(config_file, *words)
        assert (done.returncode, done.stderr) == (0, ""), words
    exported = command(config_file, "export", "fan", "--output", str(tmp_path / "model"))
    assert exported.returncode == 0, exported.stderr
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"int8.onnx", "float.onnx", "model.json"}
    statuses = [decode(Kind.STATUS, p) for p in fan.of(Kind.STATUS)]
    assert isinstance(statuses[-1], TaskStatus)
    for verb in ("pause", "start", "stop", "delete"):
        done = command(config_file, "task", verb, "fan")
        assert done.returncode == 0, done.stderr
    refused = command(config_file, "task", "start", "fan")
    assert refused.returncode == 2
    assert "there is no task fan" in refused.stderr
    assert "Traceback" not in refused.stderr
    gateway.send_signal(signal.SIGTERM)
    assert gateway.wait(10) == 0
    with Peer(MqttTransport("127.0.0.1", mosquitto.port, "late", reconnect_min_s=0.05)) as late:
        late.connected()
        late.subscribe(f"fl/1/{FLEET}/#")
        late.fence()
        retained = {d.topic: d.payload for d in late.deliveries if d.retained}
    assert not [topic for topic in retained if "/task/" in topic]
    state = decode_as(GatewayState, retained[build(Kind.GATEWAY, FLEET)])
    assert state.state == "disconnected"


@pytest.mark.parametrize(
    ("words", "change", "said"),
    [
        (["run"], ("data_dir", "data_dirr"), "did you mean `gateway.data_dir`"),
        (["status"], None, "there is no store"),
        (["task", "--timeout", "1", "start", "fan"], None, "no gateway of fleet demo answered"),
        (["task", "create", "missing.toml"], None, "there is no configuration file"),
        (["task", "--timeout", "1", "start", "fan"], ("port = ", "port = 1 # "), "no broker at 127.0.0.1:1"),
    ],
)
def test_an_operators_mistake_is_a_sentence_and_a_hint(config_file, words, change, said):
    """Exit code 2, no traceback, what to do next."""
    if change:
        config_file.write_text(config_file.read_text().replace(*change))
    done = command(config_file, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_gateways_on_one_store_are_refused(config_file, fan):
    """They would count an update twice."""
    gateway = run_gateway(config_file)
    fan.until(lambda: fan.of(Kind.GATEWAY), "birth", 30)
    second = command(config_file, "run")
    assert second.returncode == 2
    assert "another gateway runs" in second.stderr
    gateway.send_signal(signal.SIGKILL)
    gateway.wait()


@pytest.mark.parametrize("name", ["pause/nobody-asked", "NO/ID", "pause/x.y"])
@pytest.mark.parametrize("payload", [b"\0" * 1000, b'{"sig": "00"}', b'{"status": "executing"}'])
def test_what_a_device_leaves_where_no_command_is_open_is_taken_off(
    service: Service, mosquitto: Mosquitto, name: str, payload: bytes
) -> None:
    """Readable or not: a device may name as many such topics as it likes, and the broker keeps all that is retained."""
    topic = f"fl/1/{FLEET}/dev/{FAN}/cmd/{name}"
    with Peer(MqttTransport("127.0.0.1", mosquitto.port, "looker")) as looker:
        looker.connected()
        looker.subscribe(topic)
        looker.transport.publish(topic, payload, retain=True)

        def taken_off() -> bool:
            service.turn(0.01)
            looker.until(lambda: True)
            return [d.payload for d in looker.deliveries] == [payload, b""]

        wait_until(taken_off, 20, "it is taken off")
