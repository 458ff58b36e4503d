"""The demo's broker: mosquitto where it is on PATH, else amqtt, on a free port of this machine only."""

import getpass
import json
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from anabranch.demo.processes import Processes
from fl_protocol.errors import ConfigError

HOST = "127.0.0.1"
START_S = 15.0
PORTS_TRIED = 3  # a port that was free may be taken a moment later
USUAL_PLACES = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin:/usr/local/opt/mosquitto/sbin"


@dataclass(frozen=True)
class Broker:
    """A running broker; `cost` says what a person gives up with this one, empty for nothing."""

    name: str
    port: int
    mqtt_version: Literal["auto", "3.1.1"]
    cost: str = ""


def start_broker(processes: Processes, folder: Path) -> Broker:
    """Start a broker as the process `broker` and wait until it answers. Raises `ConfigError`."""
    folder.mkdir(parents=True, exist_ok=True)
    mosquitto = shutil.which("mosquitto")
    for _ in range(PORTS_TRIED):
        port = _free_port()
        if mosquitto:
            broker = Broker("mosquitto", port, "auto")
            command = [mosquitto, "-c", str(_mosquitto_file(folder, port))]
        else:
            broker = Broker("amqtt", port, "3.1.1", _cost())
            command = [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(_amqtt_file(folder, port))]
        processes.start("broker", command)
        if _answers(processes, port):
            return broker
    raise ConfigError(
        f"{broker.name} does not start: {processes.last_words('broker')}",
        f"see {processes.log('broker')}; another broker can be installed with `apt install mosquitto`",
    )


def _cost() -> str:
    """What amqtt costs. Raises `ConfigError` where that is not there either."""
    if find_spec("amqtt") is None:
        raise ConfigError(
            "there is neither mosquitto on PATH nor amqtt", "`apt install mosquitto`, or `pip install anabranch[demo]`"
        )
    elsewhere = shutil.which("mosquitto", path=USUAL_PLACES)
    mend = f"{elsewhere} is here: put its folder on PATH" if elsewhere else "`apt install mosquitto` for a real one"
    return (
        "amqtt speaks MQTT 3.1.1 only, sends nothing again after a reconnect and forgets all when it ends; it is "
        f"slower, and not durable ({mend})"
    )


def _mosquitto_file(folder: Path, port: int) -> Path:
    file = folder / "mosquitto.conf"
    file.write_text(
        f"""\
# One listener, for this machine only; whoever is on it may do anything. Never a configuration for the field.
listener {port} {HOST}
allow_anonymous true
user {getpass.getuser()}
persistence true
persistence_location {folder}/
autosave_interval 30
max_queued_messages 10000
log_dest stdout
log_type error
log_type warning
log_type notice
"""
    )
    return file


def _amqtt_file(folder: Path, port: int) -> Path:
    file = folder / "amqtt.yaml"
    settings = {
        "listeners": {"default": {"type": "tcp", "bind": f"{HOST}:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    file.write_text(json.dumps(settings, indent=2))  # YAML is a superset of JSON
    return file


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(processes: Processes, port: int) -> bool:
    """Whether the broker came up; False when it ended instead, or never listened."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if any(program.name == "broker" for program in processes.fallen()):
            return False
        try:
            socket.create_connection((HOST, port), 1.0).close()
        except OSError:
            time.sleep(0.05)  # nothing tells us when it listens
        else:
            return True
    processes.kill("broker")
    return False
