"""One connection after another, for ever: back-off, version, liveness. What a connection is made of is `mqtt.py`'s.

The network thread runs connections. The caller's thread talks to queues, and each time that it receives it looks after
the network thread: one that died or hangs is left to itself, and a new one starts.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal, Protocol

import numpy as np

from fl_protocol.queues import Outgoing, Packet, Receipt, Subscriptions, Unread
from fl_protocol.transport import Disconnected, Incoming

FLUSH_S = 4.0  # what `close` waits for PUBACKs
HEALTHY_S = 30.0  # a connection that lasted so long starts the back-off anew
GLANCE_S = 1.0  # how often a waiting caller looks after the network thread
UNSUPPORTED = "Unsupported protocol version"  # in CONNACK
NOT_US = {"Bad user name or password", "Not authorized", "Banned", "Client identifier not valid"}  # in CONNACK

Version = Literal["5", "3.1.1"]


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

    @contextmanager
    def change(self) -> Iterator[None]:
        """Hold the lock, and wake whoever waits for news."""
        with self.lock:
            yield
            self.lock.notify_all()

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
    """A `Transport` over whatever `connect(shared, version, bseq)` makes.

    With version "auto" it begins with MQTT 5, and changes to the other version after each CONNECT that was refused for
    its version or not answered at all; what works is kept.
    """

    def __init__(
        self,
        connect: Callable[[Shared, Version, int], Connection],
        shared: Shared,
        version: Literal["auto"] | Version,
        backoff: Backoff,
    ) -> None:
        self._connect, self._shared, self._backoff = connect, shared, backoff
        self._negotiates = version == "auto"
        self._version: Version = "5" if version == "auto" else version
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
        with self._shared.change():
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
        with self._shared.change():
            self._shared.flush_until = monotonic() + FLUSH_S
            self._closing.set()
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
                connection = self._connection = self._connect(self._shared, self._version, self._bseq)
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
        unanswered = connection.reached and not connection.established_at and not connection.refusal
        if not self._negotiates or not (unanswered or connection.refusal == UNSUPPORTED):
            return ""
        self._version = "3.1.1" if self._version == "5" else "5"
        return f"; MQTT {self._version} is tried next"

    def _ended(self, reason: str, retry_in_s: float) -> None:
        shared = self._shared
        with shared.change():
            shared.acks.clear()
            shared.subscriptions.disconnected()
            if not self._closing.is_set():
                shared.unread.disconnected(Disconnected(reason, retry_in_s))
            for lost in shared.outgoing.disconnected():
                shared.unread.add(lost)
