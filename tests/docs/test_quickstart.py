"""docs/quickstart.md does what it says: its files are written, its commands run, in their order."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from fl_protocol.topics import parse
from tests.docs.pages import DOCS, ROOT, Block, blocks, codes, tables
from tests.support.mosquitto import accepts, free_port
from tests.support.waiting import wait_until

PAGE = DOCS / "quickstart.md"
PORT = "1884"  # on the page
PROGRAMS = {"edge-agent": "edge_agent", "broker-aggregator": "broker_aggregator"}


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


class Reader:
    """Someone who follows the page in a folder of their own; all that they started ends with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, str(free_port())
        commands = folder.parent / "bin"
        commands.mkdir()
        for name, package in PROGRAMS.items():  # as installed; the tests may run from a checkout that is not
            (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {package} "$@"\n')
            (commands / name).chmod(0o755)
        path = [str(commands), str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"]
        self.environment = {**os.environ, "PATH": ":".join(path), "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
        # The group that every command joins; it ends when we close its input.
        self.leader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, process_group=0)

    def follow(self, block: Block) -> str:
        """Write the block's file or run its commands; what they print."""
        body = block.body.replace(PORT, self.port)
        if block.file:
            (self.folder / block.file).write_text(body)
        if not block.runs:
            return ""
        return self.run(body)

    def run(self, commands: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            process_group=self.leader.pid,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def leave(self) -> None:
        os.killpg(self.leader.pid, signal.SIGKILL)
        self.leader.wait()


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
