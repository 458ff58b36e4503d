"""What waits on either side of a connection: packets to be sent, subscriptions to be made, events to be read.

No socket, no clock and no lock: the transports bring those. Every queue is bounded, by messages and by bytes.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from fl_protocol.errors import Code, ProtocolError
from fl_protocol.transport import Connected, Delivery, Disconnected, Incoming, Limits, Undeliverable

MAX_PACKET = 268_435_455  # bytes; what MQTT's remaining length can say
WINDOW = 64  # packets in flight, whatever a broker allows: a crash repeats no more than these
FILTERS_PER_PACKET = 8  # AWS IoT Core takes no more in one SUBSCRIBE


def packet_size(topic: str, payload: bytes) -> int:
    """Bytes of a PUBLISH packet at QoS 1 on MQTT 5, without properties; 3.1.1 needs one less, QoS 0 two less."""
    remaining = 2 + len(topic.encode()) + 2 + 1 + len(payload)
    return 1 + (1 if remaining < 1 << 7 else 2 if remaining < 1 << 14 else 3 if remaining < 1 << 21 else 4) + remaining


def check_filter(text: str) -> str:
    """`text` itself, when a broker would take it as a topic filter. Raises `ProtocolError(E_SCHEMA)`."""
    *levels, last = text.split("/")
    whole = all(level == "+" or not set(level) & {"+", "#"} for level in (*levels, last.removesuffix("#")))
    if not text or len(text.encode()) > 65535 or "\0" in text or not whole or (last != "#" and "#" in last):
        raise ProtocolError(Code.SCHEMA, f"{text!r:.80} is no topic filter")
    return text


def check_topic(text: str) -> str:
    """`text` itself, when a broker would take it as a topic to publish on. Raises `ProtocolError(E_SCHEMA)`."""
    if set(check_filter(text)) & {"+", "#"}:
        raise ProtocolError(Code.SCHEMA, f"{text!r:.80} is a filter, not a topic")
    return text


class Receipt(NamedTuple):
    """Which PUBLISH of which connection: a packet identifier means nothing on the next one."""

    bseq: int
    mid: int


@dataclass(eq=False, slots=True)
class Packet:
    """A message on its way out."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    disconnects: int = 0  # connections that ended while this was in hand
    size: int = field(init=False)  # bytes on the wire

    def __post_init__(self) -> None:
        self.size = packet_size(self.topic, self.payload)

    def undeliverable(self, reason: str) -> Undeliverable:
        """The event that says that this was dropped."""
        return Undeliverable(self.topic, self.size, reason)


class Outgoing:
    """Packets to send, in order; at QoS 1 kept until acknowledged, and sent again on the next connection.

    A packet that was in hand when a connection ended is under suspicion: brokers answer one that is too large by
    closing. It is sent alone on the next connection, so that a second end names the culprit, and only that is dropped.
    """

    def __init__(self, *, max_packet: int = MAX_PACKET, max_packets: int = 4096, max_bytes: int = 32 << 20) -> None:
        self._ceiling = self._limit = max_packet
        self._max_packets, self._max_bytes = max_packets, max_bytes
        self._waiting: deque[Packet] = deque()
        self._in_flight: dict[int, Packet] = {}
        self._window = 0  # 0: no connection
        self.bytes = 0  # of all that is held
        self.dropped = 0  # at QoS 0, for want of a connection or of room

    def __len__(self) -> int:
        return len(self._waiting) + len(self._in_flight)

    def put(self, packet: Packet) -> Undeliverable | None:
        """Take a packet in, or say why it was dropped; at QoS 0 a drop is only counted.

        Raises `ProtocolError`: E_SIZE for a packet above what this connection carries, E_SCHEMA for a bad topic.
        """
        check_topic(packet.topic)
        if packet.size > self._limit:
            raise ProtocolError(Code.SIZE, f"{packet.size} bytes on {packet.topic}; the broker takes {self._limit}")
        # What may get lost takes half of the room at most: a burst of chunks must not cost a manifest or a verdict.
        room = self._max_bytes if packet.qos else self._max_bytes // 2
        places = self._max_packets if packet.qos else self._max_packets // 2
        full = len(self) >= places or self.bytes + packet.size > room
        if packet.qos == 0 and (full or not self._window):
            self.dropped += 1
        elif full:
            return packet.undeliverable(f"{len(self)} messages, {self.bytes} bytes wait already")
        else:
            self._waiting.append(packet)
            self.bytes += packet.size
        return None

    def connected(self, limits: Limits) -> list[Undeliverable]:
        """Begin a connection; what it cannot carry is dropped."""
        self._limit = limits.max_packet
        self._window = max(1, min(limits.receive_maximum, WINDOW))
        return self._drop(
            [p for p in self._waiting if p.size > self._limit],
            f"the broker takes packets of {self._limit} bytes at most",
        )

    def take(self) -> Packet | None:
        """The next packet that may be sent now. At QoS 1 `sent` must follow."""
        if not self._waiting or not self._window:
            return None
        suspect = self._waiting[0].disconnects or any(p.disconnects for p in self._in_flight.values())
        if suspect and self._in_flight:
            return None
        if self._waiting[0].qos and len(self._in_flight) >= self._window:
            return None
        packet = self._waiting.popleft()
        if packet.qos == 0:
            self.bytes -= packet.size
        return packet

    def sent(self, mid: int, packet: Packet) -> None:
        """A QoS 1 packet was handed over under the identifier `mid`."""
        self._in_flight[mid] = packet

    def acknowledged(self, mid: int) -> Packet | None:
        """PUBACK: the packet is the broker's now. None for an identifier that is not in flight."""
        packet = self._in_flight.pop(mid, None)
        if packet:
            self.bytes -= packet.size
        return packet

    def disconnected(self) -> list[Undeliverable]:
        """End a connection: QoS 0 is forgotten, QoS 1 goes back to the front, twice a suspect is dropped."""
        in_hand = list(self._in_flight.values())
        for packet in in_hand:
            packet.disconnects += 1
        quick = [p for p in self._waiting if p.qos == 0]
        self.dropped += len(quick)
        self.bytes -= sum(p.size for p in quick)
        self._waiting = deque(p for p in (*in_hand, *self._waiting) if p.qos)
        self._in_flight.clear()
        self._limit, self._window = self._ceiling, 0
        return self._drop([p for p in in_hand if p.disconnects > 1], "the connection ended twice with it in hand")

    def _drop(self, packets: Sequence[Packet], reason: str) -> list[Undeliverable]:
        gone = {id(p) for p in packets}
        self._waiting = deque(p for p in self._waiting if id(p) not in gone)
        self.bytes -= sum(p.size for p in packets)
        self.dropped += sum(p.qos == 0 for p in packets)
        return [p.undeliverable(reason) for p in packets if p.qos]


class Subscriptions:
    """What is to be subscribed (a QoS) and unsubscribed (None), until the broker has answered.

    A broker may keep a session whose SUBSCRIBE was lost with the connection: so it is asked again on the next one.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, int | None] = {}
        self._unanswered: dict[int, dict[str, int | None]] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._unanswered)

    def put(self, wanted: Iterable[tuple[str, int | None]]) -> None:
        """Want these; the last word on a filter counts. Raises `ProtocolError(E_SCHEMA)` for a bad filter."""
        checked = {check_filter(text): qos for text, qos in wanted}
        for text in checked:
            self._waiting.pop(text, None)  # so that the new word stands behind what came before it
        self._waiting.update(checked)

    def take(self) -> dict[str, int | None]:
        """The next packet's filters: all to subscribe, or all to unsubscribe; `sent` must follow. Empty: none."""
        first = next(iter(self._waiting.values()), None)
        run = (text for text, qos in self._waiting.items() if (qos is None) == (first is None))
        batch = {text: self._waiting[text] for text in islice(run, FILTERS_PER_PACKET)}
        for text in batch:
            del self._waiting[text]
        return batch

    def sent(self, mid: int, batch: dict[str, int | None]) -> None:
        """The batch was handed over under the identifier `mid`."""
        self._unanswered[mid] = batch

    def answered(self, mid: int) -> list[str]:
        """SUBACK or UNSUBACK: the filters of that packet, in its order."""
        return list(self._unanswered.pop(mid, ()))

    def disconnected(self) -> None:
        """What was not answered is asked again, before all that was not asked at all."""
        asked = {text: qos for batch in self._unanswered.values() for text, qos in batch.items()}
        self._waiting = {**{t: q for t, q in asked.items() if t not in self._waiting}, **self._waiting}
        self._unanswered.clear()


class Unread:
    """Events that nobody has received yet, oldest first.

    QoS 1 deliveries are bounded by the receive maximum, which the transport holds; what has no other bound, QoS 0 and
    Undeliverable, is dropped and counted when there is no room.
    """

    def __init__(self, *, max_events: int = 1024, max_bytes: int = 8 << 20) -> None:
        self._max_events, self._max_bytes = max_events, max_bytes
        self._events: deque[Incoming] = deque()
        self._bytes = 0
        self._unseen_new_session = False
        self.durable = 0  # QoS 1 deliveries among them
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._events)

    def add(self, event: Delivery | Undeliverable) -> None:
        """Append an event, or drop and count it."""
        size = len(event.payload) if isinstance(event, Delivery) else 0
        if isinstance(event, Delivery) and event.receipt is not None:
            self.durable += 1
        elif len(self._events) >= self._max_events or self._bytes + size > self._max_bytes:
            self.dropped += 1
            return
        self._events.append(event)
        self._bytes += size

    def connected(self, event: Connected) -> None:
        """Append; it says session_present only when every connection that the reader missed said so too."""
        new = self._unseen_new_session or not event.session_present
        self._events.append(Connected(not new, event.bseq, event.limits))

    def disconnected(self, event: Disconnected) -> None:
        """Append; the unread of that connection goes: its QoS 1 deliveries come again on the next."""
        kept: list[Incoming] = []
        for old in self._events:
            if isinstance(old, Connected):
                self._unseen_new_session |= not old.session_present
            elif isinstance(old, Undeliverable) or (isinstance(old, Delivery) and old.receipt is None):
                kept.append(old)
        self._events = deque([*kept, event])
        self._bytes = sum(len(e.payload) for e in kept if isinstance(e, Delivery))
        self.durable = 0

    def take(self) -> list[Incoming]:
        """All of it."""
        events = list(self._events)
        self._events.clear()
        self._bytes = self.durable = 0
        if any(isinstance(e, Connected) for e in events):
            self._unseen_new_session = False
        return events
