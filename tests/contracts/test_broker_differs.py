"""Where the memory broker differs from mosquitto 2.0.11, each difference shown on both: docs/broker-model.md.

Each test says what it saw; what that is on each broker stands beside the test, and why it is enough in the page.
"""

from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fl_protocol.mqtt import MqttTransport
from tests.docs.pages import DOCS, codes, tables
from tests.support.labs import LABS, Lab, LabWith, MosquittoLab
from tests.support.peer import Peer

PAGE = DOCS / "broker-model.md"
Saw = dict[str, Any]  # by kind of lab


def opened(stack: ExitStack, lab_with: LabWith, **limits: Any) -> Lab:
    """A lab that the stack closes."""
    return stack.enter_context(closing(lab_with(**limits)))


@pytest.fixture
def saw(tmp_path: Path) -> Callable[[Callable[[LabWith], Any]], Saw]:
    """What a conversation gives on each kind of broker."""

    def run(conversation: Callable[[LabWith], Any]) -> Saw:
        found = {}
        for kind, make in LABS.items():
            with ExitStack() as stack:
                found[kind] = conversation(partial(opened, stack, make(tmp_path / kind)))
        return found

    return run


def differ(saw: Saw, *, model: Any, five: Any, three: Any) -> None:
    """Hold what was seen to what is known."""
    assert saw == {"memory": model, "mosquitto-5": five, "mosquitto-3.1.1": three}


def test_differs_in_the_receive_maximum_once_acknowledgements_come(saw: Callable[..., Saw]) -> None:
    """Of 5, one acknowledged: the model sends one more, mosquitto five."""

    def conversation(lab_with: LabWith) -> tuple[int, int]:
        lab = lab_with(max_in_flight=5)
        with Peer(lab.transport("a")) as a, Peer(lab.transport("b", receive_maximum=5)) as b:
            b.subscribe("x")
            for i in range(30):
                a.transport.publish("x", b"%d" % i)
            a.fence()
            b.fence()
            before = len(b.payloads)
            b.transport.acknowledge(b.deliveries[0].receipt)
            b.fence()
            return before, len(b.payloads)

    differ(saw(conversation), model=(5, 6), five=(5, 10), three=(5, 10))


def test_differs_in_whose_receive_maximum_holds(saw: Callable[..., Saw]) -> None:
    """MQTT 3.1.1 has none: there it is the broker's `max_inflight_messages`."""

    def conversation(lab_with: LabWith) -> int:
        lab = lab_with(max_in_flight=5)
        with Peer(lab.transport("a")) as a, Peer(lab.transport("b", receive_maximum=8)) as b:
            b.subscribe("x")
            for i in range(30):
                a.transport.publish("x", b"%d" % i)
            a.fence()
            b.fence()
            return len(b.payloads)

    differ(saw(conversation), model=8, five=8, three=5)


def test_differs_in_overlapping_filters(saw: Callable[..., Saw]) -> None:
    """Of three filters that match: on MQTT 5 mosquitto delivers three times."""

    def conversation(lab_with: LabWith) -> int:
        with Peer(lab_with().transport("a")) as a:
            a.subscribe("x/y", "x/+", "#")
            a.transport.publish("x/y", b"1")
            a.fence()
            return len(a.payloads)

    differ(saw(conversation), model=1, five=3, three=1)


def test_differs_in_the_order_of_retained_messages(saw: Callable[..., Saw]) -> None:
    """Of several topics under one wildcard: mosquitto walks its tree of topics, the model goes by age."""

    def conversation(lab_with: LabWith) -> list[str]:
        with Peer(lab_with().transport("a")) as a:
            a.connected()
            for topic in ("r/a/x", "r/b/x", "r/a/y"):
                a.transport.publish(topic, b"1", retain=True)
            a.fence()
            a.subscribe("r/#")
            return [d.topic for d in a.deliveries]

    tree = ["r/a/x", "r/a/y", "r/b/x"]
    differ(saw(conversation), model=["r/a/x", "r/b/x", "r/a/y"], five=tree, three=tree)


def test_differs_in_what_the_broker_says_of_itself(saw: Callable[..., Saw]) -> None:
    """mosquitto publishes `$SYS/#`."""

    def conversation(lab_with: LabWith) -> int:
        with Peer(lab_with().transport("a")) as a:
            a.subscribe("$SYS/broker/version")
            return len(a.payloads)

    differ(saw(conversation), model=0, five=1, three=1)


def test_differs_in_what_is_too_large_for_the_subscriber(saw: Callable[..., Saw]) -> None:
    """Above 1 MiB: the model delivers; on MQTT 5 mosquitto drops it, on 3.1.1 our transport does."""

    def conversation(lab_with: LabWith) -> list[int]:
        with Peer(lab_with(max_packet=2 << 20).transport("a")) as a:
            a.connected()
            a.subscribe("x")
            for size in ((1 << 20) + 1, 1):
                a.transport.publish("x", bytes(size))
            a.fence()
            return [len(payload) for payload in a.payloads]

    differ(saw(conversation), model=[(1 << 20) + 1, 1], five=[1], three=[1])


def test_differs_in_sessions_that_expire(tmp_path: Path) -> None:
    """On MQTT 5, after the Session Expiry Interval. The model keeps sessions until it is wiped: it has no clock."""
    lab = MosquittoLab(tmp_path, "5")
    try:
        short = MqttTransport("127.0.0.1", lab.broker.port, "b", version="5", session_expiry_s=1)
        with Peer(short) as b:
            b.connected()
        with Peer(lab.transport("watch")) as watch:
            watch.until(lambda: "Expiring client b" in lab.broker.log.read_text(), "the end of the session")
        with Peer(lab.transport("b")) as b:
            assert not b.connected().session_present
    finally:
        lab.close()


def test_differs_in_the_keep_alive(tmp_path: Path) -> None:
    """mosquitto ends a connection that is silent for 1.5 times as long; the model's are ended by who calls `cut`."""
    lab = MosquittoLab(tmp_path, "5", keepalive_s=1)
    try:
        with Peer(lab.transport("b")) as b:
            b.connected()
            lab.stall("b")
            lab.away("b")
            assert "Client b has exceeded timeout" in lab.broker.log.read_text()
            lab.flow("b")
    finally:
        lab.close()


def test_the_page_names_these_tests_and_no_others() -> None:
    """A row a difference, and a test a row."""
    (table,) = (t for t in tables(PAGE) if t.heads[0] == "behaviour")
    named = [name for cell in table.column("test") for name in codes(cell)]
    assert sorted(named) == sorted(name for name in globals() if name.startswith("test_differs_"))


def test_the_page_names_files_that_exist() -> None:
    """And the tests in them that hold what both do alike."""
    (table,) = (t for t in tables(PAGE) if t.heads[0] == "alike")
    for cell in table.column("held by"):
        path, name = codes(cell)
        assert f"def {name}(" in (PAGE.parents[1] / path).read_text(), cell
