"""A broker and its connections in one process: no thread, no clock, no randomness; the same calls give the same events.

The simulator runs on it, and so does every test that needs no socket. It does what mosquitto was measured to do
(protocol.md, "Facts measured"): PUBACK is not delivery, and a full queue drops without a word. `tests/contracts` holds
both to one suite.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from fl_protocol.errors import ConfigError
from fl_protocol.queues import MAX_PACKET, Outgoing, Packet, Receipt, Subscriptions, Unread, packet_size
from fl_protocol.transport import Connected, Delivery, Disconnected, Incoming, Limits, Will, WillOf

PUBACK_BYTES = 4


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic filter takes a topic. Source: MQTT 5, section 4.7; `#` and `+` in front spare `$` topics."""
    wanted, levels = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    for i, want in enumerate(wanted):
        if want == "#":
            return True
        if i == len(levels) or want not in ("+", levels[i]):
            return False
    return len(wanted) == len(levels)


@dataclass(frozen=True, slots=True)
class _Message:
    arrival: int
    topic: str
    payload: bytes
    qos: int
    retained: bool = False


@dataclass
class _Session:
    """What the broker keeps for a client id; the QoS 0 queue and the last two only for a connection."""

    waiting: deque[_Message] = field(default_factory=deque)  # QoS 1
    in_flight: dict[int, _Message] = field(default_factory=dict)
    passing: deque[_Message] = field(default_factory=deque)  # QoS 0
    transport: "MemoryTransport | None" = None
    will: Will | None = None

    def next(self, receive_maximum: int) -> _Message | None:
        """The oldest message that may be sent now; QoS 0 overtakes QoS 1 that waits for acknowledgements."""
        open_window = self.waiting and len(self.in_flight) < receive_maximum
        if open_window and (not self.passing or self.waiting[0].arrival < self.passing[0].arrival):
            return self.waiting.popleft()
        return self.passing.popleft() if self.passing else None

    def rewind(self) -> None:
        """The connection is gone: what was in flight comes first on the next, in its order."""
        self.waiting.extendleft(reversed(self.in_flight.values()))
        self.in_flight.clear()
        self.passing.clear()
        self.transport = self.will = None


class MemoryBroker:
    """A broker that keeps sessions and retained messages; each session's queue is `max_queued` deep, as in mosquitto.

    `dropped` counts what a queue had no room for, which no MQTT client is ever told.
    """

    def __init__(self, *, max_packet: int = MAX_PACKET, receive_maximum: int = 65535, max_queued: int = 1000) -> None:
        self.limits = Limits("5", max_packet, receive_maximum)
        self.max_queued = max_queued
        self.running = True
        self.dropped = 0
        self.retained: dict[str, tuple[bytes, int]] = {}  # topic -> payload, QoS
        self._arrivals = 0
        self._sessions: dict[str, _Session] = {}
        self._exact: dict[str, dict[str, int]] = {}  # filter -> client id -> QoS: devices' subscriptions, many
        self._wild: dict[str, dict[str, int]] = {}  # the gateway's and the operators', few

    def cut(self, client_id: str) -> None:
        """End a connection as a dead network does: the will is published."""
        session = self._sessions.get(client_id)
        if session and session.transport:
            self._end(session, "the connection was cut")

    def kill(self) -> None:
        """Stop as `kill -9` does: connections end, and no will is published."""
        self.running = False
        for session in self._sessions.values():
            session.will = None
            self._end(session, "the broker is gone")

    def restart(self) -> None:
        """Run again, with what the disk holds."""
        self.running = True

    def wipe(self) -> None:
        """Lose the disk: retained messages, sessions and what was queued in them. A running broker is killed by it."""
        was_running = self.running
        self.kill()
        self.retained.clear()
        self._sessions.clear()
        self._exact.clear()
        self._wild.clear()
        self.running = was_running

    def connect(self, transport: "MemoryTransport", will: Will | None) -> tuple[_Session, bool]:
        """Open the session of a transport, and say whether it was there; an older connection of its id ends."""
        present = transport.client_id in self._sessions
        session = self._sessions.setdefault(transport.client_id, _Session())
        self._end(session, "another connection took this client id over")
        session.transport, session.will = transport, will
        return session, present

    def disconnect(self, session: _Session) -> None:
        """DISCONNECT: the will is forgotten."""
        session.rewind()

    def subscribe(self, client_id: str, pattern: str, qos: int) -> None:
        """SUBSCRIBE to one filter; what is retained under it comes at once, again at each SUBSCRIBE."""
        self._index(pattern).setdefault(pattern, {})[client_id] = qos
        for topic, (payload, published) in self.retained.items():
            if matches(pattern, topic):
                self._queue(client_id, topic, payload, min(qos, published), retained=True)

    def unsubscribe(self, client_id: str, pattern: str) -> None:
        """UNSUBSCRIBE from one filter; what is queued already is delivered all the same."""
        takers = self._index(pattern).get(pattern, {})
        takers.pop(client_id, None)
        if not takers:
            self._index(pattern).pop(pattern, None)

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """Give a message to every session that subscribed, once each, at the lower QoS."""
        if retain and payload:
            self.retained[topic] = (payload, qos)
        elif retain:
            self.retained.pop(topic, None)
        takers = dict(self._exact.get(topic, {}))
        for pattern, clients in self._wild.items():
            if matches(pattern, topic):
                for client_id, granted in clients.items():
                    takers[client_id] = max(granted, takers.get(client_id, 0))
        for client_id, granted in takers.items():
            self._queue(client_id, topic, payload, min(qos, granted))

    def _index(self, pattern: str) -> dict[str, dict[str, int]]:
        return self._wild if "+" in pattern or "#" in pattern else self._exact

    def _queue(self, client_id: str, topic: str, payload: bytes, qos: int, *, retained: bool = False) -> None:
        session = self._sessions[client_id]
        if qos == 0 and session.transport is None:
            return
        queue = session.waiting if qos else session.passing
        if len(queue) >= self.max_queued:
            self.dropped += 1
            return
        self._arrivals += 1
        queue.append(_Message(self._arrivals, topic, payload, qos, retained))

    def _end(self, session: _Session, reason: str) -> None:
        transport, will = session.transport, session.will
        session.rewind()
        if transport:
            transport.ended(reason)
        if will:
            self.publish(will.topic, will.payload, 1, retain=True)


class MemoryTransport:
    """A `Transport` to a `MemoryBroker`: nothing waits; `receive` connects where it can, and returns what is there."""

    def __init__(
        self, broker: MemoryBroker, client_id: str, *, will: WillOf | None = None, receive_maximum: int = 64
    ) -> None:
        if not client_id:
            raise ConfigError("a kept session needs a client id", "give each program its own")
        self.client_id = client_id
        self.bytes_sent = 0  # of PUBLISH and PUBACK packets, as they would be on the wire
        self.bytes_received = 0
        self._broker, self._will, self._receive_maximum = broker, will, receive_maximum
        self._outgoing, self._subscriptions = Outgoing(), Subscriptions()
        self._unread = Unread()
        self._session: _Session | None = None
        self._bseq = self._mid = 0
        self._wanted = False

    @property
    def dropped(self) -> int:
        """Messages dropped at QoS 0 for want of a connection or of room."""
        return self._outgoing.dropped

    @property
    def backlog(self) -> int:
        """Bytes of packets that wait to be sent."""
        return self._outgoing.bytes

    def start(self) -> None:
        """Connect, now or at the first `receive` that finds the broker running."""
        self._wanted = True
        self._connect()

    def receive(self, timeout: float) -> list[Incoming]:  # noqa: ARG002 - nothing can happen while we wait
        """What happened since the last call, oldest first; returns at once."""
        self._connect()
        return self._unread.take() + (self._deliveries(self._session) if self._session else [])

    def acknowledge(self, receipt: object) -> None:
        """PUBACK: the delivery is durable with us. Receipts of an earlier connection are ignored."""
        if self._session is None or not isinstance(receipt, Receipt) or receipt.bseq != self._bseq:
            return
        if self._session.in_flight.pop(receipt.mid, None):
            self.bytes_sent += PUBACK_BYTES

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """As `Transport.publish`."""
        refused = self._outgoing.put(Packet(topic, payload, qos, retain))
        if refused:
            self._unread.add(refused)
        self._send()

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to (filter, QoS) pairs. Raises `ProtocolError(E_SCHEMA)` for what is no filter."""
        self._subscriptions.put(filters)
        self._send()

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Stop receiving what matches these filters."""
        self._subscriptions.put((text, None) for text in filters)
        self._send()

    def close(self) -> None:
        """Disconnect without a will."""
        self._wanted = False
        if self._session:
            self._broker.disconnect(self._session)
            self._session = None

    def ended(self, reason: str) -> None:
        """The broker's word that the connection is gone; `receive` makes the next."""
        self._session = None
        self._unread.disconnected(Disconnected(reason))
        for lost in self._outgoing.disconnected():
            self._unread.add(lost)

    def _connect(self) -> None:
        if not self._wanted or self._session or not self._broker.running:
            return
        self._bseq += 1
        self._session, present = self._broker.connect(self, self._will(self._bseq) if self._will else None)
        self._unread.connected(Connected(present, self._bseq, self._broker.limits))
        for lost in self._outgoing.connected(self._broker.limits):
            self._unread.add(lost)
        self._send()

    def _send(self) -> None:
        if self._session is None:
            return
        while batch := self._subscriptions.take():
            for pattern, qos in batch.items():
                if qos is None:
                    self._broker.unsubscribe(self.client_id, pattern)
                else:
                    self._broker.subscribe(self.client_id, pattern, qos)
        while packet := self._outgoing.take():
            self.bytes_sent += packet.size
            if packet.qos:
                self._outgoing.sent(0, packet)
                self._outgoing.acknowledged(0)
                self.bytes_received += PUBACK_BYTES
            self._broker.publish(packet.topic, packet.payload, packet.qos, packet.retain)

    def _deliveries(self, session: _Session) -> list[Incoming]:
        deliveries: list[Incoming] = []
        while message := session.next(self._receive_maximum):
            receipt = None
            if message.qos:
                self._mid += 1
                receipt = Receipt(self._bseq, self._mid)
                session.in_flight[self._mid] = message
            self.bytes_received += packet_size(message.topic, message.payload)
            deliveries.append(Delivery(message.topic, message.payload, message.retained, receipt))
        return deliveries
