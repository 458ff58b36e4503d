"""What `MqttTransport` does where real brokers and real networks are not nice; the rest is in tests/contracts."""

import asyncio
import ctypes
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amqtt.broker import Broker

from fl_protocol import reconnect
from fl_protocol.errors import ConfigError
from fl_protocol.mqtt import MqttTransport, _Client
from fl_protocol.queues import Unread
from fl_protocol.transport import Connected, Delivery, Disconnected, Undeliverable, Will
from tests.support.certificates import make_certificates
from tests.support.forwarder import Forwarder
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.peer import Peer
from tests.support.scripted import ScriptedServer, protocol_level
from tests.support.waiting import wait_until

MosquittoWith = Callable[..., Mosquitto]
CONNACK_311, REFUSED_311 = b"\x20\x02\x00\x00", b"\x20\x02\x00\x01"


def peer(port: int, client_id: str = "a", **options: Any) -> Peer:
    """A started transport that reconnects fast."""
    fast = {"reconnect_min_s": 0.05, "reconnect_max_s": 0.2, "rng": np.random.default_rng(1)}
    return Peer(MqttTransport("127.0.0.1", port, client_id, **{**fast, **options}))


@contextmanager
def forwarding(port: int) -> Iterator[Forwarder]:
    wire = Forwarder(port)
    try:
        yield wire
    finally:
        wire.close()


@contextmanager
def scripted(answer: Callable[[bytes], bytes | None]) -> Iterator[ScriptedServer]:
    server = ScriptedServer(answer)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def amqtt_port() -> Iterator[int]:
    """A pure-Python broker, MQTT 3.1.1 only."""
    port = free_port()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> Broker:
        anonymous = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
        listener = {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}}
        broker = Broker({"listeners": listener, "plugins": anonymous})
        await broker.start()
        return broker

    broker = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield port

    async def stop() -> None:
        await broker.shutdown()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def network_thread(of: Peer) -> threading.Thread:
    thread = of.transport._thread  # type: ignore[attr-defined]
    assert isinstance(thread, threading.Thread)
    return thread


def quiet(one: Peer) -> None:
    """Wait until everything that was asked is answered: no byte is on its way."""
    shared = one.transport._shared  # type: ignore[attr-defined]
    one.until(lambda: not (shared.acks or shared.subscriptions or shared.outgoing), "quiet")


def time_is_up(one: Peer) -> None:
    """For a network thread that hangs: as if `hang_s` had gone by since it last showed itself."""
    one.transport._shared.due = 0.0  # type: ignore[attr-defined]


# Which version


def test_a_broker_that_leaves_mqtt_5_unanswered_gets_3_1_1(amqtt_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """amqtt reads MQTT 5 properties as a length and waits for more: after a short probe 3.1.1 is tried, and works."""
    monkeypatch.setattr(reconnect, "PROBE_S", 0.5)
    with peer(amqtt_port) as a:
        assert a.connected().limits.version == "3.1.1"
        assert "MQTT 3.1.1 is tried next" in a.of(Disconnected)[0].reason
        a.subscribe("x")
        a.transport.publish("x", b"hello")
        a.expect(b"hello")


@pytest.mark.parametrize("refusal", [REFUSED_311, None], ids=["CONNACK 1", "closed"])
def test_a_broker_that_refuses_mqtt_5_gets_3_1_1_and_keeps_it(refusal: bytes | None) -> None:
    """Refused or closed: the next CONNECT speaks 3.1.1, and so does every one after it was accepted."""
    levels: list[int] = []

    def answer(connect: bytes) -> bytes | None:
        levels.append(protocol_level(connect))
        return CONNACK_311 if levels[-1] == 4 else refusal

    with scripted(answer) as server, peer(server.port) as a:
        assert a.connected().limits.version == "3.1.1"
        server.drop()
        a.connected(2)
        assert levels == [5, 4, 4]


def test_mqtt_5_once_accepted_stays(mosquitto: Mosquitto) -> None:
    """A broker that dies is no reason to go back to 3.1.1."""
    with forwarding(mosquitto.port) as wire, peer(wire.port) as a:
        assert a.connected().limits.version == "5"
        mosquitto.kill()
        a.disconnected(3)  # the wire takes each CONNECT and closes it unanswered
        mosquitto.restart()
        a.until(lambda: len(a.of(Connected)) == 2)
        assert a.of(Connected)[1].limits.version == "5"


# What a broker says about its limits


def test_limits_of_connack_are_known_and_kept(mosquitto_with: MosquittoWith) -> None:
    """Maximum Packet Size and Receive Maximum, which paho itself ignores (protocol.md, fact 2)."""
    broker = mosquitto_with("max_packet_size 30000\nmax_inflight_messages 3")
    with peer(broker.port) as a, peer(broker.port, "b", max_packet=10_000) as b:
        limits = a.connected().limits
        assert (limits.version, limits.max_packet, limits.receive_maximum) == ("5", 30_000, 3)
        assert b.connected().limits.max_packet == 10_000  # the operator's, which is smaller
        for i in range(50):
            a.transport.publish("x", b"%d" % i)
        a.fence()
        assert a.of(Disconnected) == []  # mosquitto ends a connection that exceeds its receive maximum


@pytest.mark.parametrize("culprit", [0, 3, 9])
def test_a_packet_that_ends_the_connection_each_time_is_dropped_alone(
    mosquitto_with: MosquittoWith, culprit: int
) -> None:
    """3.1.1 has no way to know a broker's limit: two disconnects name the packet, its neighbours are delivered."""
    broker = mosquitto_with("max_packet_size 20000")
    with peer(broker.port, "b", version="5") as b, peer(broker.port, version="3.1.1") as a:
        b.subscribe("x")
        a.connected()
        payloads = [b"%d" % i for i in range(10)]
        for i, payload in enumerate(payloads):
            a.transport.publish("x", bytes(50_000) if i == culprit else payload)
        lost = a.undeliverable()
        assert (lost.topic, lost.size) == ("x", 50_010)
        a.fence()
        b.until(lambda: (b.acknowledge(), payloads[culprit - 1] in b.payloads)[1])
        b.fence()
        innocent = [p for i, p in enumerate(payloads) if i != culprit]
        assert list(dict.fromkeys(b.payloads)) == innocent  # in order; some may come twice
        assert len(a.of(Disconnected)) == 2
        assert len(a.of(Undeliverable)) == 1


def test_what_the_acl_forbids_is_said(mosquitto_with: MosquittoWith, tmp_path: Path) -> None:
    """A refused publish (MQTT 5) and a refused subscription are events, not silence."""
    (tmp_path / "acl").write_text("topic readwrite mine/#\ntopic readwrite fence/#\n")
    broker = mosquitto_with(f"acl_file {tmp_path / 'acl'}")
    with peer(broker.port) as a:
        a.transport.publish("theirs", b"?")
        lost = a.undeliverable()
        assert lost.topic == "theirs"
        assert "Not authorized" in lost.reason
        a.subscribe("mine/x")
        assert len(a.of(Undeliverable)) == 1


# Unreachable, unwilling, silent


def test_an_unreachable_broker_is_visible_and_tried_again() -> None:
    """Each failed attempt is an event with a reason that a person understands; the wait is the next one's."""
    port = free_port()
    with peer(port) as a:
        gone = a.disconnected(3)
        assert gone.reason == f"no connection to 127.0.0.1:{port}: Connection refused"
        assert 0 < gone.retry_in_s <= 0.2


def test_a_name_that_does_not_resolve_is_said() -> None:
    """DNS failures are named as such, and not the end."""
    transport = MqttTransport("broker.invalid", 1883, "a", reconnect_min_s=0.05, reconnect_max_s=0.1)
    with Peer(transport) as a:
        assert a.disconnected(2).reason.startswith("cannot find broker.invalid: ")


def test_wrong_credentials_are_said_and_not_tried_again_soon(mosquitto_with: MosquittoWith, tmp_path: Path) -> None:
    """Only a person can mend it: the wait is over half of the maximum, and close() does not wait for it."""
    (tmp_path / "passwords").write_text("")
    broker = mosquitto_with(f"allow_anonymous false\npassword_file {tmp_path / 'passwords'}")
    for version in ("5", "3.1.1"):
        with peer(broker.port, version=version, username="a", password="b", reconnect_max_s=300) as a:
            refused = a.disconnected()
            assert "refused the connection" in refused.reason
            assert "check user name" in refused.reason
            assert 150 <= refused.retry_in_s <= 300
        assert not network_thread(a).is_alive()


def test_a_network_that_goes_without_a_word_is_noticed(mosquitto: Mosquitto) -> None:
    """The keep-alive ends a connection on which nothing comes any more; traffic goes on with the next."""
    with forwarding(mosquitto.port) as wire, peer(wire.port, keepalive_s=1) as a:
        a.subscribe("x")
        wire.stall()
        a.transport.publish("x", b"into the void")
        assert "silent" in a.disconnected().reason
        wire.flow()
        a.until(lambda: b"into the void" in a.payloads)


def test_a_server_that_takes_the_connection_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """CONNECT without an answer is a failure with a name, for a fixed version too."""
    monkeypatch.setattr(reconnect, "CONNACK_S", 0.2)
    with scripted(lambda _: b"") as server, peer(server.port, version="3.1.1") as a:
        assert "CONNECT was not answered" in a.disconnected(2).reason


@pytest.mark.parametrize("length", [28, 1000])
@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_bytes_that_are_no_mqtt_end_the_connection_only(
    version: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A web server behind the port: an event, and the next attempt."""
    monkeypatch.setattr(reconnect, "CONNACK_S", 0.2)
    page = b"HTTP/1.1 400 Bad Request\r\n\r\n".ljust(length, b"x")
    with scripted(lambda _: page) as server, peer(server.port, version=version) as a:
        assert "internal error" not in a.disconnected(2).reason
        assert a.of(Connected) == []


def test_tls_carries_traffic_and_a_stranger_is_refused(mosquitto_with: MosquittoWith, tmp_path: Path) -> None:
    """With the broker's authority in the context it works; without, the reason says what failed."""
    authority, certificate, key = make_certificates(tmp_path)
    broker = mosquitto_with(f"cafile {authority}\ncertfile {certificate}\nkeyfile {key}")
    with peer(broker.port, tls=ssl.create_default_context(cafile=str(authority))) as a:
        a.subscribe("x")
        large = [bytes([i]) * 60_000 for i in range(10)]  # more than one TLS record each
        for payload in large:
            a.transport.publish("x", payload)
        a.expect(*large)
        assert a.of(Disconnected) == []
    with peer(broker.port, "b", tls=ssl.create_default_context()) as b:
        assert "CERTIFICATE_VERIFY_FAILED" in b.disconnected().reason


# Our own faults


def test_an_exception_in_a_callback_ends_the_connection_and_nothing_else(
    mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """paho's thread would die silently (protocol.md, fact 5): here it is an event, and the message comes again."""
    add, faults = Unread.add, ["once"]

    def faulty(self: Unread, event: Delivery | Undeliverable) -> None:
        if isinstance(event, Delivery) and event.topic == "x" and faults:
            faults.pop()
            raise ValueError("planted")
        add(self, event)

    monkeypatch.setattr(Unread, "add", faulty)
    with peer(mosquitto.port) as a:
        a.subscribe("x")
        a.transport.publish("x", b"1")
        assert a.disconnected().reason == "internal error: ValueError: planted"
        a.until(lambda: b"1" in a.payloads)
        assert a.of(Connected)[1].session_present


def test_a_will_that_cannot_be_made_ends_the_attempt_and_nothing_else(mosquitto: Mosquitto) -> None:
    """The callable is the caller's; whatever it raises is an event, and it is asked again."""

    def will(bseq: int) -> Will:
        if bseq == 1:
            raise KeyError("planted")
        return Will("s", b"lost")

    with peer(mosquitto.port, will=will) as a:
        assert a.connected().bseq == 2
        assert "KeyError" in a.of(Disconnected)[0].reason


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # we planted it
def test_a_network_thread_that_died_is_replaced(mosquitto: Mosquitto) -> None:
    """Killed from outside: receive() notices, says so, and a new thread carries on with what was queued."""
    with peer(mosquitto.port) as a:
        a.subscribe("x")
        dead = network_thread(a)
        assert dead.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(dead.ident), ctypes.py_object(SystemExit))
        wait_until(lambda: not dead.is_alive(), what="the thread is dead")
        a.transport.publish("x", b"1")
        assert "died" in a.disconnected().reason
        a.expect(b"1")
        assert network_thread(a) is not dead


def test_a_network_thread_that_hangs_is_left_to_itself(mosquitto: Mosquitto) -> None:
    """A new thread takes over; when the old one comes back, it changes nothing and ends."""
    hanging, release = threading.Event(), threading.Event()

    def will(bseq: int) -> Will | None:
        if bseq == 2:
            hanging.set()
            release.wait(60)
        return None

    with forwarding(mosquitto.port) as wire, peer(wire.port, will=will) as a:
        a.subscribe("x")
        wire.cut()
        assert hanging.wait(10)
        hung = network_thread(a)
        time_is_up(a)
        a.until(lambda: any("hangs" in d.reason for d in a.of(Disconnected)), "the hang is noticed")
        a.connected(2)
        release.set()
        wait_until(lambda: not hung.is_alive(), what="the old thread ends")
        a.transport.publish("x", b"1")
        a.expect(b"1")
        assert [c.bseq for c in a.of(Connected)] == [1, 3]


def test_close_ends_the_thread_at_once_in_every_state(mosquitto: Mosquitto) -> None:
    """Connected, waiting to try again, or never started; and nothing is received after it."""
    connected, waiting = peer(mosquitto.port), peer(free_port(), "b", reconnect_min_s=60, reconnect_max_s=300)
    connected.connected()
    waiting.disconnected()
    MqttTransport("127.0.0.1", 1, "c").close()
    for one in (connected, waiting):
        one.transport.close()
        assert not network_thread(one).is_alive()
        assert one.transport.receive(60) == []


def test_a_network_thread_that_comes_back_late_changes_nothing(
    mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It hung with a connection up; what was acknowledged meanwhile, to the old connection, is not said to the new."""
    hanging, release = threading.Event(), threading.Event()
    planted: list[str] = []
    loop_misc = _Client.loop_misc

    def hang(self: _Client) -> Any:
        if planted:
            planted.pop()
            hanging.set()
            release.wait(60)
        return loop_misc(self)

    with forwarding(mosquitto.port) as wire, peer(wire.port) as a:
        monkeypatch.setattr(_Client, "loop_misc", hang)
        a.subscribe("x")
        a.transport.publish("x", b"1")
        a.expect(b"1")
        quiet(a)
        planted.append("once")
        assert hanging.wait(10)
        hung = network_thread(a)
        a.acknowledge()
        a.transport.publish("x", b"2")
        time_is_up(a)
        a.expect(b"1", b"1", b"2")
        a.fence()
        release.set()
        wait_until(lambda: not hung.is_alive(), what="the old thread ends")
        wire.cut()
        a.expect(b"1", b"1", b"2", b"1", b"2")
        assert [c.bseq for c in a.of(Connected)] == [1, 2, 3]
        assert not caplog.records


def test_what_was_read_ahead_is_delivered_without_waiting_for_more(mosquitto: Mosquitto) -> None:
    """A thousand small messages in one segment, and then silence."""
    with forwarding(mosquitto.port) as wire, peer(wire.port) as a, peer(mosquitto.port, "b") as b:
        a.subscribe("x")
        wire.stall()
        for i in range(1000):
            b.transport.publish("x", b"%d" % i, qos=0)
        b.fence()
        wire.flow()
        a.expect(*(b"%d" % i for i in range(1000)))


def test_a_written_qos_0_is_not_taken_for_an_acknowledgement() -> None:
    """Identifiers wrap at 65,535, and paho gives QoS 0 one too: the QoS 1 packet of the same number still waits."""
    with scripted(lambda _: CONNACK_311) as server, peer(server.port, version="3.1.1") as a:
        a.connected()
        a.transport.publish("x", b"durable")
        waiting = a.transport.backlog  # type: ignore[attr-defined]
        connection = a.transport._connection  # type: ignore[attr-defined]
        wait_until(lambda: connection._client._last_mid == 1)
        connection._client._last_mid = 0
        sent = a.transport.bytes_sent
        a.transport.publish("x", b"passing", qos=0)
        wait_until(lambda: a.transport.bytes_sent > sent)
        assert a.transport.backlog == waiting  # type: ignore[attr-defined]
        server.drop()


# Bounds


def test_a_flood_at_qos_0_is_dropped_beyond_the_bound_and_counted(mosquitto_with: MosquittoWith) -> None:
    """A caller that is busy finds a bounded queue, and the QoS 1 message behind the flood."""
    mosquitto = mosquitto_with("max_queued_messages 0")  # no limit: else it drops some itself on a busy machine
    transport = MqttTransport("127.0.0.1", mosquitto.port, "a")
    with Peer(transport) as a, peer(mosquitto.port, "b") as b:
        a.subscribe("x")
        for i in range(3000):
            b.transport.publish("x", b"%d" % i, qos=0)
        b.transport.publish("x", b"durable")
        b.fence()
        wait_until(lambda: transport._shared.unread.durable == 1, what="the flood is over")
        a.expect(*(b"%d" % i for i in range(1024)), b"durable")
        # All of the rest, unless the broker found no room in the socket: then it dropped some itself.
        assert 0 < transport.dropped <= 3000 - 1024


def test_a_3_1_1_broker_without_a_window_does_not_fill_our_memory(mosquitto_with: MosquittoWith) -> None:
    """It cannot be told our receive maximum: a busy caller leaves the rest in TCP's buffers, and gets it later."""
    broker = mosquitto_with("max_inflight_messages 0\nmax_queued_messages 0")
    transport = MqttTransport("127.0.0.1", broker.port, "a", version="3.1.1", receive_maximum=10)
    with Peer(transport) as a, peer(broker.port, "b") as b:
        a.subscribe("x")
        sent = [b"%d" % i + bytes(1000) for i in range(500)]
        for payload in sent:
            b.transport.publish("x", payload)
        b.fence()
        wait_until(lambda: transport._shared.unread.durable == 21, what="one above the bound")
        a.until(lambda: (a.acknowledge(), len(a.payloads) == 500)[1])
        assert a.payloads == sent
        assert a.of(Disconnected) == []


def test_a_message_larger_than_we_take_is_dropped_and_does_not_come_again(mosquitto: Mosquitto) -> None:
    """MQTT 5: the broker knows and keeps it. 3.1.1: we drop, count and acknowledge it."""
    for version in ("5", "3.1.1"):
        transport = MqttTransport("127.0.0.1", mosquitto.port, version[0], version=version, max_incoming=10_000)
        with Peer(transport) as a, peer(mosquitto.port, "b") as b:
            a.subscribe("x")
            b.transport.publish("x", bytes(20_000))
            b.transport.publish("x", b"small")
            a.expect(b"small")
            a.acknowledge()
            a.fence()
            assert transport.dropped == (version == "3.1.1")
        with Peer(MqttTransport("127.0.0.1", mosquitto.port, version[0], version=version)) as again:
            assert again.connected().session_present
            again.fence()
            assert again.payloads == []


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_bytes_are_those_of_the_socket(mosquitto: Mosquitto, version: str) -> None:
    """Exactly what a wire in between saw, over two connections."""
    with forwarding(mosquitto.port) as wire:
        with peer(wire.port, version=version) as a:
            a.subscribe("x")
            a.transport.publish("x", bytes(100_000))
            a.expect(bytes(100_000))
            quiet(a)
            wait_until(lambda: (wire.up, wire.down) == (a.transport.bytes_sent, a.transport.bytes_received))
            wire.cut()
            a.expect(bytes(100_000), bytes(100_000))
            quiet(a)
        assert a.transport.bytes_sent > 100_000
        wait_until(lambda: (wire.up, wire.down) == (a.transport.bytes_sent, a.transport.bytes_received))


@pytest.mark.parametrize(
    ("host", "port", "client_id", "options"),
    [("", 1883, "a", {}), ("h", 0, "a", {}), ("h", 1883, "", {}), ("h", 1883, "a", {"version": "4"})],
)
def test_settings_that_can_never_work_are_refused(host: str, port: int, client_id: str, options: Any) -> None:
    """ConfigError, with a hint, before any thread starts."""
    with pytest.raises(ConfigError) as refused:
        MqttTransport(host, port, client_id, **options)
    assert refused.value.hint
