"""A `Transport` in memory: what the simulator runs on, and every test that needs no socket.

`tests/contracts` holds it, with its broker, and the transport over mosquitto to one suite.
"""

from collections.abc import Callable, Sequence

from fl_protocol.errors import ConfigError
from fl_protocol.memory_broker import PUBACK_BYTES, Link, MemoryBroker, Message
from fl_protocol.queues import Outgoing, Packet, Receipt, Subscriptions, Unread, packet_size
from fl_protocol.transport import Connected, Delivery, Disconnected, Incoming, Limits, WillOf
from fl_protocol.wire import DIRECT, Wire

CONNECT_BYTES = 64  # about; with a will, a little more


class MemoryTransport:
    """A `Transport` to a `MemoryBroker` over `wire`; `receive` connects where it can, and returns what is there.

    Over the direct wire nothing waits. `on_news` is called when `receive` has something to return.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        *,
        will: WillOf | None = None,
        receive_maximum: int = 64,
        wire: Wire = DIRECT,
        on_news: Callable[[], None] = lambda: None,
    ) -> None:
        if not client_id:
            raise ConfigError("a kept session needs a client id", "give each program its own")
        self.client_id, self.wire = client_id, wire
        self.bytes_sent = 0  # of PUBLISH and PUBACK packets, as they would be on the wire
        self.bytes_received = 0
        self._broker, self._will, self._receive_maximum = broker, will, receive_maximum
        self._on_news = on_news
        self._outgoing, self._subscriptions = Outgoing(), Subscriptions()
        self._unread = Unread()
        self._link: Link | None = None
        self._bseq = self._mid = 0
        self._wanted = self._sending = False
        wire.on_drained(self._drained)

    @property
    def dropped(self) -> int:
        """Messages dropped at QoS 0 for want of a connection or of room, in either direction."""
        return self._outgoing.dropped + self._unread.dropped

    @property
    def backlog(self) -> int:
        """Bytes of packets that wait to be sent or acknowledged."""
        return self._outgoing.bytes

    @property
    def connected(self) -> bool:
        """Whether this end believes in a connection."""
        return self._link is not None and self._link.established

    def start(self) -> None:
        """Connect, now or at the first `receive` that finds the broker running."""
        self._wanted = True
        self._connect()

    def receive(self, timeout: float) -> list[Incoming]:  # noqa: ARG002 - nothing can happen while we wait
        """What happened since the last call, oldest first; returns at once."""
        self._connect()
        return self._unread.take()

    def acknowledge(self, receipt: object) -> None:
        """PUBACK: the delivery is durable with us. Receipts of an earlier connection are ignored."""
        link = self._link
        if link is None or not isinstance(receipt, Receipt) or receipt.bseq != link.bseq:
            return
        self.bytes_sent += PUBACK_BYTES
        self.wire.up(PUBACK_BYTES, lambda: self._broker.acknowledged(link, receipt.mid))

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """As `Transport.publish`."""
        refused = self._outgoing.put(Packet(topic, payload, qos, retain))
        if refused:
            self._unread.add(refused)
            self._on_news()
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
        link, self._link = self._link, None
        if link:
            self.wire.up(PUBACK_BYTES, lambda: self._broker.disconnect(link))

    # --- what comes from the broker; nothing of a connection that has ended here counts any more ---

    def accepted(self, link: Link, present: bool, limits: Limits) -> None:
        """CONNACK."""
        if link is not self._link:
            return
        link.established = True
        self._unread.connected(Connected(present, link.bseq, limits))
        for lost in self._outgoing.connected(limits):
            self._unread.add(lost)
        self._on_news()
        self._send()

    def subscribed(self, link: Link, mid: int) -> None:
        """SUBACK."""
        if link is self._link:
            self._subscriptions.answered(mid)

    def acknowledged(self, link: Link, mid: int) -> None:
        """PUBACK."""
        if link is self._link:
            self.bytes_received += PUBACK_BYTES
            self._outgoing.acknowledged(mid)
            self._send()

    def delivered(self, link: Link, message: Message, mid: int) -> None:
        """PUBLISH."""
        if link is self._link:
            self.bytes_received += packet_size(message.topic, message.payload)
            receipt = Receipt(link.bseq, mid) if message.qos else None
            self._unread.add(Delivery(message.topic, message.payload, message.retained, receipt))
            self._on_news()

    def ended(self, link: Link, reason: str) -> None:
        """The connection is gone; `receive` makes the next."""
        if link is not self._link:
            return
        self._link = None
        self._unread.disconnected(Disconnected(reason, self._retry_in_s(link)))
        self._subscriptions.disconnected()
        for lost in self._outgoing.disconnected():
            self._unread.add(lost)
        self._on_news()

    def _retry_in_s(self, _link: Link) -> float:
        return 0.0

    def _may_connect(self) -> bool:
        return self._broker.running

    def _connect(self) -> None:
        if not self._wanted or self._link or not self._may_connect():
            return
        self._bseq += 1
        link = self._link = Link(self, self._bseq, self._receive_maximum)
        will = self._will(link.bseq) if self._will else None
        self.wire.up(CONNECT_BYTES, lambda: self._broker.accept(link, will))

    def _send(self) -> None:
        if self._sending:
            return  # over a direct wire a PUBACK comes before `publish` returns
        self._sending = True
        try:
            while self.connected and (self._send_filters() or self._send_packet()):
                pass
        finally:
            self._sending = False

    def _send_filters(self) -> bool:
        link, batch = self._link, self._subscriptions.take()
        if link is None or not batch:
            return False
        self._mid = mid = self._mid + 1
        self._subscriptions.sent(mid, batch)
        self.wire.up(sum(map(len, batch)), lambda: self._broker.subscribe(link, batch, mid))
        return True

    def _send_packet(self) -> bool:
        link, packet = self._link, self._outgoing.take()
        if link is None or packet is None:
            return False
        self._mid = mid = self._mid + 1
        if packet.qos:
            self._outgoing.sent(mid, packet)
        self.bytes_sent += packet.size
        self.wire.up(packet.size, lambda: self._broker.received(link, packet, mid))
        return True

    def _drained(self) -> None:
        if self._link and self._link.session:
            self._broker.pump(self._link.session)
