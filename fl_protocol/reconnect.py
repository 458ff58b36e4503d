"""One connection after another, for ever: back-off, version, liveness. What a connection is made of is `mqtt.py`'s.

The network thread runs connections. The caller's thread talks to queues, and each time that it receives it looks after
the network thread: one that died or hangs is left to itself, and a new one starts.
"""

import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal, Protocol

import numpy as np

from fl_protocol.errors import ConfigError
from fl_protocol.queues import MAX_PACKET, Outgoing, Packet, Receipt, Subscriptions, Unread
from fl_protocol.transport import Disconnected, Incoming, WillOf

CONNACK_S = 20.0  # for a broker to answer CONNECT
PROBE_S = 5.0  # the same for MQTT 5 while nobody knows whether it has it: amqtt waits for more bytes, and says nothing
FLUSH_S = 4.0  # what `close` waits for PUBACKs
HEALTHY_S = 30.0  # a connection that lasted so long starts the back-off anew
GLANCE_S = 1.0  # how often a waiting caller looks after the network thread
UNSUPPORTED = "Unsupported protocol version"  # in CONNACK
NOT_US = {"Bad user name or password", "Not authorized", "Banned", "Client identifier not valid"}  # in CONNACK

MAX_PACKET_311 = 128 << 10  # AWS IoT Core's; MQTT 3.1.1 has no way to tell us

Version = Literal["5", "3.1.1"]
Wanted = Literal["auto", "5", "3.1.1"]


@dataclass(frozen=True)
class Options:
    """What a CONNECT is made of. Raises `ConfigError` for what can never work."""

    host: str
    port: int
    client_id: str
    version: Wanted
    will: WillOf | None
    username: str | None
    password: str | None
    tls: ssl.SSLContext | None
    session_expiry_s: int
    keepalive_s: int
    receive_maximum: int
    max_packet: int | None
    max_incoming: int

    def __post_init__(self) -> None:
        if not self.host or not 0 < self.port < 65536:
            raise ConfigError(f"{self.host!r}:{self.port} is no broker's address", "a host, and a port of 1..65535")
        if not self.client_id:
            raise ConfigError("a kept session needs a client id", "give each program its own")
        if self.version not in ("auto", "5", "3.1.1"):
            raise ConfigError(f"there is no MQTT version {self.version!r}", 'use "auto", "5" or "3.1.1"')

    @property
    def ceiling(self) -> int:
        """Bytes of the largest packet that any connection of ours may carry."""
        return self.max_packet or (MAX_PACKET_311 if self.version == "3.1.1" else MAX_PACKET)

    def explain(self, error: OSError) -> str:
        """What went wrong on the way to the broker, for people."""
        where = f"{self.host}:{self.port}"
        match error:
            case socket.gaierror():
                return f"cannot find {self.host}: {error.strerror}"
            case ssl.SSLError():
                return f"TLS with {where} failed: {error.reason or error}"
            case TimeoutError():
                return f"no answer from {where}"
        return f"no connection to {where}: {error.strerror or error}"


@dataclass
class Shared:
    """What the caller's thread and the network thread hand each other, under one lock."""

    outgoing: Outgoing
    hang_s: float
    unread: Unread = field(default_factory=Unread)
    subscriptions: Subscriptions = field(default_factory=Subscriptions)
    acks: deque[int] = field(default_factory=deque)
    lock: threading.Condition = field(default_factory=threading.Condition)  # re-entrant; notified of news
    due: float = 0.0  # when the network thread must have shown itself again
    flush_until: float | None = None  # set by `close`
    bytes_sent: int = 0
    bytes_received: int = 0

    def alive(self, waiting_s: float = 0.0) -> None:
        """The network thread shows itself, and says how long it means to wait."""
        self.due = monotonic() + waiting_s + self.hang_s


class Connection(Protocol):
    """From one CONNECT to the end of its socket."""

    bseq: int
    reached: bool  # a socket was opened
    established_at: float | None  # when CONNACK accepted us
    refusal: str  # the broker's word in a CONNACK that did not
    reason: str  # why it ended, for people

    def run(self) -> None:
        """Connect, and carry what is shared until the end. Raises nothing."""

    def wake(self) -> None:
        """Look at the queues; from the caller's thread."""

    def abandon(self) -> None:
        """Change nothing that is shared any more; from the caller's thread, under the lock."""


class Backoff:
    """Full jitter: a random time up to a limit that doubles with every failure.

    Source: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015; with a floor of a tenth of the
    minimum, since a broker that refuses at once must not be asked in a tight loop.
    """

    def __init__(self, minimum_s: float, maximum_s: float, rng: np.random.Generator) -> None:
        self._minimum, self._maximum, self._rng = minimum_s, maximum_s, rng
        self.failures = 0

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        limit = min(self._maximum, self._minimum * 2.0 ** min(self.failures, 64))
        self.failures += 1
        return max(self._minimum / 10, float(self._rng.uniform(0, limit)))

    def long(self) -> float:
        """Seconds to wait when only a person can mend it: more than half of the maximum."""
        return float(self._rng.uniform(self._maximum / 2, self._maximum))


class Reconnecting:
    """A `Transport` over whatever `connect(shared, version, bseq, connack_s)` makes.

    With version "auto" it begins with MQTT 5, and changes to the other version after each CONNECT that was refused for
    its version. Until one was accepted, no answer at all counts as a refusal too.
    """

    def __init__(
        self,
        connect: Callable[[Shared, Version, int, float], Connection],
        shared: Shared,
        version: Wanted,
        backoff: Backoff,
    ) -> None:
        self._connect, self._shared, self._backoff = connect, shared, backoff
        self._negotiates = version == "auto"
        self._version: Version = "5" if version == "auto" else version
        self._accepted = version != "auto"
        self._bseq = 0
        self._connection: Connection | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    @property
    def bytes_sent(self) -> int:
        """Bytes given to the socket since `start`, over all connections; before TLS and TCP add theirs."""
        return self._shared.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes taken from the socket since `start`, over all connections; without TLS's and TCP's."""
        return self._shared.bytes_received

    @property
    def dropped(self) -> int:
        """Messages dropped at QoS 0, or unreadable, in either direction."""
        return self._shared.outgoing.dropped + self._shared.unread.dropped

    @property
    def backlog(self) -> int:
        """Bytes of packets that wait to be sent or acknowledged."""
        return self._shared.outgoing.bytes

    def start(self) -> None:
        """Begin connecting; returns at once and never gives up."""
        with self._shared.lock:
            if self._thread is None and not self._closing.is_set():
                self._begin()

    def receive(self, timeout: float) -> list[Incoming]:
        """What happened since the last call, oldest first; waits at most `timeout` seconds for the first."""
        deadline = monotonic() + timeout
        with self._shared.lock:
            while True:
                self._look_after_the_thread()
                left = deadline - monotonic()
                if self._shared.unread or left <= 0 or self._closing.is_set():
                    break
                self._shared.lock.wait(min(left, GLANCE_S))
            events = self._shared.unread.take()
        if events:
            self._wake()  # it may have stopped reading for want of room
        return events

    def acknowledge(self, receipt: object) -> None:
        """PUBACK: the delivery is durable with us. Receipts of an earlier connection are ignored."""
        with self._shared.lock:
            if self._connection and isinstance(receipt, Receipt) and receipt.bseq == self._connection.bseq:
                self._shared.acks.append(receipt.mid)
        self._wake()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """As `Transport.publish`."""
        with self._shared.lock:
            refused = self._shared.outgoing.put(Packet(topic, payload, qos, retain))
            if refused:
                self._shared.unread.add(refused)
        self._wake()

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to (filter, QoS) pairs. Raises `ProtocolError(E_SCHEMA)` for what is no filter."""
        with self._shared.lock:
            self._shared.subscriptions.put(filters)
        self._wake()

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Stop receiving what matches these filters."""
        with self._shared.lock:
            self._shared.subscriptions.put((text, None) for text in filters)
        self._wake()

    def close(self) -> None:
        """Send what is queued, for at most a few seconds, and disconnect without a will."""
        with self._shared.lock:
            self._shared.flush_until = monotonic() + FLUSH_S
            self._closing.set()
            self._shared.lock.notify_all()
            thread = self._thread
        self._wake()
        if thread:
            thread.join(FLUSH_S + 1)
            self._leave()

    def _wake(self) -> None:
        if self._connection:
            self._connection.wake()

    def _leave(self) -> None:
        with self._shared.lock:
            if self._connection:
                self._connection.abandon()

    def _begin(self) -> None:
        self._shared.alive()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def _look_after_the_thread(self) -> None:
        if self._thread is None or self._closing.is_set():
            return
        alive = self._thread.is_alive()
        if alive and monotonic() < self._shared.due:
            return
        self._leave()
        self._ended(f"the network thread {'hangs' if alive else 'died'}; a new one starts", 0.0)
        self._begin()

    def _run(self) -> None:
        """The network thread. It ends when closing, or when another took its place."""
        me = threading.current_thread()
        while True:
            with self._shared.lock:
                if self._thread is not me or self._closing.is_set():
                    return
                self._bseq += 1
                self._shared.acks.clear()  # here, not when the last one ended: its receipts were taken until now
                connack_s = PROBE_S if self._version == "5" and not self._accepted else CONNACK_S
                connection = self._connection = self._connect(self._shared, self._version, self._bseq, connack_s)
                self._shared.alive()
            connection.run()
            with self._shared.lock:
                if self._thread is not me:
                    return
                wait_s = self._wait_after(connection)
                self._ended(connection.reason + self._renegotiated(connection), wait_s)
                self._shared.alive(wait_s)
            self._closing.wait(wait_s)

    def _wait_after(self, connection: Connection) -> float:
        if connection.refusal in NOT_US:
            return self._backoff.long()
        if connection.established_at and monotonic() - connection.established_at > HEALTHY_S:
            self._backoff.failures = 0
        return self._backoff.next()

    def _renegotiated(self, connection: Connection) -> str:
        self._accepted |= connection.established_at is not None
        unanswered = connection.reached and not self._accepted and not connection.refusal
        if not self._negotiates or not (unanswered or connection.refusal == UNSUPPORTED):
            return ""
        self._version = "3.1.1" if self._version == "5" else "5"
        return f"; MQTT {self._version} is tried next"

    def _ended(self, reason: str, retry_in_s: float) -> None:
        shared = self._shared
        with shared.lock:
            shared.subscriptions.disconnected()
            if not self._closing.is_set():
                shared.unread.disconnected(Disconnected(reason, retry_in_s))
            for lost in shared.outgoing.disconnected():
                shared.unread.add(lost)
            shared.lock.notify_all()
