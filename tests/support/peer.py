"""One end of a conversation over a transport, with everything it was told."""

from collections.abc import Callable
from typing import TypeVar

from fl_protocol.transport import Connected, Delivery, Disconnected, Incoming, Transport, Undeliverable
from tests.support.waiting import wait_until

E = TypeVar("E")
FENCE = "fence"


class Peer:
    """A transport, started, and its events so far. A context manager: leaving it closes the transport."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.events: list[Incoming] = []
        self._fences = self._seen = 0
        transport.start()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.close()

    def of(self, kind: type[E]) -> list[E]:
        """The events of a kind, oldest first."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def deliveries(self) -> list[Delivery]:
        """What was delivered, without fences."""
        return [d for d in self.of(Delivery) if not d.topic.startswith(FENCE)]

    @property
    def payloads(self) -> list[bytes]:
        """What was delivered, in order."""
        return [d.payload for d in self.deliveries]

    def until(self, condition: Callable[[], bool], what: str = "", seconds: float = 15.0) -> None:
        """Receive until the condition holds."""

        def met() -> bool:
            self.events += self.transport.receive(0.02)
            return condition()

        wait_until(
            met, seconds, f"{what or 'the condition'} (so far: {[repr(event)[:160] for event in self.events[-5:]]})"
        )

    def connected(self, times: int = 1) -> Connected:
        """Wait for the n-th connection."""
        self.until(lambda: len(self.of(Connected)) >= times, f"connection {times}")
        return self.of(Connected)[times - 1]

    def disconnected(self, times: int = 1) -> Disconnected:
        """Wait for the n-th disconnect."""
        self.until(lambda: len(self.of(Disconnected)) >= times, f"disconnect {times}")
        return self.of(Disconnected)[times - 1]

    def undeliverable(self) -> Undeliverable:
        """Wait for the first message that was dropped for good."""
        self.until(lambda: bool(self.of(Undeliverable)), "an undeliverable message")
        return self.of(Undeliverable)[0]

    def expect(self, *payloads: bytes) -> list[Delivery]:
        """Wait until this many messages came, and check that they are these, in this order."""
        self.until(lambda: len(self.payloads) >= len(payloads), f"{len(payloads)} messages")
        assert self.payloads == list(payloads)
        return self.deliveries

    def acknowledge(self) -> None:
        """Acknowledge everything, each once."""
        for event in self.events[self._seen :]:
            if isinstance(event, Delivery) and event.receipt is not None:
                self.transport.acknowledge(event.receipt)
        self._seen = len(self.events)

    def subscribe(self, *filters: str, qos: int = 1) -> None:
        """Subscribe, and wait until the broker has done it."""
        self.transport.subscribe([(text, qos) for text in filters])
        self.fence()

    def fence(self) -> None:
        """Wait for an echo of our own: by then the broker has done what we asked, and sent what it had for us."""
        self._fences += 1
        topic = f"{FENCE}/{id(self)}/{self._fences}"
        self.transport.subscribe([(topic, 0)])
        self.transport.publish(topic, b"")
        self.until(lambda: any(d.topic == topic for d in self.of(Delivery)), "the fence")
        self.transport.unsubscribe([topic])
