"""The operator asks until the gateway answers."""

from anabranch.simulator.operator import AGAIN_S, Operator
from anabranch.simulator.world import World
from fl_protocol.codec import encode
from fl_protocol.memory import MemoryTransport
from fl_protocol.memory_broker import MemoryBroker
from fl_protocol.messages import Answer, Ask
from fl_protocol.signing import SigningKey, unseal
from fl_protocol.topics import Kind, build
from fl_protocol.transport import Delivery

KEY = SigningKey(b"k" * 32)


class Gateway:
    """Reads the commands, and answers when it is told to."""

    def __init__(self) -> None:
        self.world, self.broker = World(0), MemoryBroker()
        self.operator = Operator(self.world, self.broker, "twin", KEY, lambda: int(self.world.now * 1000))
        self.transport = MemoryTransport(self.broker, "gateway")
        self.transport.start()
        self.transport.subscribe([(build(Kind.COMMAND, "twin", name="+", cid="+"), 1)])

    def run(self, until: float) -> None:
        """Let time pass."""
        while self.world.next_at <= until:
            self.world.step()
        self.world.now = until

    def asked(self) -> list[tuple[str, Ask]]:
        """The commands since the last call, verified, with their topics."""
        events = [event for event in self.transport.receive(0.0) if isinstance(event, Delivery)]
        signed = [event for event in events if b'"sig"' in event.payload]
        return [(event.topic, unseal(Ask, event.payload, KEY.public, "twin", event.topic)) for event in signed]

    def answer(self, topic: str, status: str = "successful") -> None:
        """Say what became of a command."""
        self.transport.publish(topic, encode(Answer(status=status)))


def test_it_asks_again_until_it_is_answered() -> None:
    """On one topic, each time with a higher counter, so that no gateway takes it for an old command."""
    gateway, answers = Gateway(), []
    gateway.operator.ask("task-start", answers.append, task="t")
    gateway.run(3 * AGAIN_S + 0.1)
    asked = gateway.asked()
    assert len(asked) == 4
    assert {(topic, ask.name, ask.arguments["task"]) for topic, ask in asked} == {(asked[0][0], "task-start", "t")}
    counters = [ask.counter for _, ask in asked]
    assert counters == sorted(set(counters))
    gateway.answer(asked[0][0])
    gateway.run(100.0)
    assert [answer.status for answer in answers] == ["successful"]
    assert len(gateway.asked()) <= 1


def test_one_command_after_the_other() -> None:
    """The second is asked once the first is answered, whatever the answer, on a topic of its own."""
    gateway, answers = Gateway(), []
    gateway.operator.ask("task-create", answers.append)
    gateway.operator.ask("task-start", answers.append)
    gateway.run(AGAIN_S)
    first = gateway.asked()
    assert {ask.name for _, ask in first} == {"task-create"}
    gateway.answer(first[0][0], "failed")
    gateway.run(2 * AGAIN_S)
    second = gateway.asked()
    assert {ask.name for _, ask in second if ask.name != "task-create"} == {"task-start"}
    gateway.answer(second[-1][0])
    gateway.run(3 * AGAIN_S)
    assert [answer.status for answer in answers] == ["failed", "successful"]
    assert first[0][0] != second[-1][0]


def test_a_broker_that_was_wiped_does_not_silence_it() -> None:
    """It subscribes to its answer again."""
    gateway, answers = Gateway(), []
    gateway.operator.ask("task-start", answers.append)
    gateway.broker.kill()
    gateway.broker.wipe()
    gateway.run(5.0)
    gateway.broker.restart()
    gateway.transport.receive(0.0)
    gateway.transport.subscribe([(build(Kind.COMMAND, "twin", name="+", cid="+"), 1)])
    gateway.run(5.0 + 2 * AGAIN_S)
    topic, _ = gateway.asked()[-1]
    gateway.answer(topic)
    gateway.run(20.0)
    assert len(answers) == 1
