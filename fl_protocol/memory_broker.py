"""A broker in one process: no thread, no clock, no randomness; the same calls give the same events.

It does what mosquitto was measured to do (docs/broker-model.md): PUBACK is not delivery, and a full queue drops without
a word. Transports talk to it over a `Wire`: `MemoryTransport` in memory.py is the other end of each connection.
"""

import copy
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fl_protocol.queues import MAX_PACKET, Packet, packet_size
from fl_protocol.retained import Retained, has_wildcard, matches
from fl_protocol.transport import Limits, Will
from fl_protocol.wire import Arrive, Wire

PUBACK_BYTES = 4

Queue = Callable[[bytes], None]  # put a payload into the subscriber's queue
# What becomes of a message on its way to a subscriber: (client id, topic, payload, queue). Once, as it should be; or
# never, twice, later or altered, as brokers, bridges, clusters and those who break into them may do.
Fate = Callable[[str, str, bytes, Queue], None]


class End(Protocol):
    """A transport's end of connections. Nothing of one that has ended there counts any more."""

    @property
    def client_id(self) -> str:
        """Under which the session is kept."""

    @property
    def wire(self) -> Wire:
        """The way there."""

    def accepted(self, link: "Link", present: bool, limits: Limits) -> None:
        """CONNACK."""

    def subscribed(self, link: "Link", mid: int) -> None:
        """SUBACK."""

    def acknowledged(self, link: "Link", mid: int) -> None:
        """PUBACK."""

    def delivered(self, link: "Link", message: "Message", mid: int) -> None:
        """PUBLISH."""

    def ended(self, link: "Link", reason: str) -> None:
        """The connection is gone."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a broker gives to a subscriber."""

    topic: str
    payload: bytes
    qos: int
    retained: bool = False


@dataclass(eq=False, slots=True)
class Link:
    """One connection: its `transport` holds one end as long as it believes in it, the broker's session the other."""

    transport: "End"
    bseq: int
    receive_maximum: int
    session: "_Session | None" = None  # while the broker believes in it
    established: bool = False  # CONNACK has come
    last_mid: int = 0
    held: deque[tuple[int, Arrive]] = field(default_factory=deque)  # packets that the full wire did not take yet


@dataclass(slots=True)
class _Session:
    """What the broker keeps for a client id; the last two only for a connection."""

    client_id: str
    waiting: deque[Message] = field(default_factory=deque)  # QoS 1, while the window is shut or there is no connection
    in_flight: dict[int, Message] = field(default_factory=dict)
    link: Link | None = None
    will: Will | None = None

    def rewind(self) -> None:
        """The connection is gone: what was in flight comes first on the next, in its order."""
        self.waiting.extendleft(reversed(self.in_flight.values()))
        self.in_flight.clear()
        if self.link:
            self.link.session = None
            self.link.held.clear()
        self.link = self.will = None


@dataclass(frozen=True)
class _Saved:
    """What the broker's disk holds."""

    retained: Retained
    waiting: dict[str, tuple[Message, ...]]  # by client id
    exact: dict[str, dict[str, int]]
    wild: dict[str, dict[str, int]]


class MemoryBroker:
    """A broker that keeps sessions and retained messages; each session's queue is `max_queued` deep, as in mosquitto.

    Behind a wire that is full as many packets wait. `dropped` counts what had no room, of which no MQTT client is ever
    told. `fate` decides over each message on its way to a subscriber; None: all arrive. With `will_at_take_over` a
    second connection of a client id brings the will of the first, as the standard says (MQTT 5, section 3.1.4);
    mosquitto 2.0.11 publishes none where the session is kept.
    """

    def __init__(
        self,
        *,
        max_packet: int = MAX_PACKET,
        receive_maximum: int = 65535,
        max_queued: int = 1000,
        will_at_take_over: bool = False,
    ) -> None:
        self.limits = Limits("5", max_packet, receive_maximum)
        self.max_queued = max_queued
        self.will_at_take_over = will_at_take_over
        self.running = True
        self.dropped = 0
        self.fate: Fate | None = None
        self.retained = Retained()
        self._sessions: dict[str, _Session] = {}
        self._exact: dict[str, dict[str, int]] = {}  # filter -> client id -> QoS: devices' subscriptions, many
        self._wild: dict[str, dict[str, int]] = {}  # filters with wildcards, few
        self._saved = _Saved(Retained(), {}, {}, {})

    def cut(self, client_id: str) -> None:
        """End a connection as a dead network does: the will is published."""
        session = self._sessions.get(client_id)
        if session and session.link:
            self._end(session, "the connection was cut")

    def gives_up(self, link: Link) -> None:
        """The same for one connection, if the broker still believes in it."""
        if link.session:
            self._end(link.session, "the connection was cut")

    def kill(self) -> None:
        """Stop as `kill -9` does: connections end, and no will is published."""
        self.running = False
        for session in list(self._sessions.values()):
            session.will = None
            self._end(session, "the broker is gone")

    def stop(self) -> None:
        """End in good order, as mosquitto does when it is told to: every will is published, the disk is written."""
        for session in list(self._sessions.values()):
            will, session.will = session.will, None
            if will:
                self.publish(will.topic, will.payload, 1, retain=True)
        self.save()
        self.kill()

    def restart(self, *, saved: bool = False) -> None:
        """Run again with all that it knew; with `saved`, only with what the last `save` wrote.

        mosquitto's default writes every half an hour, and at a clean end: a killed one forgets what came since.
        """
        if saved and not self.running:
            disk = copy.deepcopy(self._saved)
            self.retained, self._exact, self._wild = disk.retained, disk.exact, disk.wild
            self._sessions = {c: _Session(c, waiting=deque(w)) for c, w in disk.waiting.items()}
        self.running = True

    def save(self) -> None:
        """Write retained messages, sessions and their queues to the disk."""
        self._saved = copy.deepcopy(self._disk())

    def wipe(self) -> None:
        """Lose the disk: retained messages, sessions and what was queued in them. A running broker is killed by it."""
        was_running = self.running
        self.kill()
        self.retained = Retained()
        self._sessions.clear()
        self._exact.clear()
        self._wild.clear()
        self.save()
        self.running = was_running

    # --- what transports send; nothing of a connection that has ended here counts any more ---

    def accept(self, link: Link, will: Will | None) -> None:
        """CONNECT: open or resume the session; an older connection of its client id ends."""
        transport = link.transport
        if not self.running:
            transport.wire.down(0, lambda: transport.ended(link, "the broker does not run"))
            return
        present = transport.client_id in self._sessions
        session = self._sessions.setdefault(transport.client_id, _Session(transport.client_id))
        if not self.will_at_take_over:
            session.will = None
        self._end(session, "another connection took this client id over")
        session.link, session.will, link.session = link, will, session
        self._send(link, PUBACK_BYTES, lambda: transport.accepted(link, present, self.limits))
        self.pump(session)

    def disconnect(self, link: Link) -> None:
        """DISCONNECT: the will is forgotten."""
        if link.session:
            link.session.rewind()

    def subscribe(self, link: Link, batch: dict[str, int | None], mid: int) -> None:
        """SUBSCRIBE or UNSUBSCRIBE (None): what is retained under a filter comes at once, again at each SUBSCRIBE.

        What is queued already is delivered in spite of an UNSUBSCRIBE.
        """
        session, transport = link.session, link.transport
        if session is None:
            return
        self._send(link, PUBACK_BYTES, lambda: transport.subscribed(link, mid))
        for pattern, qos in batch.items():
            takers = self._index(pattern).setdefault(pattern, {})
            if qos is None:
                takers.pop(session.client_id, None)
                if not takers:
                    del self._index(pattern)[pattern]
                continue
            takers[session.client_id] = qos
            for topic, payload, published in self.retained.under(pattern):
                self._route(session.client_id, topic, payload, min(qos, published), retained=True)

    def received(self, link: Link, packet: Packet, mid: int) -> None:
        """PUBLISH: acknowledged at once, whatever becomes of it."""
        if link.session is None:
            return
        if packet.qos:
            transport = link.transport
            self._send(link, PUBACK_BYTES, lambda: transport.acknowledged(link, mid))
        self.publish(packet.topic, packet.payload, packet.qos, packet.retain)

    def acknowledged(self, link: Link, mid: int) -> None:
        """PUBACK: the window moves."""
        if link.session and link.session.in_flight.pop(mid, None):
            self.pump(link.session)

    # --- what goes to transports ---

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """Give a message to every session that subscribed, once each, at the lower QoS."""
        if retain:
            self.retained.put(topic, payload, qos)
        takers = dict(self._exact.get(topic, {}))
        for pattern, clients in self._wild.items():
            if matches(pattern, topic):
                for client_id, granted in clients.items():
                    takers[client_id] = max(granted, takers.get(client_id, 0))
        for client_id, granted in takers.items():
            self._route(client_id, topic, payload, min(qos, granted))

    def pump(self, session: _Session) -> None:
        """Send what the connection's wire and window take."""
        link = session.link
        if link is None:
            return
        self._flush(link)
        while session.waiting and len(session.in_flight) < link.receive_maximum:
            message = session.waiting.popleft()
            mid = link.last_mid = link.last_mid + 1
            session.in_flight[mid] = message
            self._deliver(link, message, mid)

    def _deliver(self, link: Link, message: Message, mid: int) -> None:
        size = packet_size(message.topic, message.payload)
        self._send(link, size, lambda: link.transport.delivered(link, message, mid))

    def _send(self, link: Link, size: int, arrive: Arrive) -> None:
        """Send a packet, or hold it back; where so many are held already, drop it, whatever it is.

        So does mosquitto 2.0.11: a QoS 1 message then comes on the next connection only, a PUBACK never.
        """
        if len(link.held) >= self.max_queued and link.transport.wire.full():
            self.dropped += 1
            return
        link.held.append((size, arrive))
        self._flush(link)

    def _flush(self, link: Link) -> None:
        wire = link.transport.wire
        while link.held and not wire.full():
            wire.down(*link.held.popleft())

    def _disk(self) -> _Saved:
        waiting = {c: (*s.in_flight.values(), *s.waiting) for c, s in self._sessions.items()}
        return _Saved(self.retained, waiting, self._exact, self._wild)

    def _index(self, pattern: str) -> dict[str, dict[str, int]]:
        return self._wild if has_wildcard(pattern) else self._exact

    def _route(self, client_id: str, topic: str, payload: bytes, qos: int, *, retained: bool = False) -> None:
        if qos == 0 and self._sessions[client_id].link is None:
            return
        if self.fate is None:
            self._queue(client_id, topic, payload, qos, retained)
        else:
            self.fate(client_id, topic, payload, lambda given: self._queue(client_id, topic, given, qos, retained))

    def _queue(self, client_id: str, topic: str, payload: bytes, qos: int, retained: bool) -> None:
        session = self._sessions.get(client_id)  # it may be gone by now, where `fate` took its time
        if session is None or (qos == 0 and session.link is None):
            return  # QoS 0 is for who is there
        message = Message(topic, payload, qos, retained)
        if qos == 0 and session.link:
            self._deliver(session.link, message, 0)
        elif len(session.waiting) >= self.max_queued:
            self.dropped += 1
        else:
            session.waiting.append(message)
            self.pump(session)

    def _end(self, session: _Session, reason: str) -> None:
        """End the session's connection; the will, which it may have subscribed to itself, finds it away."""
        link, will = session.link, session.will
        session.rewind()
        if will:
            self.publish(will.topic, will.payload, 1, retain=True)
        if link:
            transport = link.transport
            transport.wire.down(0, lambda: transport.ended(link, reason))
