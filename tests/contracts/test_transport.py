"""What every `Transport` promises, as conversations: in memory, and over mosquitto with MQTT 5 and 3.1.1."""

import pytest

from fl_protocol.errors import Code, ProtocolError
from fl_protocol.transport import Connected, Disconnected, Undeliverable, Will
from tests.support.labs import Lab, LabWith
from tests.support.peer import Peer


def last_will(bseq: int) -> Will:
    return Will("dev/d/state", b"lost %d" % bseq)


def test_the_first_connection_finds_no_session_and_later_ones_do(lab: Lab) -> None:
    """Connected says session_present, counts connections in bseq, and names the broker's limits."""
    with Peer(lab.transport("a")) as a:
        first = a.connected()
        assert (first.session_present, first.bseq) == (False, 1)
        assert first.limits.max_packet > 100_000
        lab.cut("a")
        second = a.connected(2)
        assert second.session_present
        assert second.bseq > first.bseq
        assert [type(e) for e in a.events][:2] == [Connected, Disconnected]
        assert a.of(Disconnected)[0].reason


@pytest.mark.parametrize("qos", [0, 1])
def test_what_is_published_is_delivered_bit_for_bit(lab: Lab, qos: int) -> None:
    """Topic and payload arrive as they were; only QoS 1 has a receipt."""
    payloads = [b"", b"\x00\xff" * 1000, "µ".encode()]
    with Peer(lab.transport("a")) as a, Peer(lab.transport("b")) as b:
        b.subscribe("x/y")
        for payload in payloads:
            a.transport.publish("x/y", payload, qos=qos)
        for delivery in b.expect(*payloads):
            assert delivery.topic == "x/y"
            assert not delivery.retained
            assert (delivery.receipt is not None) == (qos == 1)


def test_a_subscription_at_qos_0_gets_qos_0(lab: Lab) -> None:
    """The lower QoS of publisher and subscriber holds."""
    with Peer(lab.transport("a")) as a:
        a.subscribe("x", qos=0)
        a.transport.publish("x", b"1", qos=1)
        assert a.expect(b"1")[0].receipt is None


def test_a_retained_message_reaches_who_comes_later_until_it_is_cleared(lab: Lab) -> None:
    """Marked as retained for who comes later, not for who was there; an empty payload clears it."""
    with Peer(lab.transport("a")) as a, Peer(lab.transport("b")) as b, Peer(lab.transport("c")) as c:
        a.subscribe("s")
        a.transport.publish("s", b"old", retain=True)
        a.transport.publish("s", b"new", retain=True)
        assert [d.retained for d in a.expect(b"old", b"new")] == [False, False]
        b.subscribe("s")
        assert [d.retained for d in b.expect(b"new")] == [True]
        a.transport.publish("s", b"", retain=True)
        b.expect(b"new", b"")
        c.subscribe("s")
        assert c.payloads == []


def test_wildcards_match_levels_and_nothing_else(lab: Lab) -> None:
    """`+` is one level, `#` the rest with its parent. (Of overlapping filters some brokers deliver twice: not ours.)"""
    with Peer(lab.transport("a")) as a:
        a.subscribe("dev/+/state", "task/#")
        for topic in ("dev/d1/state", "dev/d1/x/state", "dev/state", "task", "task/t/plan", "tasks", "dev/d2/state"):
            a.transport.publish(topic, topic.encode())
        a.expect(b"dev/d1/state", b"task", b"task/t/plan", b"dev/d2/state")
        a.fence()
        assert len(a.payloads) == 4


def test_nothing_comes_after_unsubscribe(lab: Lab) -> None:
    """What was unsubscribed stays away, the rest keeps coming."""
    with Peer(lab.transport("a")) as a:
        a.subscribe("x", "y")
        a.transport.publish("x", b"1")
        a.expect(b"1")
        a.transport.unsubscribe(["x"])
        a.fence()
        a.transport.publish("x", b"2")
        a.transport.publish("y", b"3")
        a.fence()
        a.expect(b"1", b"3")


def test_the_will_of_a_lost_connection_names_that_connection(lab: Lab) -> None:
    """The will is asked anew before each CONNECT, with its bseq; it is published, and retained."""
    with Peer(lab.transport("watch")) as watch, Peer(lab.transport("d", will=last_will)) as d:
        watch.subscribe("dev/d/state")
        first = d.connected()
        lab.cut("d")
        watch.expect(b"lost %d" % first.bseq)
        second = d.connected(2)
        lab.cut("d")
        watch.expect(b"lost %d" % first.bseq, b"lost %d" % second.bseq)
        with Peer(lab.transport("late")) as late:
            late.subscribe("dev/d/state")
            assert late.expect(b"lost %d" % second.bseq)[0].retained


def test_closing_sends_what_is_queued_and_no_will(lab: Lab) -> None:
    """close() is a farewell: everything published arrives, and the will does not."""
    with Peer(lab.transport("watch")) as watch:
        watch.subscribe("#")
        d = Peer(lab.transport("d", will=last_will))
        d.connected()
        sent = [b"%d" % i for i in range(100)]
        for payload in sent:
            d.transport.publish("x", payload)
        d.transport.close()
        d.transport.close()
        watch.until(lambda: (watch.acknowledge(), len(watch.payloads) >= 100)[1], "100 messages")
        watch.fence()
        assert watch.payloads == sent


def test_what_was_not_acknowledged_comes_again_in_order(lab: Lab) -> None:
    """The session outlives the connection: redelivery begins with the oldest unacknowledged message."""
    with Peer(lab.transport("a")) as a, Peer(lab.transport("b")) as b:
        b.subscribe("x")
        for i in range(10):
            a.transport.publish("x", b"%d" % i)
        first = b.expect(*(b"%d" % i for i in range(10)))
        for delivery in first[:4]:
            b.transport.acknowledge(delivery.receipt)
        b.fence()  # the broker has the acknowledgements now
        lab.cut("b")
        again = b.expect(*(b"%d" % i for i in (*range(10), *range(4, 10))))[10:]
        assert b.connected(2).session_present
        assert {d.receipt for d in again}.isdisjoint({d.receipt for d in first})


def test_the_receipt_of_an_earlier_connection_acknowledges_nothing(lab: Lab) -> None:
    """Packet identifiers start anew with a connection: an old receipt must not hit a new message."""
    with Peer(lab.transport("a")) as a, Peer(lab.transport("b")) as b:
        b.subscribe("x")
        a.transport.publish("x", b"1")
        old = b.expect(b"1")[0].receipt
        lab.cut("b")
        b.expect(b"1", b"1")
        b.transport.acknowledge(old)
        b.transport.acknowledge("no receipt at all")
        b.fence()
        lab.cut("b")
        b.expect(b"1", b"1", b"1")


def test_a_durable_subscriber_finds_qos_1_waiting_and_no_qos_0(lab: Lab) -> None:
    """While a subscriber is away the broker queues QoS 1 for its client id, and drops QoS 0."""
    with Peer(lab.transport("a")) as a:
        with Peer(lab.transport("b")) as b:
            b.subscribe("x")
        lab.away("b")
        a.transport.publish("x", b"lost", qos=0)
        a.transport.publish("x", b"kept", qos=1)
        a.fence()
        with Peer(lab.transport("b")) as b:
            assert b.connected().session_present
            b.expect(b"kept")
            b.fence()
            assert b.payloads == [b"kept"]


def test_a_full_queue_drops_without_a_word(lab_with: LabWith) -> None:
    """A PUBACK is not delivery: what exceeds the subscriber's queue is acknowledged to the publisher, and gone."""
    lab = lab_with(max_queued=10)
    with Peer(lab.transport("a")) as a:
        with Peer(lab.transport("b")) as b:
            b.subscribe("x")
        lab.away("b")  # else what comes before the broker has read our good-bye is in flight, not queued
        for i in range(30):
            a.transport.publish("x", b"%d" % i)
        a.fence()
        assert a.of(Undeliverable) == []
        with Peer(lab.transport("b")) as b:
            b.connected()
            b.until(lambda: (b.acknowledge(), len(b.payloads) >= 10)[1])
            b.fence()
            assert b.payloads == [b"%d" % i for i in range(10)]


def test_the_receive_maximum_bounds_what_is_unacknowledged(lab_with: LabWith) -> None:
    """So many QoS 1 deliveries at once; an acknowledgement lets the next in (with mosquitto 2.0.11, the next five)."""
    lab = lab_with(max_in_flight=5)
    with Peer(lab.transport("a")) as a, Peer(lab.transport("b", receive_maximum=5)) as b:
        b.subscribe("x")
        for i in range(12):
            a.transport.publish("x", b"%d" % i)
        b.expect(*(b"%d" % i for i in range(5)))
        a.fence()
        b.fence()
        assert len(b.payloads) == 5
        b.transport.acknowledge(b.deliveries[0].receipt)
        b.until(lambda: len(b.payloads) >= 6)
        b.until(lambda: (b.acknowledge(), len(b.payloads) == 12)[1])
        assert b.payloads == [b"%d" % i for i in range(12)]


def test_a_message_above_the_packet_limit_is_refused_and_harms_nothing(lab_with: LabWith) -> None:
    """E_SIZE at once; the largest that fits, and what was published before and after, arrives on one connection."""
    lab = lab_with(max_packet=20_000)
    with Peer(lab.transport("a")) as a:
        assert a.connected().limits.max_packet == 20_000
        a.subscribe("x")
        a.transport.publish("x", b"before")
        for qos in (0, 1):
            with pytest.raises(ProtocolError) as refused:
                a.transport.publish("x", bytes(20_000), qos=qos)
            assert refused.value.code == Code.SIZE
        fits = bytes(20_000 - 10)  # 1 type, 3 length, 2 + 1 topic, 2 identifier, 1 properties
        a.transport.publish("x", fits)
        a.transport.publish("x", b"after")
        a.expect(b"before", fits, b"after")
        assert a.of(Disconnected) == []


def test_a_message_too_large_for_the_next_connection_is_given_up_by_name(lab_with: LabWith) -> None:
    """Published before the limit is known: refused at once (3.1.1) or Undeliverable later, never a reconnect loop."""
    lab = lab_with(max_packet=20_000)
    transport = lab.transport("a")
    refused = None
    transport.publish("x", b"small")
    try:
        transport.publish("x", bytes(50_000))
    except ProtocolError as error:
        refused = error.code
    transport.publish("x", b"small too")
    with Peer(lab.transport("b")) as b:
        b.subscribe("x")
        with Peer(transport) as a:
            b.expect(b"small", b"small too")
            if refused is None:
                lost = a.undeliverable()
                assert lost.topic == "x"
                assert lost.size > 50_000
                assert "20000" in lost.reason
            assert refused in (None, Code.SIZE)
            a.fence()
            assert len(a.of(Connected)) == 1


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a\0b", "x" * 65536])
def test_a_topic_that_no_broker_takes_is_refused(lab: Lab, topic: str) -> None:
    """E_SCHEMA to the caller, and the connection is unharmed."""
    with Peer(lab.transport("a")) as a:
        a.subscribe("y")
        with pytest.raises(ProtocolError) as refused:
            a.transport.publish(topic, b"")
        assert refused.value.code == Code.SCHEMA
        with pytest.raises(ProtocolError):
            a.transport.subscribe([("y/#/z", 1)])
        a.transport.publish("y", b"fine")
        a.expect(b"fine")
        assert a.of(Disconnected) == []


def test_what_is_published_without_a_connection_is_sent_with_the_next(lab: Lab) -> None:
    """QoS 1 waits, in order; QoS 0 does not; a subscription waits too."""
    with Peer(lab.transport("a")) as a:
        a.connected()
        lab.kill()
        a.disconnected()
        a.transport.subscribe([("x", 1)])
        a.transport.publish("x", b"1")
        a.transport.publish("x", b"now or never", qos=0)
        a.transport.publish("x", b"2")
        lab.restart()
        a.connected(2)
        a.expect(b"1", b"2")
        a.fence()
        assert a.payloads == [b"1", b"2"]


def test_a_killed_broker_that_kept_its_disk_goes_on_where_it_was(lab: Lab) -> None:
    """After kill -9 and restart: session, subscription and retained message are there, unacknowledged comes again."""
    with Peer(lab.transport("a")) as a, Peer(lab.transport("b")) as b:
        b.subscribe("x", "s")
        a.transport.publish("x", b"unacknowledged message")
        a.transport.publish("s", b"retained state", retain=True)  # last: of the two, only this makes mosquitto save
        b.expect(b"unacknowledged message", b"retained state")
        lab.saved(b"unacknowledged message")
        lab.saved(b"retained state")
        before = b.deliveries
        lab.kill()
        b.disconnected()
        for delivery in before:
            b.transport.acknowledge(delivery.receipt)  # of a dead connection: means nothing
        lab.restart()
        assert b.connected(2).session_present
        b.expect(*[b"unacknowledged message", b"retained state"] * 2)
        b.fence()
        lab.cut("b")
        b.expect(*[b"unacknowledged message", b"retained state"] * 3)
        b.acknowledge()
        b.transport.publish("x", b"and on")
        b.until(lambda: b"and on" in b.payloads)
        with Peer(lab.transport("c")) as c:
            c.subscribe("s")
            assert c.expect(b"retained state")[0].retained


def test_a_broker_that_lost_its_disk_says_that_it_knows_nobody(lab: Lab) -> None:
    """session_present is False: subscriptions and retained messages are gone, and can be made again."""
    with Peer(lab.transport("a")) as a:
        a.subscribe("x")
        a.transport.publish("s", b"state", retain=True)
        a.fence()
        lab.kill()
        lab.wipe()
        lab.restart()
        assert not a.connected(2).session_present
        a.transport.publish("x", b"1")
        a.subscribe("s")
        assert a.payloads == []
        a.subscribe("x")
        a.transport.publish("x", b"2")
        a.expect(b"2")


def test_a_second_connection_takes_the_client_id_over(lab: Lab) -> None:
    """One client id, one connection: the first is told that it ended."""
    first = Peer(lab.transport("a"))
    first.connected()
    with Peer(lab.transport("a")) as second:
        second.connected()
        first.disconnected()
        first.transport.close()


def test_bytes_are_counted_both_ways(lab: Lab) -> None:
    """At least the payloads, and little more."""
    with Peer(lab.transport("a")) as a:
        a.subscribe("x")
        up, down = a.transport.bytes_sent, a.transport.bytes_received
        a.transport.publish("x", bytes(50_000))
        a.expect(bytes(50_000))
        assert 50_000 <= a.transport.bytes_sent - up <= 50_200
        assert 50_000 <= a.transport.bytes_received - down <= 50_200
