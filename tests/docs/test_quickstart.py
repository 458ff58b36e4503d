"""docs/quickstart.md does what it says: its files are written, its commands run, in their order."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from fl_protocol.topics import parse
from tests.docs.pages import DOCS, blocks, codes, tables
from tests.support.mosquitto import accepts
from tests.support.reader import Reader
from tests.support.waiting import wait_until

PAGE = DOCS / "quickstart.md"


class Listener:
    """Hears all that is published, with QoS and retain flag as the publisher set them (MQTT 5)."""

    def __init__(self, port: int) -> None:
        self.heard: dict[str, set[tuple[bool, int]]] = {}  # kind -> (retained, QoS)
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_message = lambda _client, _data, message: self._hear(message)
        self._client.connect("127.0.0.1", port)
        self._client.subscribe("fl/1/#", options=SubscribeOptions(qos=1, retainAsPublished=True))
        self._client.loop_start()

    def _hear(self, message: MQTTMessage) -> None:
        self.heard.setdefault(parse(message.topic).kind.value, set()).add((message.retain, message.qos))

    def leave(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    folder = tmp_path / "fleet"
    folder.mkdir()
    someone = Reader(folder)
    yield someone
    someone.leave()


def test_the_page_leads_from_nothing_to_an_int8_model(reader: Reader) -> None:
    """Every command of the page succeeds; what is seen on the broker meanwhile is what protocol.md says of topics."""
    told: dict[str, str] = {}
    listener = None
    for block in blocks(PAGE):
        if "broker-aggregator status" in block.body and block.runs:
            wait_until(lambda: _finished(reader), seconds=60, what="the task is finished")
        told[block.body] = reader.follow(block)
        if block.body.startswith("mosquitto "):
            wait_until(lambda: accepts(int(reader.port)), what="mosquitto accepts connections")
            listener = Listener(int(reader.port))
    last = next(text for body, text in told.items() if "predict.py" in body)
    assert float(last.split(":")[1]) > 0.9, last
    assert any("differ: 0" in text for text in told.values()), "replay made other releases"
    assert listener is not None, "the page starts no broker"
    listener.leave()
    _check_topics(listener.heard)


def test_every_named_block_is_a_file_that_a_command_uses() -> None:
    """A configuration on the page that nobody reads would be out of date one day."""
    commands = "".join(block.body for block in blocks(PAGE) if block.runs)
    for file in (block.file for block in blocks(PAGE) if block.file):
        assert file in commands, f"{file} is on the page, and no command reads it"


def _finished(reader: Reader) -> bool:
    (task,) = json.loads(reader.run("broker-aggregator status --json --config gateway.toml"))
    return bool(task["state"] == "finished")


def _check_topics(heard: Mapping[str, set[tuple[bool, int]]]) -> None:
    table = next(t for t in tables(DOCS / "protocol.md") if t.heads[0] == "topic")
    documented = {codes(row[0])[0]: (row[1] == "yes", int(row[2])) for row in table.rows}
    assert len(heard) >= 15, f"little was heard: {sorted(heard)}"
    for kind, manners in heard.items():
        assert manners == {documented[kind]}, f"{kind}: (retained, QoS) is {manners}, the page says {documented[kind]}"
