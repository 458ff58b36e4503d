"""Are the twin's bytes a socket's? One agent over a real mosquitto, its connection counted by a proxy in between.

The same device, examples, plan and number of versions in the twin and in reality. The codec is float16, whose payloads
are all of one size, so that what differs is packets: how many there are, and what stands around them.
"""

import contextlib
import select
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import anabranch
from anabranch import datasets
from anabranch.demo.broker import start_broker
from anabranch.demo.processes import Processes
from anabranch.simulator.running import Job, run_job
from broker_aggregator.config import load_config
from fl_protocol.codec import decode
from fl_protocol.connecting import transport_to
from fl_protocol.errors import ConfigError
from fl_protocol.keyfile import load_or_create_key
from fl_protocol.messages import TaskStatus
from fl_protocol.topics import Kind, below, parse
from fl_protocol.transport import Delivery

BUNDLE = Path(anabranch.__file__).parent / "data" / "fan_vibration.bundle"
WAIT_S = 180.0
PLAN = 'buffer = 1\nlocal_epochs = 1\ncodec = {{ name = "float16" }}\nstop = {{ versions = {versions} }}\n'
FILES = {
    "gateway.toml": """\
[gateway]
fleet = "twin"
data_dir = "gateway"
[broker]
host = "127.0.0.1"
port = {port}
[devices]
{device} = "{device_key}"
""",
    "agent.toml": """\
[device]
id = "{device}"
fleet = "twin"
state_dir = "agent"
[gateway]
public_key = "{fleet_key}"
[broker]
host = "127.0.0.1"
port = {proxy}
[data]
path = "data"
[inference]
interval_s = 0.0
""",
    "task.toml": 'task = "{task}"\nbundle = "{bundle}"\nevaluation = "validation.npz"\nstart = true\n[plan]\n' + PLAN,
    "twin.toml": 'name = "socket"\nbundle = "{bundle}"\n[plan]\n'
    + PLAN
    + '[data]\nsource = "fan_vibration"\n[fleet]\ndevices = 1\n[training]\nreal = true\n[checks]\nthorough = false\n',
}


@dataclass(frozen=True)
class Counted:
    """Bytes of one device both ways, and how many updates it sent."""

    up: int
    down: int
    updates: int


class CountingProxy:
    """Passes connections on to `port`, and counts what passes. Ends with its thread when it is closed."""

    def __init__(self, port: int) -> None:
        self.up = self.down = 0
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """No more connections."""
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                device, _ = self._listener.accept()
                with device, socket.create_connection(("127.0.0.1", self._to)) as broker:
                    self._pass_on(device, broker)

    def _pass_on(self, device: socket.socket, broker: socket.socket) -> None:
        while True:
            for ready in select.select([device, broker], [], [])[0]:
                data = ready.recv(1 << 16)
                if not data:
                    return
                if ready is device:
                    self.up += len(data)
                    broker.sendall(data)
                else:
                    self.down += len(data)
                    device.sendall(data)


def in_the_twin(folder: Path, versions: int) -> Counted:
    """What the twin counts."""
    path = folder / "twin.toml"
    path.write_text(FILES["twin.toml"].format(bundle=BUNDLE, versions=versions))
    summary = run_job(Job(path, 0))
    return Counted(summary.bytes_up, summary.bytes_down, sum(summary.verdicts.values()))


def over_mosquitto(folder: Path, versions: int, task: str = "task") -> Counted:
    """What passes a real agent's connection. Raises `ConfigError` where it comes to nothing."""
    client = datasets.load("fan_vibration").clients[0]
    with Processes(folder / "logs") as processes:
        broker = start_broker(processes, folder / "broker")
        if broker.name != "mosquitto":
            raise ConfigError(f"this is measured over mosquitto, not {broker.name}", "put mosquitto on PATH")
        proxy = CountingProxy(broker.port)
        words = {
            "device": client.name,
            "task": task,
            "port": broker.port,
            "proxy": proxy.port,
            "versions": versions,
            "bundle": BUNDLE,
            "fleet_key": load_or_create_key(folder / "gateway" / "fleet.key").public,
            "device_key": load_or_create_key(folder / "agent" / "device.key").public,
        }
        for name, text in FILES.items():
            (folder / name).write_text(text.format(**words))
        (folder / "data").mkdir()
        np.savez(folder / "data" / "train.npz", x=client.train.x, y=client.train.y)
        np.savez(folder / "data" / "validation.npz", x=client.validation.x, y=client.validation.y)
        np.savez(folder / "validation.npz", x=client.validation.x, y=client.validation.y)
        for name, program, file in (("gateway", "broker_aggregator", "gateway"), ("agent", "edge_agent", "agent")):
            processes.start(name, [sys.executable, "-m", program, "run", "--config", str(folder / f"{file}.toml")])
        create = ["task", "create", str(folder / "task.toml"), "--config", str(folder / "gateway.toml")]
        processes.run("operator", [sys.executable, "-m", "broker_aggregator", *create], WAIT_S)
        updates = _wait(folder, processes, versions)
        time.sleep(1.0)  # what the last verdict brings about
        processes.stop(["agent"])
        proxy.close()
    return Counted(proxy.up, proxy.down, updates)


def _wait(folder: Path, processes: Processes, versions: int) -> int:
    """Until the task is done: how many updates it had."""
    transport = transport_to(load_config(folder / "gateway.toml", {}).broker, "observer", session_expiry_s=0)
    transport.start()
    transport.subscribe([(below("twin", "task"), 0)])
    until = time.monotonic() + WAIT_S
    try:
        while time.monotonic() < until and not (fallen := processes.fallen()):
            for event in transport.receive(0.2):
                if not isinstance(event, Delivery) or (kind := parse(event.topic).kind) != Kind.STATUS:
                    continue
                match decode(kind, event.payload):
                    case TaskStatus(version=version, updates=counts) if version >= versions:
                        return sum(counts.values())
    finally:
        transport.close()
    raise ConfigError(f"{versions} versions did not come; {fallen or 'all programs run'}", f"see {folder / 'logs'}")


def compare(versions: int) -> tuple[Counted, Counted]:
    """(twin, socket) of the same run."""
    with tempfile.TemporaryDirectory(prefix="anabranch-bytes-") as folder:
        path = Path(folder)
        return in_the_twin(path, versions), over_mosquitto(path, versions)


def socket_rows(twin: Counted, real: Counted) -> list[list[object]]:
    """The table: totals, and how far the twin is off."""
    rows: list[list[object]] = [["bytes of one device", "twin", "socket", "twin is off by"]]
    for name, ours, theirs in (("up", twin.up, real.up), ("down", twin.down, real.down)):
        rows.append([name, f"{ours:,}", f"{theirs:,}", f"{100 * (ours - theirs) / theirs:+.2f} %"])
    rows.append(["updates", twin.updates, real.updates, ""])
    return rows
