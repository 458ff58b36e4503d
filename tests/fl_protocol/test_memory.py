"""What the memory broker does beyond the contract: it is exact, counts what it drops, and always does the same."""

import math
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.errors import ConfigError
from fl_protocol.memory import MemoryTransport
from fl_protocol.memory_broker import Fate, MemoryBroker, Queue
from fl_protocol.queues import check_filter, packet_size
from fl_protocol.retained import matches
from fl_protocol.transport import Delivery, Disconnected, Will
from fl_protocol.wire import Arrive
from tests.support.labs import TestWire
from tests.support.peer import Peer

LEVELS = st.lists(st.sampled_from(["", "a", "b", "$x"]), min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = st.builds(
    lambda levels, last: "/".join([*levels, *last]),
    st.lists(st.sampled_from(["", "a", "b", "$x", "+"]), min_size=1, max_size=4),
    st.sampled_from([[], ["#"]]),
).filter(bool)


@given(FILTERS, LEVELS)
def test_filters_match_as_the_standard_says(pattern: str, topic: str) -> None:
    """MQTT 5, section 4.7, written as a regular expression."""
    body = re.escape(check_filter(pattern)).replace(r"\+", "[^/]*")
    body = re.sub(r"(/?)\\\#$", lambda m: "(/.*)?" if m[1] else ".*", body)
    spared = topic.startswith("$") and pattern[0] in "+#"
    assert matches(pattern, topic) == (re.fullmatch(body, topic) is not None and not spared)


def conversation(seed: int) -> list[object]:
    """A few devices and a gateway that talk, fail and come back at random; all that anyone was told."""
    rng = np.random.default_rng(seed)
    broker = MemoryBroker(max_queued=20)
    peers = {
        name: Peer(MemoryTransport(broker, name, will=lambda bseq: Will("lost", b"%d" % bseq), receive_maximum=4))
        for name in "abcd"
    }
    for step in range(400):
        peer = peers["abcd"[rng.integers(4)]]
        match rng.integers(8):
            case 0:
                peer.transport.subscribe([(str(rng.choice(["x", "y", "+", "lost"])), int(rng.integers(2)))])
            case 1:
                broker.cut(str(rng.choice(list("abcd"))))
            case 2 if step % 10 == 0:
                broker.kill()
                if rng.integers(4) == 0:
                    broker.wipe()
            case 3:
                broker.restart()
            case 4:
                peer.acknowledge()
            case _:
                topic, qos, retain = str(rng.choice(["x", "y"])), int(rng.integers(2)), bool(rng.integers(2))
                peer.transport.publish(topic, b"%d" % step, qos=qos, retain=retain)
        peer.events += peer.transport.receive(60)
    return [(name, event) for name, peer in peers.items() for event in peer.events]


@pytest.mark.parametrize("seed", range(5))
def test_the_same_calls_give_the_same_events(seed: int) -> None:
    """Deterministic, faults included; and a conversation is not empty."""
    events = conversation(seed)
    assert events == conversation(seed)
    assert sum(isinstance(e, Delivery) for _, e in events) > 50
    assert sum(isinstance(e, Disconnected) for _, e in events) > 10


def test_what_a_full_queue_drops_is_counted_by_the_broker() -> None:
    """No client is told; a test and the simulator can see it."""
    broker = MemoryBroker(max_queued=3)
    with Peer(MemoryTransport(broker, "a")) as a:
        a.subscribe("x")
        dropped = broker.dropped
        a.transport.close()
        b = Peer(MemoryTransport(broker, "b"))
        for i in range(5):
            b.transport.publish("x", b"%d" % i)
        assert broker.dropped - dropped == 2


def test_qos_0_does_not_wait_for_acknowledgements() -> None:
    """A subscriber that acknowledges nothing still hears the rest."""
    broker = MemoryBroker()
    with Peer(MemoryTransport(broker, "a", receive_maximum=1)) as a:
        a.subscribe("x")
        for payload, qos in ((b"1", 1), (b"2", 1), (b"3", 0)):
            a.transport.publish("x", payload, qos=qos)
        a.expect(b"1", b"3")
        a.acknowledge()
        a.expect(b"1", b"3", b"2")


def test_a_broker_that_does_not_run_is_waited_for() -> None:
    """start() before the broker: the first receive() that finds it connects."""
    broker = MemoryBroker()
    broker.kill()
    a = Peer(MemoryTransport(broker, "a"))
    assert a.transport.receive(60) == []
    broker.restart()
    assert not a.connected().session_present


def test_a_transport_needs_a_client_id() -> None:
    """The session is kept under it."""
    with pytest.raises(ConfigError):
        MemoryTransport(MemoryBroker(), "")


# What becomes of messages on their way to a subscriber.


def delivered_under(fate: Fate, count: int = 6) -> tuple[MemoryBroker, Peer]:
    """A subscriber of "x" to which so many were published; each topic's own fate from then on."""
    broker = MemoryBroker()
    a, b = (Peer(MemoryTransport(broker, name)) for name in "ab")
    a.subscribe("x")
    broker.fate = fate
    for i in range(count):
        b.transport.publish("x", b"%d" % i)
    broker.fate = None
    a.fence()
    return broker, a


def test_fate_may_lose_and_double_messages() -> None:
    """Or alter them. It is told whose message it is, and which. The publisher has its PUBACK either way."""
    told = []

    def fate(client_id: str, topic: str, payload: bytes, queue: Queue) -> None:
        told.append((client_id, topic, payload))
        for _ in range(len(told) % 3):
            queue(b"!" + payload if payload == b"3" else payload)

    _, a = delivered_under(fate)
    assert told == [("a", "x", b"%d" % i) for i in range(6)]
    assert a.payloads == [b"0", b"1", b"1", b"!3", b"4", b"4"]


def test_what_fate_delays_comes_late_and_out_of_order() -> None:
    """Into the queue of whoever has the session then, and on no connection that is gone."""
    late: list[Arrive] = []
    broker, a = delivered_under(lambda _client, _topic, payload, queue: late.append(partial(queue, payload)), count=3)
    assert a.payloads == []
    broker.cut("a")
    late[2]()
    a.connected(2)
    late[0]()
    a.expect(b"2", b"0")
    a.acknowledge()
    broker.kill()
    broker.wipe()
    late[1]()  # its session is no more
    broker.restart()
    a.connected(3)
    a.subscribe("x")
    assert a.payloads == [b"2", b"0"]


# The disk.


@given(st.lists(st.sampled_from(["publish", "acknowledge", "cut", "save"]), max_size=30))
def test_a_broker_is_back_as_of_its_last_save(deeds: list[str]) -> None:
    """What was published and not acknowledged at `save`, in order, whatever happened since."""
    broker = MemoryBroker()
    a, b = (Peer(MemoryTransport(broker, name, receive_maximum=2)) for name in "ab")
    b.subscribe("x")
    broker.save()
    published, settled, on_disk = 0, 0, range(0)
    for deed in deeds:
        match deed:
            case "publish":
                a.transport.publish("x", b"%d" % published)
                published += 1
            case "acknowledge":
                for delivery in b.transport.receive(0):
                    if isinstance(delivery, Delivery):
                        b.transport.acknowledge(delivery.receipt)
                        settled += 1
            case "cut":
                broker.cut("b")
            case "save":
                broker.save()
                on_disk = range(settled, published)
    broker.kill()
    broker.restart(saved=True)
    b.transport.close()
    b = Peer(MemoryTransport(broker, "b"))
    assert b.connected().session_present
    b.fence()
    assert b.payloads == [b"%d" % i for i in on_disk]


def test_a_broker_that_runs_is_not_taken_back() -> None:
    """`restart` of what was not killed changes nothing."""
    broker = MemoryBroker()
    with Peer(MemoryTransport(broker, "a")) as a:
        a.transport.publish("x", b"state", retain=True)
        broker.restart(saved=True)
        a.subscribe("x")
        a.expect(b"state")


def test_the_will_at_a_take_over_may_be_published() -> None:
    """As the standard says, and mosquitto 2.0.11 does not: a will that is stale when it comes."""
    broker = MemoryBroker(will_at_take_over=True)
    Peer(MemoryTransport(broker, "d", will=lambda bseq: Will("lost", b"%d" % bseq)))
    with Peer(MemoryTransport(broker, "watch")) as watch:
        watch.subscribe("lost")
        with Peer(MemoryTransport(broker, "d")):
            watch.expect(b"1")


# Wires.


def over_a_wire(broker: MemoryBroker, client_id: str = "a", room: int = 100, **options: Any) -> tuple[Peer, TestWire]:
    """A subscriber of "x" behind a wire that holds so many bytes on the way down, when it is stalled."""
    wire = TestWire(room)
    peer = Peer(MemoryTransport(broker, client_id, wire=wire, **options))
    peer.subscribe("x")
    return peer, wire


def test_behind_a_full_wire_the_broker_holds_back_and_goes_on_when_it_drains() -> None:
    """In order, both QoS; no more on the wire than it takes."""
    broker = MemoryBroker()
    a, wire = over_a_wire(broker)
    wire.stalled = True
    with Peer(MemoryTransport(broker, "b")) as b:
        for i in range(20):
            b.transport.publish("x", b"%03d" % i, qos=i % 2)
    takes = math.ceil(100 / packet_size("x", b"000"))
    for arrived in range(20):
        assert len(wire.on_the_way_down) == min(takes, 20 - arrived)
        wire.step_down()
        a.events += a.transport.receive(0)
        assert a.payloads == [b"%03d" % i for i in range(arrived + 1)]
    assert broker.dropped == 0


def test_behind_a_full_wire_what_max_queued_does_not_hold_is_dropped() -> None:
    """QoS 0 for good; QoS 1 is in flight already, and comes with the next connection."""
    broker = MemoryBroker(max_queued=3)
    a, wire = over_a_wire(broker, room=1)
    wire.stalled = True
    with Peer(MemoryTransport(broker, "b")) as b:
        for i in range(8):
            b.transport.publish("x", b"%d" % i, qos=i % 2)
    assert broker.dropped == 4  # one on the wire, three behind it
    wire.flow()
    a.fence()
    assert a.payloads == [b"0", b"1", b"2", b"3"]
    broker.cut("a")
    a.connected(2)
    a.fence()
    assert a.payloads[4:] == [b"1", b"3", b"5", b"7"]


def test_behind_a_full_wire_answers_are_dropped_too() -> None:
    """A PUBACK that was dropped never comes: the packet stays in hand, and is sent again on the next connection."""
    broker = MemoryBroker(max_queued=1)
    a, wire = over_a_wire(broker, room=1)
    wire.stalled = True
    with Peer(MemoryTransport(broker, "b")) as b:
        b.subscribe("y")
        for _ in range(2):
            b.transport.publish("x", b"1", qos=0)
        a.transport.publish("y", b"mine")
        wire.step_up()
        b.expect(b"mine")
        wire.flow()
        assert a.transport.backlog == packet_size("y", b"mine")
        broker.cut("a")
        a.connected(2)
        assert a.transport.backlog == 0
        b.expect(b"mine", b"mine")


def test_what_is_on_the_wire_of_a_connection_that_ended_counts_for_nothing() -> None:
    """The broker has given the connection up, and the transport has not heard of it: neither believes the other."""
    broker = MemoryBroker()
    a, wire = over_a_wire(broker, room=1000)
    with Peer(MemoryTransport(broker, "b")) as b:
        b.subscribe("y")
        b.transport.publish("x", b"1")
        receipt = a.expect(b"1")[0].receipt
        wire.stalled = True
        a.transport.acknowledge(receipt)
        a.transport.publish("y", b"of the first connection")
        a.transport.subscribe([("z", 1)])
        broker.cut("a")
        for _ in range(3):
            wire.step_up()
        b.fence()
        assert b.payloads == []
        wire.flow()  # now it hears that it was cut
        a.connected(2)
        a.expect(b"1", b"1")
        b.expect(b"of the first connection")
        b.transport.publish("z", b"2")
        a.until(lambda: b"2" in a.payloads)  # what was not answered was asked again


def test_what_comes_for_a_connection_that_the_transport_gave_up_counts_for_nothing() -> None:
    """It has connected anew; deliveries and the end of the first connection arrive late."""
    broker = MemoryBroker()
    a, wire = over_a_wire(broker, room=1000)
    wire.stalled = True
    with Peer(MemoryTransport(broker, "b")) as b:
        b.transport.publish("x", b"1")
    transport = a.transport
    assert isinstance(transport, MemoryTransport)
    first = transport._link
    assert first is not None
    transport.ended(first, "the broker was silent")
    a.disconnected()  # and the next CONNECT is on its way
    wire.flow()
    a.connected(2)
    a.expect(b"1")
    transport.ended(first, "late news")
    assert transport.connected
    assert len(a.of(Disconnected)) == 1
