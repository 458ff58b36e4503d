"""Which members a fleet has, and every file that each of them starts with."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from anabranch.datasets.fan_vibration import SPEEDS, write_training_folder
from anabranch.demo.folder import Folder, choose_speeds, device_of, to_toml, write_task
from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError

from . import broker
from .credentials import Credentials
from .profiles import Profile, profile_of
from .specs import (
    AGENT_CONFIG,
    AGENT_STATE,
    GATEWAY_CONFIG,
    GATEWAY_STATE,
    Container,
    agent_container,
    broker_container,
    gateway_container,
)

MOST = 1000
GATEWAY_CONFIG_FILE = f"{GATEWAY_CONFIG}/gateway.toml"
TASK_FILE = f"{GATEWAY_STATE}/task/task.toml"
PKI = f"{GATEWAY_STATE}/pki"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What `fleet up` is asked for."""

    name: str
    agents: int
    profile: str
    versions: int
    minutes: int
    seed: int


def devices_of(agents: int) -> dict[str, int]:
    """The fan's speed by device: a spread of the recorded ones, then each again. Raises `ConfigError`."""
    if not 1 <= agents <= MOST:
        raise ConfigError(f"--agents {agents}: a virtual fleet has 1 to {MOST}", f"choose 1..{MOST}")
    if agents == 1:
        return {device_of(SPEEDS[len(SPEEDS) // 2]): SPEEDS[len(SPEEDS) // 2]}
    if agents <= len(SPEEDS):
        return {device_of(speed): speed for speed in choose_speeds(agents)}
    rounds = ((i // len(SPEEDS), SPEEDS[i % len(SPEEDS)]) for i in range(agents))
    return {f"{device_of(speed)}-{turn + 1}" if turn else device_of(speed): speed for turn, speed in rounds}


class Members:
    """The members of a fleet, of what was asked for and of the secrets in `folder`. Raises `ConfigError`."""

    def __init__(self, folder: Path, wanted: Wanted) -> None:
        self.folder, self.wanted = folder, wanted
        self.profile: Profile = profile_of(wanted.profile)
        self.speeds = devices_of(wanted.agents)

    def prepare(self) -> None:
        """Make the folder, and note what was asked for. Raises `ConfigError` for another fleet's folder."""
        note = self.folder / "fleet.json"
        try:
            owner = json.loads(note.read_text())["name"] if note.exists() else self.wanted.name
            if owner != self.wanted.name:
                raise ConfigError(
                    f"{self.folder} holds the secrets of the fleet {owner}", f"name another --folder, or --name {owner}"
                )
            write_durably(note, json.dumps(asdict(self.wanted), indent=2).encode() + b"\n")
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"cannot use {self.folder}: {error}", "name another --folder") from None

    @cached_property
    def credentials(self) -> Credentials:
        """The fleet's secrets, made at their first use."""
        return Credentials(self.folder / "pki", self.wanted.name)

    def containers(self) -> list[Container]:
        """All of them; the broker first, then the gateway."""
        return [self.broker(), self.gateway(), *(self.agent(device) for device in self.speeds)]

    def broker(self) -> Container:
        """The broker's container."""
        fleet, server = self.wanted.name, self.credentials.server
        files = {
            "mosquitto.conf": broker.mosquitto_conf().encode(),
            "devices.acl": broker.devices_acl(fleet).encode(),
            "services.acl": broker.services_acl(fleet).encode(),
            "local.acl": broker.local_acl().encode(),
            "ca.pem": self.credentials.ca,
            "crl.pem": self.credentials.crl,
            "server.pem": server.certificate,
            "server.key": server.key,
        }
        return broker_container(fleet, files)

    def gateway(self) -> Container:
        """The gateway's container."""
        secrets = self.credentials
        keys = {device: secrets.device_seed(device)[1] for device in self.speeds}
        sections: dict[str, Mapping[str, Any]] = {
            "gateway": {"fleet": self.wanted.name, "data_dir": GATEWAY_STATE, "keep_releases": 1000},
            "broker": _broker(broker.SERVICES, PKI, "services/aggregator"),
            "devices": keys,
        }
        state = {"fleet.key": secrets.fleet_seed, "pki/ca.pem": secrets.ca, "pki/crl.pem": secrets.crl}
        for name, pair in secrets.services.items():
            state |= {f"pki/services/{name}.pem": pair.certificate, f"pki/services/{name}.key": pair.key}
        return gateway_container(self.wanted.name, {"gateway.toml": to_toml(sections).encode()}, state | self._task())

    def agent(self, device: str) -> Container:
        """A device's container."""
        pair, (seed, _) = self.credentials.device(device), self.credentials.device_seed(device)
        number = list(self.speeds).index(device)
        sections: dict[str, Mapping[str, Any]] = {
            "device": {"id": device, "fleet": self.wanted.name, "state_dir": AGENT_STATE},
            "gateway": {"public_key": self.credentials.fleet_key},
            "broker": _broker(broker.DEVICES, AGENT_CONFIG, "device"),
            "data": {"path": f"{AGENT_STATE}/data"},
            "training": {"seed": self.wanted.seed * 1000 + number, "memory_mb": self.profile.planned_mb},
            "health": {"publish_s": 10.0},
            # The sensors are this machine's, not the board's.
            "gate": {"max_temperature_c": 150.0, "min_battery_pct": 0.0, "allow_throttled": True},
        }
        config = {
            "agent.toml": to_toml(sections).encode(),
            "ca.pem": self.credentials.ca,
            "device.pem": pair.certificate,
            "device.key": pair.key,
        }
        return agent_container(
            self.wanted.name, device, self.profile, config, {"device.key": seed, **self._examples(self.speeds[device])}
        )

    def _examples(self, speed: int) -> dict[str, bytes]:
        folder = self.folder / "data" / device_of(speed)
        _make_once(folder, lambda new: write_training_folder(speed, new))
        return {f"data/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}

    def _task(self) -> dict[str, bytes]:
        folder = self.folder / "task"
        speeds, wanted = list(self.speeds.values()), self.wanted
        _make_once(folder, lambda new: write_task(Folder(new), speeds, wanted.versions, wanted.minutes))
        return {f"task/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}


def _broker(port: int, folder: str, name: str) -> Mapping[str, Any]:
    return {
        "host": "broker",
        "port": port,
        "ca": f"{folder}/ca.pem",
        "certificate": f"{folder}/{name}.pem",
        "key": f"{folder}/{name}.key",
        "reconnect_max_s": 15.0,
    }


def _make_once(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, unless it is there; it gets its name when it is whole. Raises `ConfigError`."""
    if folder.is_dir():
        return
    new = folder.with_name(f"{folder.name}.new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        write(new)
        new.rename(folder)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror}", "free space, or name another --folder") from None
