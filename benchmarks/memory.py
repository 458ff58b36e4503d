"""Peak memory (VmHWM) of one agent that trains and predicts over a real mosquitto, and of the gateway beside it.

The real bundle, one fan's real examples, both programs as on a device. Exits with 1 when an agent's peak is not below
`--limit`.
"""

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from figures import parse_arguments, print_result, setting, spread

import anabranch
from anabranch.datasets.fan_vibration import load_fan
from anabranch.demo.broker import start_broker
from anabranch.demo.processes import Processes
from broker_aggregator.config import load_config
from fl_protocol.codec import decode
from fl_protocol.connecting import transport_to
from fl_protocol.errors import ConfigError
from fl_protocol.keyfile import load_or_create_key
from fl_protocol.messages import DeviceState, Prediction, TaskStatus
from fl_protocol.topics import Kind, below, parse
from fl_protocol.transport import Delivery

SPEED = 60  # the fan's, in percent
LIMIT_MB = 90.0
WAIT_S = 120.0
PREDICTIONS = 5
BUNDLE = Path(anabranch.__file__).parent / "data" / "fan_vibration.bundle"

FILES = {
    "gateway.toml": """\
[gateway]
fleet = "bench"
data_dir = "gateway"
[broker]
host = "127.0.0.1"
port = {port}
[devices]
fan = "{device_key}"
""",
    "fan.toml": """\
[device]
id = "fan"
fleet = "bench"
state_dir = "fan"
[gateway]
public_key = "{fleet_key}"
[broker]
host = "127.0.0.1"
port = {port}
[data]
path = "data"
[inference]
interval_s = 0.2
""",
    "task.toml": """\
task = "fans"
bundle = "{bundle}"
evaluation = "validation.npz"
start = true
[plan]
buffer = 1
stop = {{ versions = {versions} }}
""",
}


@dataclass
class Seen:
    """What the fleet has said so far."""

    states: set[str] = field(default_factory=set)
    versions: int = 0
    accepted: int = 0
    predicted: set[int] = field(default_factory=set)  # versions

    def take(self, delivery: Delivery) -> None:
        kind = parse(delivery.topic).kind
        match decode(kind, delivery.payload) if kind in (Kind.STATE, Kind.STATUS, Kind.PREDICTION) else None:
            case DeviceState(state=name):
                self.states.add(name)
            case TaskStatus(version=version, updates=updates):
                self.versions, self.accepted = version, updates.get("accepted", 0)
            case Prediction(version=version):
                self.predicted.add(version)


def measure(folder: Path, versions: int) -> dict[str, Any]:
    """One gateway and one agent from nothing: the agent idle, and both after `versions` releases."""
    with Processes(folder / "logs") as processes:
        broker = start_broker(processes, folder / "broker")
        if broker.name != "mosquitto":
            raise ConfigError(f"this is measured over mosquitto, not {broker.name}", "put mosquitto on PATH")
        write_files(folder, broker.port, versions)
        config = load_config(folder / "gateway.toml", {})
        transport = transport_to(config.broker, "observer", session_expiry_s=0)
        transport.start()
        transport.subscribe([(below("bench", "dev"), 0), (below("bench", "task"), 0)])
        seen, until = Seen(), time.monotonic() + WAIT_S

        def wait(what: str, done: Any) -> None:
            while not done():
                if time.monotonic() > until or (fallen := processes.fallen()):
                    raise ConfigError(f"{what}: not within {WAIT_S:.0f} s, {fallen}", f"see {folder / 'logs'}")
                for event in transport.receive(0.2):
                    if isinstance(event, Delivery) and event.payload:
                        seen.take(event)

        for name, program, file in (
            ("gateway", "broker_aggregator", "gateway.toml"),
            ("fan", "edge_agent", "fan.toml"),
        ):
            processes.start(name, [sys.executable, "-m", program, "run", "--config", str(folder / file)])
        wait("the agent is there", lambda: seen.states)
        idle = memory_of(processes.pid("fan"))
        create = ["task", "create", str(folder / "task.toml"), "--config", str(folder / "gateway.toml")]
        processes.run("operator", [sys.executable, "-m", "broker_aggregator", *create], WAIT_S)
        wait("the versions come", lambda: seen.versions >= versions and len(seen.predicted) >= PREDICTIONS)
        agent, gateway = memory_of(processes.pid("fan")), memory_of(processes.pid("gateway"))
        transport.close()
    return {
        "agent_peak_mb": agent["VmHWM"],
        "agent_own_mb": agent["RssAnon"],
        "agent_idle_mb": idle["VmRSS"],
        "gateway_peak_mb": gateway["VmHWM"],
        "versions": seen.versions,
        "accepted": seen.accepted,
        "versions_predicted_with": len(seen.predicted),
    }


def write_files(folder: Path, port: int, versions: int) -> None:
    """Configurations, keys and one fan's examples."""
    words = {
        "port": port,
        "versions": versions,
        "bundle": BUNDLE,
        "fleet_key": load_or_create_key(folder / "gateway" / "fleet.key").public,
        "device_key": load_or_create_key(folder / "fan" / "device.key").public,
    }
    for name, text in FILES.items():
        (folder / name).write_text(text.format(**words))
    fan = load_fan(SPEED)
    (folder / "data").mkdir()
    np.savez(folder / "data" / "train.npz", x=fan.train[0], y=fan.train[1])
    np.savez(folder / "data" / "validation.npz", x=fan.validation[0], y=fan.validation[1])
    shutil.copy(folder / "data" / "validation.npz", folder)


def memory_of(pid: int) -> dict[str, float]:
    """Megabytes (2^20 bytes) of a process, by the names of proc(5)."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) / 1024 for words in lines if words[-1] == "kB"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="how often, each from nothing")
    parser.add_argument("--versions", type=int, default=25, help="releases of a run, each from one update")
    parser.add_argument("--limit", type=float, default=LIMIT_MB, help="megabytes that an agent stays below")
    options = parse_arguments(parser)
    runs = []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory(prefix="anabranch-memory-") as folder:
            runs.append(measure(Path(folder), options.versions))
    figures = {name: spread([run[name] for run in runs]) for name in runs[0] if name.endswith("_mb")}
    heads = {
        "agent_peak_mb": "agent, peak (VmHWM)",
        "agent_own_mb": "agent, its own at the end (RssAnon)",
        "agent_idle_mb": "agent, connected and idle (VmRSS)",
        "gateway_peak_mb": "gateway, peak (VmHWM)",
    }
    table: list[list[object]] = [["memory, MB", "median", "lowest", "highest"]]
    table += [[text, *(f"{figures[name][k]:.1f}" for k in ("median", "min", "max"))] for name, text in heads.items()]
    work: list[list[object]] = [["run", "versions", "updates accepted", "versions predicted with"]]
    for number, run in enumerate(runs, 1):
        work.append([number, run["versions"], run["accepted"], run["versions_predicted_with"]])
    below_limit = figures["agent_peak_mb"]["max"] < options.limit
    result = {
        "setting": setting("onnxruntime", "numpy", "cryptography", "paho-mqtt"),
        "figures": figures,
        "runs": runs,
        "limit_mb": options.limit,
        "below_limit": below_limit,
    }
    print_result(result, [table, work], options.json)
    if not below_limit:
        sys.stderr.write(f"an agent's peak is not below {options.limit:g} MB\n")
    return 0 if below_limit else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
