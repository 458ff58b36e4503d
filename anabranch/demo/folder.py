"""The run's folder: keys, configurations and examples of one gateway and its devices, as a person would write them."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.datasets.fan_vibration import SPEEDS, load_all, write_training_folder
from anabranch.demo.broker import HOST, Broker
from anabranch.demo.story import Cast
from broker_aggregator.config import GatewayConfig, GatewaySection
from broker_aggregator.config import load_config as load_gateway
from edge_agent.config import load_config as load_agent
from edge_agent.identity import load_key
from fl_protocol.bundle import Bundle
from fl_protocol.errors import ConfigError
from fl_protocol.keyfile import load_or_create_key

FLEET = "fans"
TASK = "fan-vibration"
HEALTH_S = 1.0
TEN_TIMES_SLOWER = 0.1  # duty cycle of the slow devices

# Measured by benchmarks/fan_demo.py, see benchmarks/README.md: with staleness weights the slow fans' own sound is
# hardly learnt (algorithms.md section 1 found the same), and a buffer of half the fleet keeps the steps small enough.
VERSIONS = 160
PLAN: Mapping[str, Any] = {
    "local_epochs": 1,
    "staleness_exponent": 0.0,
    "max_staleness": 60,
    "codec": {"name": "uq", "step": 1.0},
}


def choose_speeds(devices: int) -> tuple[int, ...]:
    """A spread of `devices` fan speeds. Raises `ConfigError`."""
    if not 2 <= devices <= len(SPEEDS):
        raise ConfigError(f"--devices {devices}: the recordings have {len(SPEEDS)} fans", f"choose 2..{len(SPEEDS)}")
    return tuple(SPEEDS[round(i)] for i in np.linspace(0, len(SPEEDS) - 1, devices))


def device_of(speed: int) -> str:
    """A fan's name."""
    return f"fan-{speed}"


@dataclass(frozen=True)
class Folder:
    """Where everything of one run lies."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> "Folder":
        """A new or empty folder. Raises `ConfigError`."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise ConfigError(f"{path} is not empty", "name a new folder with --output")
        except OSError as error:
            raise ConfigError(f"cannot use {path}: {error.strerror}", "name another folder with --output") from None
        return cls(path.resolve())

    @property
    def gateway_file(self) -> Path:
        """The gateway's configuration."""
        return self.path / "gateway.toml"

    @property
    def task_file(self) -> Path:
        """What `broker-aggregator task create` reads."""
        return self.path / "task.toml"

    @property
    def logs(self) -> Path:
        """What every program printed."""
        return self.path / "logs"

    @property
    def model(self) -> Path:
        """Where the model is exported to."""
        return self.path / "model"

    @property
    def report(self) -> Path:
        """The page that is kept."""
        return self.path / "report.html"

    @property
    def summary(self) -> Path:
        """The figures that are kept."""
        return self.path / "summary.json"

    def tidy(self) -> None:
        """Leave report, model and summary; with none of them, nothing."""
        kept = (self.report, self.model, self.summary)
        for path in self.path.iterdir():
            if path not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not any(path.exists() for path in kept):
            self.path.rmdir()

    @property
    def gateway(self) -> GatewayConfig:
        """The gateway's configuration, read back."""
        return load_gateway(self.gateway_file, {})

    def agent_file(self, device: str) -> Path:
        """A device's configuration."""
        return self.path / device / "agent.toml"

    def outbox(self, device: str) -> Path:
        """A device's database."""
        return self.path / device / "state" / "outbox.sqlite3"


def write_gateway(folder: Folder, broker: Broker, devices: Mapping[str, str]) -> None:
    """The gateway's file; `devices` maps ids to public keys."""
    sections = {
        "gateway": {"fleet": FLEET, "data_dir": "gateway", "keep_releases": 10_000},
        "broker": _broker(broker),
        "devices": devices,
    }
    folder.gateway_file.write_text(to_toml(sections))


def fleet_key(folder: Folder) -> str:
    """The fleet's public key, made at its first use."""
    config = GatewayConfig(gateway=GatewaySection(fleet=FLEET, data_dir=folder.path / "gateway"))
    return load_or_create_key(config.key_path).public


def write_devices(folder: Folder, broker: Broker, speeds: Sequence[int], cast: Cast, seed: int) -> dict[str, str]:
    """Each device's examples, configuration and key; returns the public keys by device."""
    believes, keys = fleet_key(folder), {}
    for number, speed in enumerate(speeds):
        device = device_of(speed)
        data = folder.path / device / "data"
        write_training_folder(speed, data)
        sections: dict[str, Mapping[str, Any]] = {
            "device": {"id": device, "fleet": FLEET, "state_dir": "state"},
            "gateway": {"public_key": believes},
            "broker": _broker(broker),
            "data": {"path": "data"},
            "training": {"seed": seed * 1000 + number},
            "inference": {"interval_s": 5.0},
            "health": {"measure_s": HEALTH_S, "publish_s": HEALTH_S, "state_s": 0.0},
            # A laptop may be warm or on battery; the demo trains all the same. Leave these out in the field.
            "gate": {"max_temperature_c": 150.0, "min_battery_pct": 0.0, "allow_throttled": True},
        }
        if device in cast.slow:
            sections["training"] = {**sections["training"], "duty_cycle": TEN_TIMES_SLOWER}
        folder.agent_file(device).write_text(to_toml(sections))
        keys[device] = load_key(load_agent(folder.agent_file(device), {})).public
    return keys


def write_task(folder: Folder, speeds: Sequence[int], versions: int, minutes: int) -> None:
    """The task file, the bundle, and the gateway's held-out set: seconds 40 to 45 of every recording."""
    x, y = load_all(speeds).validation
    np.savez(folder.path / "validation.npz", x=x, y=y)
    bundle = files("anabranch") / "data" / "fan_vibration.bundle"
    (folder.path / "fan_vibration.bundle").write_bytes(bundle.read_bytes())
    task = {"task": TASK, "bundle": "fan_vibration.bundle", "evaluation": "validation.npz", "start": True}
    plan = {**PLAN, "buffer": max(1, len(speeds) // 2), "deadline_s": 15}
    stop = {"versions": versions, "minutes": minutes}
    codec = plan.pop("codec")
    folder.task_file.write_text(to_toml({"": task, "plan": plan, "plan.codec": codec, "plan.stop": stop}))


def read_bundle(folder: Folder) -> Bundle:
    """The run's model."""
    return Bundle.read((folder.path / "fan_vibration.bundle").read_bytes())


def to_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Sections of plain values as TOML; the section "" is the top. JSON's scalars are TOML's, but for a bare DEL."""
    lines: list[str] = []
    for name, values in sections.items():
        lines += [f"\n[{name}]"] if name else []
        lines += [
            f"{key} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
            for key, value in values.items()
        ]
    return "\n".join(lines).lstrip() + "\n"


def _broker(broker: Broker) -> Mapping[str, Any]:
    return {"host": HOST, "port": broker.port, "mqtt_version": broker.mqtt_version, "reconnect_max_s": 5.0}
