"""What our brokers do, as conversations: the memory broker is held to mosquitto 2.0.11, over MQTT 5 and 3.1.1.

Where they differ, and why that is enough: docs/broker-model.md and test_broker_differs.py.
"""

import socket
from collections.abc import Callable

import pytest

from fl_protocol.mqtt import MqttTransport
from fl_protocol.transport import Will
from tests.support.labs import Lab, LabWith
from tests.support.mosquitto import Mosquitto
from tests.support.peer import Peer
from tests.support.waiting import wait_until

STATE = "dev/d/state"
CONNACK, PUBLISH, SUBACK, PINGRESP = 2, 3, 9, 13  # packet types


def last_will(bseq: int) -> Will:
    return Will(STATE, b"lost %d" % bseq)


def numbers(*span: int) -> list[bytes]:
    """`range(*span)` as payloads."""
    return [b"%d" % i for i in range(*span)]


def publish(peer: Peer, topic: str, payloads: list[bytes], *, qos: int = 1, retain: bool = False) -> None:
    """Publish, and wait until the broker has done with it."""
    for payload in payloads:
        peer.transport.publish(topic, payload, qos=qos, retain=retain)
    peer.fence()


def drain(peer: Peer, count: int) -> None:
    """Acknowledge all that comes until it is so many, and give the broker the time to send more."""
    peer.until(lambda: (peer.acknowledge(), len(peer.payloads) >= count)[1], f"{count} messages")
    peer.fence()
    peer.acknowledge()
    peer.fence()


# Wills.


def test_a_session_that_is_taken_over_leaves_no_will(lab: Lab) -> None:
    """The second connection of a client id gets what the first had not acknowledged; nobody hears that it was lost."""
    with Peer(lab.transport("watch")) as watch:
        watch.subscribe(STATE)
        with Peer(lab.transport("d")) as d:
            d.subscribe("x")
        lab.away("d")
        first = Peer(lab.transport("d", will=last_will))
        publish(watch, "x", [b"for either"])
        first.expect(b"for either")
        with Peer(lab.transport("d")) as second:
            second.until(lambda: b"for either" in second.payloads)
            first.disconnected()
            first.transport.close()  # else the two go on taking it from each other
            watch.transport.publish("x", b"and on")
            second.until(lambda: b"and on" in second.payloads)
            watch.fence()
            assert watch.payloads == []


def test_a_will_is_replaced_by_the_next_birth(lab: Lab) -> None:
    """It is retained like any message: who comes later finds the birth only, and nothing once that is cleared."""
    with Peer(lab.transport("d", will=last_will)) as d, Peer(lab.transport("watch")) as watch:
        watch.subscribe(STATE)
        d.connected()
        lab.cut("d")
        d.connected(2)
        publish(d, STATE, [b"here"], retain=True)
        watch.expect(b"lost 1", b"here")
        with Peer(lab.transport("late")) as late:
            late.subscribe(STATE)
            assert late.expect(b"here")[0].retained
        publish(d, STATE, [b""], retain=True)
        with Peer(lab.transport("later")) as later:
            later.subscribe(STATE)
            assert later.payloads == []


def test_a_device_reads_its_own_will_when_it_is_back(lab: Lab) -> None:
    """Its session was away when the will was published: so it was queued for it, as news and not as retained."""
    with Peer(lab.transport("d", will=last_will)) as d:
        d.subscribe(STATE)
        lab.cut("d")
        d.connected(2)
        assert not d.expect(b"lost 1")[0].retained


def test_a_killed_broker_publishes_no_will(lab: Lab) -> None:
    """Neither when it dies nor when it is back."""
    with Peer(lab.transport("watch")) as watch, Peer(lab.transport("d", will=last_will)) as d:
        watch.subscribe(STATE)
        d.connected()
        lab.kill()
        watch.disconnected()
        d.disconnected()
        lab.restart()
        d.connected(2)
        watch.connected(2)
        watch.fence()
        assert watch.payloads == []


def test_a_broker_that_is_stopped_publishes_every_will(lab_with: LabWith) -> None:
    """In good order it first declares everybody lost, then writes its disk: all devices must say that they live."""
    lab = lab_with(saves="when told")
    with Peer(lab.transport("watch")) as watch, Peer(lab.transport("d", will=last_will)) as d:
        watch.subscribe(STATE)
        d.subscribe(STATE)
        lab.stop()
        watch.disconnected()
        d.disconnected()
        lab.restart()
        watch.until(lambda: b"lost 1" in watch.payloads)
        d.until(lambda: b"lost 1" in d.payloads)
        with Peer(lab.transport("late")) as late:
            late.subscribe(STATE)
            assert late.expect(b"lost 1")[0].retained


# The disk.


def test_a_killed_broker_is_back_as_of_its_last_save(lab_with: LabWith) -> None:
    """Sessions, their queues and retained messages of then; what came since is gone, whatever was acknowledged."""
    lab = lab_with(saves="when told", max_in_flight=3)
    with Peer(lab.transport("a")) as a, Peer(lab.transport("b", receive_maximum=3)) as b:
        b.subscribe("x")
        publish(a, "x", numbers(8))
        publish(a, "r", [b"old"], retain=True)
        lab.save()
        drain(b, 8)
        publish(a, "x", [b"later"])
        publish(a, "r", [b"new"], retain=True)
        drain(b, 9)
        with Peer(lab.transport("c")) as c:
            c.connected()
            before = len(b.payloads)
            lab.kill()
            for peer in (a, b, c):
                peer.disconnected()
            lab.restart()
            assert [peer.connected(2).session_present for peer in (a, b, c)] == [True, True, False]
        drain(b, before + 8)
        assert b.payloads[before:] == numbers(8)
        a.subscribe("r")
        assert a.expect(b"old")[0].retained


def test_a_broker_without_a_disk_forgets_everything(lab_with: LabWith) -> None:
    """As if it had been wiped."""
    lab = lab_with(saves="never")
    with Peer(lab.transport("a")) as a:
        a.subscribe("x")
        publish(a, "r", [b"state"], retain=True)
        lab.kill()
        a.disconnected()
        lab.restart()
        assert not a.connected(2).session_present
        publish(a, "x", [b"to nobody"])
        a.subscribe("r")
        assert a.payloads == []


# Retained messages and subscriptions.


def test_what_is_retained_comes_before_what_is_published_later(lab: Lab) -> None:
    """On each topic, at SUBSCRIBE: nobody takes an old state for a newer one."""
    topics = [f"r/{i}" for i in range(50)]
    with Peer(lab.transport("a")) as a, Peer(lab.transport("b")) as b:
        for topic in topics:
            a.transport.publish(topic, b"old", retain=True)
        a.fence()
        b.transport.subscribe([("r/+", 1)])
        for topic in topics:
            a.transport.publish(topic, b"new", retain=True)
        b.until(lambda: (b.acknowledge(), b.payloads.count(b"new") >= 50)[1])
        last = {d.topic: d.payload for d in b.deliveries}
        assert last == dict.fromkeys(topics, b"new")


def test_a_second_subscribe_brings_what_is_retained_again_and_sets_the_qos(lab: Lab) -> None:
    """A filter is subscribed once: the last QoS holds, and nothing comes twice."""
    with Peer(lab.transport("a")) as a, Peer(lab.transport("b")) as b:
        publish(a, "x", [b"state"], retain=True)
        for qos in (1, 0, 1):
            b.subscribe("x", qos=qos)
        publish(a, "x", [b"at 1"])
        b.expect(b"state", b"state", b"state", b"at 1")
        b.subscribe("x", qos=0)
        publish(a, "x", [b"at 0"])
        said = b.expect(b"state", b"state", b"state", b"at 1", b"state", b"at 0")
        assert [d.retained for d in said] == [True, True, True, False, True, False]
        assert [d.receipt is not None for d in said] == [True, False, True, True, False, False]


def test_a_subscription_outlives_connection_and_process(lab: Lab) -> None:
    """Nobody subscribes again where the session was present."""
    with Peer(lab.transport("a")) as a:
        with Peer(lab.transport("b")) as b:
            b.subscribe("x")
            lab.cut("b")
            b.connected(2)
            publish(a, "x", [b"1"])
            b.expect(b"1")
            b.acknowledge()
        lab.away("b")
        with Peer(lab.transport("b")) as b:
            assert b.connected().session_present
            publish(a, "x", [b"2"])
            b.expect(b"2")


def test_what_waited_for_an_absent_subscriber_is_not_marked_as_retained(lab: Lab) -> None:
    """It was subscribed when this was published: a late message, not a state."""
    with Peer(lab.transport("a")) as a:
        with Peer(lab.transport("b")) as b:
            b.subscribe("x")
        lab.away("b")
        publish(a, "x", [b"1"], retain=True)
        with Peer(lab.transport("b")) as b:
            assert not b.expect(b"1")[0].retained


def test_unsubscribing_takes_nothing_back(lab: Lab) -> None:
    """What was queued before comes still."""
    with Peer(lab.transport("a")) as a:
        with Peer(lab.transport("b", receive_maximum=2)) as b:
            b.subscribe("x")
        lab.away("b")
        publish(a, "x", numbers(30))
        with Peer(lab.transport("b", receive_maximum=2)) as b:
            b.transport.unsubscribe(["x"])
            b.fence()
            publish(a, "x", [b"too late"])
            drain(b, 30)
            assert b.payloads == numbers(30)


# Queues.


def test_a_slow_subscriber_loses_what_is_beyond_its_window_and_queue(lab_with: LabWith) -> None:
    """Connected as it is: so many in flight, so many queued, and the rest is gone without a word."""
    lab = lab_with(max_in_flight=5, max_queued=10)
    with Peer(lab.transport("a")) as a, Peer(lab.transport("b", receive_maximum=5)) as b:
        b.subscribe("x")
        publish(a, "x", numbers(30))
        drain(b, 15)
        assert b.payloads == numbers(15)
        publish(a, "x", [b"and on"])
        drain(b, 16)
        assert b.payloads == [*numbers(15), b"and on"]


@pytest.mark.parametrize("in_flight", [3, 20])
def test_what_was_in_flight_counts_in_the_queue_of_an_absent_subscriber(lab_with: LabWith, in_flight: int) -> None:
    """It is kept, even where it is more than the queue takes; only the room that it leaves takes more."""
    lab = lab_with(max_in_flight=20, max_queued=10)
    with Peer(lab.transport("a")) as a:
        with Peer(lab.transport("b", receive_maximum=20)) as b:
            b.subscribe("x")
            publish(a, "x", numbers(in_flight))
            b.expect(*numbers(in_flight))
        lab.away("b")
        publish(a, "x", numbers(in_flight, 40))
        with Peer(lab.transport("b", receive_maximum=20)) as b:
            kept = max(in_flight, 10)
            drain(b, kept)
            assert b.payloads == numbers(kept)


def test_qos_0_overtakes_what_waits_for_the_window(lab_with: LabWith) -> None:
    """A subscriber that acknowledges nothing still hears it."""
    lab = lab_with(max_in_flight=1)
    with Peer(lab.transport("a")) as a, Peer(lab.transport("b", receive_maximum=1)) as b:
        b.subscribe("x")
        publish(a, "x", [b"1", b"2"])
        publish(a, "x", [b"3"], qos=0)
        b.expect(b"1", b"3")
        drain(b, 3)
        assert b.payloads == [b"1", b"3", b"2"]


def flood(publisher: Peer, topic: str) -> None:
    """15 MB at QoS 0: more than the sockets on the way to a subscriber hold, and by far more than ten packets more."""
    for i in range(0, 300, 20):
        publish(publisher, topic, [bytes(50_000) + b"%d" % n for n in range(i, i + 20)], qos=0)


def test_behind_a_full_wire_everything_is_dropped_and_qos_1_comes_with_the_next_connection(lab_with: LabWith) -> None:
    """QoS 1 that is dropped there stays in flight: not lost, but not sent again for as long as the connection lives."""
    lab = lab_with(max_queued=10)
    with Peer(lab.transport("a")) as a, Peer(lab.transport("b")) as b:
        b.subscribe("x", "q")
        lab.stall("b")
        flood(a, "x")
        publish(a, "q", numbers(5))
        lab.flow("b")

        def ends() -> bool:
            a.transport.publish("x", b"end", qos=0)  # dropped as well, until the wire has taken what was held
            return b"end" in b.payloads

        b.until(ends, "the wire is free again")
        assert 10 < sum(len(payload) > 50_000 for payload in b.payloads) < 300
        assert [d for d in b.deliveries if d.topic == "q"] == []
        lab.cut("b")
        b.until(lambda: sum(d.topic == "q" for d in b.deliveries) >= 5)
        assert [d.payload for d in b.deliveries if d.topic == "q"] == numbers(5)


def test_behind_a_full_wire_mosquitto_drops_answers_too(mosquitto_with: Callable[..., Mosquitto]) -> None:
    """PUBACK and SUBACK: what was sent is done, and its sender is never told. (The model: test_memory.py.)"""
    broker = mosquitto_with("max_queued_messages 10")
    with (
        socket.create_connection(("127.0.0.1", broker.port), 10) as raw,
        raw.makefile("rb") as incoming,
        Peer(MqttTransport("127.0.0.1", broker.port, "a")) as a,
    ):

        def send(kind: int, body: bytes = b"") -> None:
            raw.sendall(bytes([kind, len(body)]) + body)

        def read() -> int:
            kind, size, shift = incoming.read(1)[0], 0, 0
            while (more := incoming.read(1)[0]) & 128:
                size, shift = size | (more & 127) << shift, shift + 7
            incoming.read(size | more << shift)
            return kind >> 4

        send(0x10, b"\0\4MQTT\4\0\0\x3c\0\3raw")  # 3.1.1, keep-alive of a minute
        send(0x82, b"\0\1\0\1x\0")
        assert [read(), read()] == [CONNACK, SUBACK]
        a.subscribe("z")
        flood(a, "x")
        send(0x32, b"\0\1z\0\7published")  # at QoS 1
        send(0x82, b"\0\2\0\1y\0")
        a.expect(b"published")
        wait_until(lambda: "raw 0 y" in broker.log.read_text(), what="the subscription")
        kinds = []
        while PINGRESP not in kinds:
            kinds.append(read())
            send(0xC0)  # one is answered, when the wire is free again
        assert set(kinds) == {PUBLISH, PINGRESP}
