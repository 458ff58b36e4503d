"""What carries topics and payloads: the `Transport` protocol and what comes out of it.

A transport has no opinion about meaning. It keeps one connection alive for ever, and hands what happened, in order,
to whoever calls `receive`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Delivery:
    """A message from the broker. It comes again until `acknowledge(receipt)`; `receipt` is None at QoS 0."""

    topic: str
    payload: bytes
    retained: bool = False
    receipt: object | None = None


@dataclass(frozen=True)
class Limits:
    """What the broker of this connection carries (MQTT 5 CONNACK; the operator's settings on 3.1.1)."""

    version: str  # "5" or "3.1.1"
    max_packet: int  # bytes of one packet, topic and framing included
    receive_maximum: int = 65535


@dataclass(frozen=True)
class Connected:
    """A connection is up. Without `session_present` the broker knows nothing of us: subscribe and announce again."""

    session_present: bool
    bseq: int
    limits: Limits


@dataclass(frozen=True)
class Disconnected:
    """The connection is gone; the transport tries again by itself, after `retry_in_s` seconds."""

    reason: str
    retry_in_s: float = 0.0


@dataclass(frozen=True)
class Undeliverable:
    """A message was dropped for good, or a subscription refused (`topic` is the filter, `size` 0), and why."""

    topic: str
    size: int
    reason: str


Incoming = Delivery | Connected | Disconnected | Undeliverable


@dataclass(frozen=True)
class Will:
    """What the broker says for us when we are gone without a word; QoS 1, retained."""

    topic: str
    payload: bytes


class Transport(Protocol):
    """A connection to a broker that outlives its failures. Methods are called from one thread.

    `will` is given at construction as a callable of `bseq`, and asked anew before every CONNECT; MqttTransport does so
    on its own thread.
    """

    @property
    def bytes_sent(self) -> int:
        """Bytes given to the broker since `start`, over all connections."""

    @property
    def bytes_received(self) -> int:
        """Bytes that came from the broker since `start`, over all connections."""

    def start(self) -> None:
        """Begin connecting; returns at once and never gives up."""

    def receive(self, timeout: float) -> list[Incoming]:
        """What happened since the last call, oldest first; waits at most `timeout` seconds for the first."""

    def acknowledge(self, receipt: object) -> None:
        """PUBACK: the delivery is durable with us. Receipts of an earlier connection are ignored."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Hand a message over; at QoS 1 it is sent until acknowledged, at QoS 0 dropped when there is no connection.

        Raises `ProtocolError`: E_SIZE for one that this broker would not carry, E_SCHEMA for a topic with wildcards.
        What cannot be raised any more (no room in the queue, a next broker with a smaller limit) comes as
        `Undeliverable`.
        """

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to (filter, QoS) pairs."""

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Stop receiving what matches these filters."""

    def close(self) -> None:
        """Send what is queued, for at most a few seconds, and disconnect without a will."""


WillOf = Callable[[int], Will | None]
