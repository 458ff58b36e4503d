"""A link is slow, lossy or cut, and what crosses it still comes in order and once, as over TCP."""

from io import StringIO
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from anabranch.simulator.link import BUFFERED, KEEPALIVE_S, LinkedTransport, LinkSpec, SimulatedWire
from anabranch.simulator.power import never
from anabranch.simulator.trace import Trace
from anabranch.simulator.world import World
from fl_protocol.memory import MemoryTransport
from fl_protocol.memory_broker import MemoryBroker
from fl_protocol.transport import Connected, Delivery, Disconnected, Will

WILL = Will("fl/1/f/dev/a/state", b"lost")


def run(world: World, until: float = float("inf")) -> None:
    """Let happen what happens before `until`."""
    while world.next_at <= until and world.step():
        pass
    world.now = max(world.now, until if until < float("inf") else 0.0)


@given(
    st.lists(st.tuples(st.floats(0, 10), st.integers(0, 5000)), max_size=30),
    st.builds(
        LinkSpec, st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.0, 500.0]), st.just(0.0), st.floats(0, 0.9)
    ),
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=3),
    st.integers(0, 99),
)
def test_everything_arrives_once_and_in_order(packets, spec, partitions, seed) -> None:
    """Whatever latency, jitter, loss, bandwidth and partitions do to it."""
    world = World(seed)
    wire, came, sent = SimulatedWire(world, spec, Random(seed)), [], []

    def send(number: int, size: int) -> None:
        sent.append(number)
        wire.up(size, lambda: came.append(number))

    def part() -> None:
        wire.holds += 1

    for number, (at, size) in enumerate(packets):
        world.at(at, lambda number=number, size=size: send(number, size))
    for at, for_s in partitions:
        world.at(at, part)
        world.at(at + for_s, wire.heal)
    run(world)
    assert came == sent
    assert len(came) == len(packets)


def test_a_packet_takes_its_latency_and_its_bytes_times() -> None:
    """Two at once share the bandwidth: the second waits for the first; slowness multiplies both parts."""
    world = World(0)
    wire, came = SimulatedWire(world, LinkSpec(latency_s=0.5, up_bytes_s=100.0), Random(0)), []
    for size in (200, 100):
        wire.up(size, lambda: came.append(world.now))
    run(world)
    wire.slowness = 10.0
    wire.up(100, lambda: came.append(world.now - 3.5))
    run(world)
    assert came == [2.5, 3.5, 15.0]


def test_a_full_way_down_says_when_it_takes_more() -> None:
    """The broker holds back at `BUFFERED` bytes, and goes on at a word."""
    world, drained = World(0), []
    wire = SimulatedWire(world, LinkSpec(latency_s=0.1, down_bytes_s=1e4), Random(0))
    wire.on_drained(lambda: drained.append(world.now))
    for _ in range(2):
        assert not wire.full()
        wire.down(BUFFERED // 2, lambda: None)
    assert wire.full()
    run(world)
    assert drained == [BUFFERED / 2 / 1e4 + 0.1]
    assert not wire.full()


class Scene:
    """A broker, one device `a` behind a link, and somebody who watches the device's state topic."""

    def __init__(self) -> None:
        self.world = World(0)
        self.broker = MemoryBroker()
        self.wire = SimulatedWire(self.world, LinkSpec(latency_s=0.1), Random(0))
        self.transport = LinkedTransport(
            self.world,
            Trace(self.world, StringIO()),
            self.broker,
            "a",
            self.wire,
            will=lambda _bseq: WILL,
            crash_point=never,
            on_news=lambda: self.world.at(self.world.now, self.look),
            rng=np.random.default_rng(0),
        )
        self.events = []
        self.watcher = MemoryTransport(self.broker, "watcher")
        self.watcher.start()
        self.watcher.subscribe([(WILL.topic, 1)])
        self.transport.start()
        run(self.world, 1.0)

    def look(self) -> None:
        """What came for the device, with its time."""
        self.events += [(round(self.world.now, 3), event) for event in self.transport.receive(0.0)]

    def wills(self) -> int:
        """How often the watcher heard the will."""
        return sum(isinstance(event, Delivery) for event in self.watcher.receive(0.0))

    def ended(self) -> list[float]:
        """When the device learnt of an end of its connection."""
        return [at for at, event in self.events if isinstance(event, Disconnected)]


def test_a_short_partition_is_not_noticed() -> None:
    """Nobody hears of one that is shorter than the keep-alive."""
    scene = Scene()
    scene.wire.holds += 1
    scene.transport.went_silent()
    scene.world.after(KEEPALIVE_S - 1, scene.wire.heal)
    run(scene.world, 200.0)
    assert scene.ended() == []
    assert scene.wills() == 0
    assert scene.transport.connected


def test_a_long_partition_ends_the_connection_at_both_ends() -> None:
    """The device gives up first, the broker publishes the will after half as long again, and later they meet again."""
    scene = Scene()
    scene.wire.holds += 1
    scene.transport.went_silent()
    run(scene.world, 1.0 + KEEPALIVE_S)
    assert scene.ended() == [1.0 + KEEPALIVE_S]
    assert scene.wills() == 0
    run(scene.world, 1.0 + 1.5 * KEEPALIVE_S)
    assert scene.wills() == 1
    scene.wire.heal()
    run(scene.world, 1000.0)
    assert scene.transport.connected
    assert [type(event) for _, event in scene.events][-1] is Connected


def test_a_killed_process_is_noticed_at_once_and_a_dead_machine_late() -> None:
    """A kernel says goodbye to the broker; without power nobody does, and the keep-alive has to run out."""
    for noticed, at in ((True, 1.2), (False, 1.0 + 1.5 * KEEPALIVE_S)):
        scene = Scene()
        scene.transport.die(noticed=noticed)
        run(scene.world, at - 0.2)
        assert scene.wills() == 0
        run(scene.world, at)
        assert scene.wills() == 1
        run(scene.world, 1000.0)
        assert not scene.transport.connected


def test_after_a_reset_it_comes_back_by_itself() -> None:
    """With its session, after the back-off that production has."""
    scene = Scene()
    scene.transport.cut()
    run(scene.world, 100.0)
    kinds = [type(event) for _, event in scene.events]
    assert kinds == [Connected, Disconnected, Connected]
    assert scene.events[-1][1].session_present
