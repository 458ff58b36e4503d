"""The operator of the twin: signed commands over MQTT, again and again until the gateway answers."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from anabranch.simulator.world import World
from fl_protocol.codec import decode_as, parse_json
from fl_protocol.memory import MemoryTransport
from fl_protocol.memory_broker import MemoryBroker
from fl_protocol.messages import Answer, Ask
from fl_protocol.signing import SigningKey, seal
from fl_protocol.topics import Kind, build
from fl_protocol.transport import Connected, Delivery

AGAIN_S = 2.0


@dataclass(frozen=True)
class Wish:
    """A command, and who is told that it was answered."""

    name: str
    arguments: Mapping[str, object]
    done: Callable[[Answer], None]


class Operator:
    """Asks for one thing after the other, by the gateway's own clock: they sit on one machine."""

    def __init__(
        self, world: World, broker: MemoryBroker, fleet: str, key: SigningKey, now_ms: Callable[[], int]
    ) -> None:
        self._world, self._fleet, self._key, self._now_ms = world, fleet, key, now_ms
        self._wishes: deque[Wish] = deque()
        self._topic = ""
        self._payload = b""
        self._counter = 0
        self._transport = MemoryTransport(broker, "operator", on_news=lambda: world.at(world.now, self._look))
        self._transport.start()

    def ask(self, name: str, done: Callable[[Answer], None] = lambda _: None, **arguments: object) -> None:
        """Ask for a command; `done` is called with the answer."""
        self._wishes.append(Wish(name, arguments, done))
        if len(self._wishes) == 1:
            self._begin()

    def _begin(self) -> None:
        wish = self._wishes[0]
        self._counter = max(self._counter + 1, self._now_ms() * 1000)
        self._topic = build(Kind.COMMAND, self._fleet, name=wish.name, cid=f"{self._counter:x}")
        self._transport.subscribe([(self._topic, 1)])
        self._say(wish)

    def _say(self, wish: Wish) -> None:
        """Signed anew each time: a gateway that starts late does not obey an old command."""
        if not self._wishes or self._wishes[0] is not wish:
            return
        self._counter = max(self._counter + 1, self._now_ms() * 1000)
        ask = Ask(name=wish.name, arguments=dict(wish.arguments), counter=self._counter)
        self._transport.publish(self._topic, seal(ask, self._key, self._fleet, self._topic))
        self._look()  # and connect again, if need be
        self._world.after(AGAIN_S, lambda: self._say(wish))

    def _look(self) -> None:
        for event in self._transport.receive(0.0):
            if isinstance(event, Connected) and self._topic:
                self._transport.subscribe([(self._topic, 1)])
            if not isinstance(event, Delivery):
                continue
            if event.receipt is not None:
                self._transport.acknowledge(event.receipt)
            plain = parse_json(event.payload) if event.topic == self._topic and event.payload else None
            if isinstance(plain, dict) and "status" in plain and self._wishes:
                wish = self._wishes.popleft()
                wish.done(decode_as(Answer, event.payload))
                if self._wishes:
                    self._begin()
