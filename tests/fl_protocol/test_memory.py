"""What the memory broker does beyond the contract: it is exact, counts what it drops, and always does the same."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.errors import ConfigError
from fl_protocol.memory import MemoryBroker, MemoryTransport, matches
from fl_protocol.queues import check_filter
from fl_protocol.transport import Delivery, Disconnected, Will
from tests.support.peer import Peer

LEVELS = st.lists(st.sampled_from(["", "a", "b", "$x"]), min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = st.builds(
    lambda levels, last: "/".join([*levels, *last]),
    st.lists(st.sampled_from(["", "a", "b", "$x", "+"]), min_size=1, max_size=4),
    st.sampled_from([[], ["#"]]),
).filter(bool)


@given(FILTERS, LEVELS)
def test_filters_match_as_the_standard_says(pattern: str, topic: str) -> None:
    """MQTT 5, section 4.7, written as a regular expression."""
    body = re.escape(check_filter(pattern)).replace(r"\+", "[^/]*")
    body = re.sub(r"(/?)\\\#$", lambda m: "(/.*)?" if m[1] else ".*", body)
    spared = topic.startswith("$") and pattern[0] in "+#"
    assert matches(pattern, topic) == (re.fullmatch(body, topic) is not None and not spared)


def conversation(seed: int) -> list[object]:
    """A few devices and a gateway that talk, fail and come back at random; all that anyone was told."""
    rng = np.random.default_rng(seed)
    broker = MemoryBroker(max_queued=20)
    peers = {
        name: Peer(MemoryTransport(broker, name, will=lambda bseq: Will("lost", b"%d" % bseq), receive_maximum=4))
        for name in "abcd"
    }
    for step in range(400):
        peer = peers["abcd"[rng.integers(4)]]
        match rng.integers(8):
            case 0:
                peer.transport.subscribe([(str(rng.choice(["x", "y", "+", "lost"])), int(rng.integers(2)))])
            case 1:
                broker.cut(str(rng.choice(list("abcd"))))
            case 2 if step % 10 == 0:
                broker.kill()
                if rng.integers(4) == 0:
                    broker.wipe()
            case 3:
                broker.restart()
            case 4:
                peer.acknowledge()
            case _:
                topic, qos, retain = str(rng.choice(["x", "y"])), int(rng.integers(2)), bool(rng.integers(2))
                peer.transport.publish(topic, b"%d" % step, qos=qos, retain=retain)
        peer.events += peer.transport.receive(60)
    return [(name, event) for name, peer in peers.items() for event in peer.events]


@pytest.mark.parametrize("seed", range(5))
def test_the_same_calls_give_the_same_events(seed: int) -> None:
    """Deterministic, faults included; and a conversation is not empty."""
    events = conversation(seed)
    assert events == conversation(seed)
    assert sum(isinstance(e, Delivery) for _, e in events) > 50
    assert sum(isinstance(e, Disconnected) for _, e in events) > 10


def test_what_a_full_queue_drops_is_counted_by_the_broker() -> None:
    """No client is told; a test and the simulator can see it."""
    broker = MemoryBroker(max_queued=3)
    with Peer(MemoryTransport(broker, "a")) as a:
        a.subscribe("x")
        dropped = broker.dropped
        a.transport.close()
        b = Peer(MemoryTransport(broker, "b"))
        for i in range(5):
            b.transport.publish("x", b"%d" % i)
        assert broker.dropped - dropped == 2


def test_qos_0_does_not_wait_for_acknowledgements() -> None:
    """A subscriber that acknowledges nothing still hears the rest."""
    broker = MemoryBroker()
    with Peer(MemoryTransport(broker, "a", receive_maximum=1)) as a:
        a.subscribe("x")
        for payload, qos in ((b"1", 1), (b"2", 1), (b"3", 0)):
            a.transport.publish("x", payload, qos=qos)
        a.expect(b"1", b"3")
        a.acknowledge()
        a.expect(b"1", b"3", b"2")


def test_a_broker_that_does_not_run_is_waited_for() -> None:
    """start() before the broker: the first receive() that finds it connects."""
    broker = MemoryBroker()
    broker.kill()
    a = Peer(MemoryTransport(broker, "a"))
    assert a.transport.receive(60) == []
    broker.restart()
    assert not a.connected().session_present


def test_a_transport_needs_a_client_id() -> None:
    """The session is kept under it."""
    with pytest.raises(ConfigError):
        MemoryTransport(MemoryBroker(), "")
