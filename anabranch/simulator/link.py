"""A device's way to the broker: latency, bandwidth, packet loss, partitions; and a transport that lives with it.

TCP delivers in order or not at all, so a lost packet is a late one here, and everything behind it is late too. A
partition holds what is sent; one that outlasts the keep-alive ends the connection, for each end when it notices.
What brokers lose, double or reorder beyond that is `MemoryBroker.fate`'s, see faults.py.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from anabranch.simulator.power import CrashPoint
from anabranch.simulator.trace import Trace
from anabranch.simulator.world import Action, World
from fl_protocol.memory import MemoryTransport
from fl_protocol.memory_broker import Link, MemoryBroker
from fl_protocol.reconnect import CONNACK_S, HEALTHY_S, Backoff
from fl_protocol.transport import Connected, Delivery, Disconnected, Incoming, Limits, Undeliverable, WillOf

KEEPALIVE_S = 30.0
CONNECT_S = 10.0  # a SYN without an answer; as in fl_protocol.mqtt
RETRANSMIT_S = 0.2  # TCP's least time-out on Linux
MAX_RETRANSMITS = 6  # doublings
OUTGOING_BYTES = 32 << 20  # what `fl_protocol.queues.Outgoing` holds at most
BUFFERED = 64 << 10  # bytes on the way down at which the broker holds back: a socket's buffer


@dataclass(frozen=True)
class LinkSpec:
    """One link: latency one way in seconds, `jitter_s` on top (exponential), bytes a second (0: without limit), and
    the share of packets that TCP has to send again."""

    latency_s: float = 0.02
    jitter_s: float = 0.0
    up_bytes_s: float = 0.0
    down_bytes_s: float = 0.0
    loss: float = 0.0


class _Way:
    """One direction: a queue that empties at the link's speed, and arrivals in order."""

    def __init__(self) -> None:
        self.free_at = 0.0  # when the last byte of what was sent has left
        self.last_at = 0.0  # when it arrives
        self.queued = 0  # bytes sent and not arrived
        self.under_way: deque[tuple[int, Action]] = deque()  # in the order in which they will arrive
        self.held: list[int] = []  # sizes of as many of them as a partition holds


class SimulatedWire:
    """A `Wire` of virtual time."""

    def __init__(self, world: World, spec: LinkSpec, rng: Random) -> None:
        self._world, self.spec, self._rng = world, spec, rng
        self._up, self._down = _Way(), _Way()
        self._drained: Action = lambda: None
        self.holds = 0  # partitions that last
        self.broken_at = 0.0
        self.slowness = 1.0  # by which everything takes longer

    @property
    def broken(self) -> bool:
        """Whether a partition holds everything back."""
        return self.holds > 0

    def up(self, size: int, arrive: Action, /) -> None:
        """See `Wire.up`."""
        self._send(self._up, self.spec.up_bytes_s, size, arrive)

    def down(self, size: int, arrive: Action, /) -> None:
        """See `Wire.down`."""
        self._send(self._down, self.spec.down_bytes_s, size, arrive)

    def full(self) -> bool:
        """See `Wire.full`."""
        return self._down.queued >= BUFFERED

    def on_drained(self, drained: Action, /) -> None:
        """See `Wire.on_drained`."""
        self._drained = drained

    def part(self) -> None:
        """A partition begins: what is sent, and what is on its way, does not arrive before its end."""
        if not self.holds:
            self.broken_at = self._world.now
        self.holds += 1

    def heal(self) -> None:
        """One partition ends; with the last, what was held is on its way."""
        self.holds -= 1
        if self.broken:
            return
        for way, rate in ((self._up, self.spec.up_bytes_s), (self._down, self.spec.down_bytes_s)):
            held, way.held = way.held, []
            for size in held:
                self._travel(way, rate, size)

    def _send(self, way: _Way, bytes_s: float, size: int, arrive: Action) -> None:
        way.queued += size
        way.under_way.append((size, arrive))
        self._travel(way, bytes_s, size)

    def _travel(self, way: _Way, bytes_s: float, size: int) -> None:
        """Let one more packet arrive in its time: the first of those under way then, for TCP keeps their order."""
        if self.broken:
            way.held.append(size)
            return
        world, spec, late = self._world, self.spec, 0.0
        if bytes_s:
            way.free_at = max(world.now, way.free_at) + size / bytes_s * self.slowness
            late = way.free_at - world.now
        late += spec.latency_s * self.slowness
        if spec.jitter_s:
            late += self._rng.expovariate(1.0 / spec.jitter_s)
        if spec.loss:
            timeout = RETRANSMIT_S + 2 * spec.latency_s * self.slowness
            for n in range(MAX_RETRANSMITS):
                if self._rng.random() >= spec.loss:
                    break
                late += timeout * 2**n
        way.last_at = max(way.last_at, world.now + late)
        world.at(way.last_at, lambda: self._arrives(way, size))

    def _arrives(self, way: _Way, size: int) -> None:
        if self.broken:  # it was on its way when the partition began
            way.held.append(size)
            return
        size, arrive = way.under_way.popleft()
        full = self.full()
        way.queued -= size
        arrive()
        if full and not self.full():
            self._drained()


class LinkedTransport(MemoryTransport):
    """A `MemoryTransport` over a `SimulatedWire`, which comes back as `MqttTransport` does: with the same back-off.

    `crash_point` is called before everything that leaves; `on_news` when `receive` has something to return.
    """

    def __init__(
        self,
        world: World,
        trace: Trace,
        broker: MemoryBroker,
        client_id: str,
        wire: SimulatedWire,
        *,
        will: WillOf | None,
        crash_point: CrashPoint,
        on_news: Callable[[], None],
        rng: np.random.Generator,
        receive_maximum: int = 64,
        reconnect_max_s: float = 300.0,
    ) -> None:
        super().__init__(broker, client_id, will=will, receive_maximum=receive_maximum, wire=wire, on_news=on_news)
        self._world, self._trace, self._simulated, self._crash_point = world, trace, wire, crash_point
        self._backoff = Backoff(min(1.0, reconnect_max_s), reconnect_max_s, rng)
        self._retry_at = 0.0
        self._established_at = 0.0
        self._dead = False

    def acknowledge(self, receipt: object) -> None:
        """As `Transport.acknowledge`."""
        self._crash_point("acknowledge")
        super().acknowledge(receipt)

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """As `Transport.subscribe`."""
        self._crash_point("subscribe")
        for text, qos in filters:
            self._trace.line(self.client_id, f"subscribes to {text} at QoS {qos}")
        super().subscribe(filters)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """As `Transport.unsubscribe`."""
        self._crash_point("unsubscribe")
        super().unsubscribe(filters)

    def receive(self, timeout: float) -> list[Incoming]:
        """As `Transport.receive`."""
        events = super().receive(timeout)
        for event in events:
            match event:
                case Delivery(topic, payload):
                    self._trace.packet(self.client_id, "hears", topic, payload)
                case Connected(present, bseq):
                    self._trace.line(self.client_id, f"is connected, {bseq}, session {'found' if present else 'new'}")
                case Disconnected(reason):
                    self._trace.line(self.client_id, f"has no connection: {reason}")
                case Undeliverable(topic, size, reason):
                    self._trace.line(self.client_id, f"gives up {topic}, {size} B: {reason}")
        return events

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """As `Transport.publish`."""
        self._crash_point(f"publish {topic}")
        self._trace.packet(self.client_id, "says", topic, payload)
        super().publish(topic, payload, qos=qos, retain=retain)

    def die(self, *, noticed: bool) -> None:
        """The process is gone. `noticed`: its kernel tells the broker; else the broker waits for the keep-alive."""
        link, self._link, self._dead, self._wanted = self._link, None, True, False
        if noticed and not self._simulated.broken:
            if link:
                self.wire.up(0, lambda: self._broker.gives_up(link))
        elif link:
            self._world.after(1.5 * KEEPALIVE_S, lambda: self._broker.gives_up(link))

    def cut(self) -> None:
        """The connection is reset, for both ends at once."""
        if link := self._link:
            self._broker.gives_up(link)
            self.ended(link, "connection reset")

    def timed_out(self) -> None:
        """This end stood still for too long: the broker ends the connection, and this end learns of it in time."""
        if link := self._link:
            self._broker.gives_up(link)

    def went_silent(self) -> None:
        """A partition began: each end gives the connection up when it has heard nothing for too long."""
        if link := self._link:
            since = self._simulated.broken_at
            self._world.after(KEEPALIVE_S, lambda: self._give_up(link, since))
            self._world.after(1.5 * KEEPALIVE_S, lambda: self._broker_gives_up(link, since))

    def accepted(self, link: Link, present: bool, limits: Limits) -> None:
        """CONNACK."""
        self._established_at = self._world.now
        super().accepted(link, present, limits)

    def _give_up(self, link: Link, since: float) -> None:
        if self._simulated.broken and self._simulated.broken_at == since:
            self.ended(link, f"the broker was silent for {KEEPALIVE_S:.0f} s")

    def _broker_gives_up(self, link: Link, since: float) -> None:
        if self._simulated.broken and self._simulated.broken_at == since:
            self._broker.gives_up(link)

    def _retry_in_s(self, link: Link) -> float:
        if link.established and self._world.now - self._established_at > HEALTHY_S:
            self._backoff.failures = 0
        return self._wait()

    def _wait(self, extra_s: float = 0.0) -> float:
        wait_s = extra_s + self._backoff.next()
        self._retry_at = self._world.now + wait_s
        self._world.at(self._retry_at, self._retry)
        return wait_s

    def _retry(self) -> None:
        if not self._dead:
            self._on_news()

    def _may_connect(self) -> bool:
        if self._world.now < self._retry_at:
            return False
        if self._simulated.broken:
            self._unread.disconnected(Disconnected("no answer", self._wait(CONNECT_S)))
            return False
        return True

    def _connect(self) -> None:
        before = self._link
        if self._wanted and before is None and self._world.now >= self._retry_at:
            self._crash_point("connect")
        super()._connect()
        if self._link is not before and (link := self._link):
            self._world.after(CONNACK_S, lambda: self._no_answer(link))

    def _no_answer(self, link: Link) -> None:
        if not link.established:
            self.ended(link, f"CONNECT was not answered in {CONNACK_S:g} s")
