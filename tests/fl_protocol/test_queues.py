"""What waits on either side of a connection: nothing is lost without a word, and everything is bounded."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fl_protocol.errors import Code, ProtocolError
from fl_protocol.queues import (
    FILTERS_PER_PACKET,
    MAX_PACKET,
    Outgoing,
    Packet,
    Subscriptions,
    Unread,
    check_filter,
    check_topic,
    packet_size,
)
from fl_protocol.transport import Connected, Delivery, Disconnected, Limits, Undeliverable

LIMITS = Limits("5", 1000, 3)


def packet(payload: bytes = b"", qos: int = 1, topic: str = "t") -> Packet:
    return Packet(topic, payload, qos, retain=False)


class OutgoingModel(RuleBasedStateMachine):
    """A broker that acknowledges when it likes, and a network that fails when it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = Outgoing(max_packets=6, max_bytes=4000)
        self.count = 0
        self.mid = 0
        self.open: list[bytes] = []  # QoS 1 payloads put in and not settled, in order
        self.settled: Counter[bytes] = Counter()
        self.in_flight: dict[int, Packet] = {}
        self.first_sent: list[bytes] = []
        self.connected = False

    def settle(self, payload: bytes) -> None:
        self.open.remove(payload)
        self.settled[payload] += 1

    @rule(qos=st.integers(0, 1), size=st.integers(4, 40) | st.integers(4, 1200))
    def put(self, qos: int, size: int) -> None:
        self.count += 1
        payload = b"%04d" % self.count + bytes(size - 4)
        one = packet(payload, qos)
        if self.connected and one.size > LIMITS.max_packet:
            with pytest.raises(ProtocolError) as refused:
                self.queue.put(one)
            assert refused.value.code == Code.SIZE
            return
        lost = self.queue.put(one)
        assert lost is None or qos == 1
        if qos and lost is None:
            self.open.append(payload)

    @precondition(lambda self: not self.connected)
    @rule()
    def connect(self) -> None:
        self.connected = True
        too_large = [p for p in self.open if packet_size("t", p) > LIMITS.max_packet]
        assert [lost.size for lost in self.queue.connected(LIMITS)] == [packet_size("t", p) for p in too_large]
        for payload in too_large:
            self.settle(payload)

    @rule()
    def send(self) -> None:
        one = self.queue.take()
        if one is None:
            return
        assert self.connected
        assert one.size <= LIMITS.max_packet
        if one.qos:
            assert one.payload == self.open[len(self.in_flight)], "in order"
            self.mid += 1
            self.in_flight[self.mid] = one
            self.queue.sent(self.mid, one)
            if one.disconnects:
                assert len(self.in_flight) == 1, "a suspect travels alone"
        assert len(self.in_flight) <= LIMITS.receive_maximum

    @precondition(lambda self: self.in_flight)
    @rule()
    def acknowledge_the_oldest(self) -> None:
        mid, one = next(iter(self.in_flight.items()))
        del self.in_flight[mid]
        assert self.queue.acknowledged(mid) is one
        assert self.queue.acknowledged(mid) is None
        self.settle(one.payload)

    @precondition(lambda self: self.connected)
    @rule()
    def disconnect(self) -> None:
        self.connected = False
        suspects = [p for p in self.in_flight.values() if p.disconnects]
        lost = self.queue.disconnected()
        assert [event.size for event in lost] == [p.size for p in suspects]
        assert len(lost) <= 1, "only the culprit"
        for one in suspects:
            self.settle(one.payload)
        self.in_flight.clear()

    @invariant()
    def bounded_and_counted(self) -> None:
        assert len(self.queue) <= 6
        assert sum(packet_size("t", p) for p in self.open) <= self.queue.bytes <= 4000
        assert all(times == 1 for times in self.settled.values())

    def teardown(self) -> None:
        """Whatever happened: a network that holds delivers the rest, in order."""
        if not self.connected:
            self.connect()
        for _ in range(2 * len(self.open) + 10):
            self.send()
            if self.in_flight:
                self.acknowledge_the_oldest()
        assert self.open == []
        assert (len(self.queue), self.queue.bytes) == (0, 0)


TestOutgoing = OutgoingModel.TestCase
TestOutgoing.settings = settings(max_examples=60)


def test_no_more_is_in_flight_than_the_broker_receives() -> None:
    """Its receive maximum, for QoS 1; QoS 0 is not counted. An acknowledgement lets the next one go."""
    queue = Outgoing()
    queue.connected(Limits("5", 1000, receive_maximum=2))
    for qos in (1, 1, 0, 1):
        queue.put(packet(qos=qos))
    for mid in (1, 2):
        taken = queue.take()
        assert taken is not None
        queue.sent(mid, taken)
    zero = queue.take()
    assert zero is not None
    assert zero.qos == 0
    assert queue.take() is None
    queue.acknowledged(1)
    assert queue.take() is not None


def test_qos_0_is_dropped_without_a_connection_and_never_kept_over_one() -> None:
    """What QoS 0 says is about now."""
    queue = Outgoing()
    assert queue.put(packet(b"1", qos=0)) is None
    queue.connected(LIMITS)
    queue.put(packet(b"2", qos=0))
    assert queue.disconnected() == []
    queue.connected(LIMITS)
    assert queue.take() is None
    assert (queue.dropped, queue.bytes) == (2, 0)


@pytest.mark.parametrize("bound", [{"max_bytes": 4000}, {"max_packets": 8}])
def test_what_may_get_lost_leaves_room_for_what_may_not(bound: dict[str, int]) -> None:
    """A burst of chunks at QoS 0 must not cost the manifest that announces them."""
    queue = Outgoing(**bound)
    queue.connected(LIMITS)
    for _ in range(100):
        assert queue.put(packet(b"x" * 100, qos=0)) is None
    assert queue.dropped > 50
    assert queue.put(packet(b"manifest")) is None


def test_a_full_queue_names_what_it_refuses() -> None:
    """QoS 1 is never dropped in silence: the new one is Undeliverable, the waiting ones stay."""
    queue = Outgoing(max_packets=1)
    assert queue.put(packet(b"1")) is None
    lost = queue.put(packet(b"22", topic="late"))
    assert isinstance(lost, Undeliverable)
    assert (lost.topic, lost.size) == ("late", packet_size("late", b"22"))
    assert "wait already" in lost.reason
    queue.connected(LIMITS)
    taken = queue.take()
    assert taken is not None
    assert taken.payload == b"1"


@pytest.mark.parametrize("length", [0, 100, 127, 128, 16_000, 16_383, 16_384, 2_097_151, 2_097_152])
@pytest.mark.parametrize("topic", ["t", "µ" * 30])
def test_the_packet_size_is_that_of_the_bytes_on_the_wire(length: int, topic: str) -> None:
    """Compared with the packet as MQTT 5 section 3.3 builds it."""
    name = topic.encode()
    body = len(name).to_bytes(2, "big") + name + b"\0\1" + b"\0" + bytes(length)
    header, left = b"\x32", len(body)
    while True:
        left, low = divmod(left, 128)
        header += bytes([low | (0x80 if left else 0)])
        if not left:
            break
    assert packet_size(topic, bytes(length)) == len(header + body)


@pytest.mark.parametrize("text", ["a", "/", "a//b", "+", "#", "a/+/b", "a/#", "+/+/#", "$SYS/#", "µ"])
def test_filters_that_brokers_take(text: str) -> None:
    """MQTT 5, section 4.7."""
    assert check_filter(text) == text


@pytest.mark.parametrize("text", ["", "a+", "a/b+/c", "#/a", "a#", "a/##", "a\0", "x" * 65536, "+#"])
def test_filters_that_no_broker_takes(text: str) -> None:
    """They would end the connection, or raise inside paho: E_SCHEMA to the caller instead."""
    for check in (check_filter, check_topic):
        with pytest.raises(ProtocolError) as refused:
            check(text)
        assert refused.value.code == Code.SCHEMA


def test_an_unanswered_subscription_is_asked_again() -> None:
    """A session may survive a SUBSCRIBE that did not: what has no answer goes first on the next connection."""
    wanted = Subscriptions()
    wanted.put([("a", 1), ("b", 0)])
    wanted.sent(1, wanted.take())
    wanted.put([("c", 1), ("b", None)])
    wanted.disconnected()
    assert wanted.take() == {"a": 1, "c": 1}
    assert wanted.take() == {"b": None}
    assert wanted.take() == {}


def test_an_answer_settles_its_own_packet_only() -> None:
    """And says which filters it was about, in the packet's order; an unknown one says nothing."""
    wanted = Subscriptions()
    wanted.put([(f"f/{i}", 1) for i in range(FILTERS_PER_PACKET + 1)])
    wanted.sent(1, wanted.take())
    wanted.sent(2, wanted.take())
    assert wanted.answered(2) == [f"f/{FILTERS_PER_PACKET}"]
    assert wanted.answered(2) == []
    wanted.disconnected()
    assert list(wanted.take()) == [f"f/{i}" for i in range(FILTERS_PER_PACKET)]


WORDS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0, 1, None])), max_size=5)


@given(st.lists(WORDS, max_size=6), st.data())
def test_the_last_word_on_a_filter_counts(connections: list[list[tuple[str, int | None]]], data: st.DataObject) -> None:
    """Of each connection some packets arrive, in order, some of those are answered: in the end the broker agrees."""
    wanted, broker, mid = Subscriptions(), {}, 0
    for words in [*connections, []]:
        sent: list[tuple[int, dict[str, int | None]]] = []
        for word in words:
            wanted.put([word])
            if data.draw(st.booleans()) and (batch := wanted.take()):
                assert len({qos is None for qos in batch.values()}) == 1, "one kind a packet"
                mid += 1
                wanted.sent(mid, batch)
                sent.append((mid, batch))
        arrived = sent[: data.draw(st.integers(0, len(sent)))]
        for _, batch in arrived:
            broker.update(batch)
        for number, batch in arrived[: data.draw(st.integers(0, len(arrived)))]:
            assert wanted.answered(number) == list(batch)
        wanted.disconnected()
    while batch := wanted.take():
        broker.update(batch)
    assert broker == {text: qos for words in connections for text, qos in words}


def test_unread_drops_qos_0_and_never_qos_1() -> None:
    """By events and by bytes; QoS 1 has the receive maximum."""
    for bound in ({"max_events": 2}, {"max_bytes": 2}):
        unread = Unread(**bound)
        for _ in range(4):
            unread.add(Delivery("t", b"0"))
        unread.add(Delivery("t", b"1", receipt="r"))
        assert [e.payload for e in unread.take() if isinstance(e, Delivery)] == [b"0", b"0", b"1"]
        assert unread.dropped == 2
        unread.add(Delivery("t", b"00"))
        assert len(unread) == 1


def test_unread_forgets_the_qos_1_of_a_connection_that_ended() -> None:
    """It comes again; and a caller that does not read sees one Disconnected, not all of them."""
    unread = Unread()
    unread.connected(Connected(session_present=True, bseq=1, limits=LIMITS))
    unread.add(Delivery("t", b"1", receipt="r"))
    unread.add(Delivery("t", b"0"))
    unread.add(Undeliverable("t", 1, "why"))
    unread.disconnected(Disconnected("first"))
    unread.disconnected(Disconnected("second"))
    assert unread.durable == 0
    assert unread.take() == [Delivery("t", b"0"), Undeliverable("t", 1, "why"), Disconnected("second")]


def test_a_new_session_is_not_missed() -> None:
    """A caller that never saw session_present = 0 is told so at the next connection, though the broker says 1 then."""
    unread = Unread()
    for bseq, present in ((1, False), (2, True)):
        unread.connected(Connected(present, bseq, LIMITS))
        unread.disconnected(Disconnected("flapping"))
    unread.connected(Connected(session_present=True, bseq=3, limits=LIMITS))
    assert unread.take()[-1] == Connected(session_present=False, bseq=3, limits=LIMITS)
    unread.connected(Connected(session_present=True, bseq=4, limits=LIMITS))
    assert unread.take() == [Connected(session_present=True, bseq=4, limits=LIMITS)]


def test_no_packet_is_larger_than_mqtt_can_say() -> None:
    """The remaining length has four bytes."""
    assert MAX_PACKET == 128**4 - 1
