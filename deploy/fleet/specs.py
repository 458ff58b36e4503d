"""What a fleet consists of, as values: containers and volumes. No engine, no I/O; `engine.py` makes them real."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import broker
from .profiles import Profile

FLEET_LABEL = "io.anabranch.fleet"
MEMBER_LABEL = "io.anabranch.member"
ROLE_LABEL = "io.anabranch.role"
DIGEST_LABEL = "io.anabranch.digest"
IMAGES = {"broker": "anabranch-mosquitto", "gateway": "anabranch-aggregator", "agent": "anabranch-agent"}
DOCKERFILES = {"broker": "mosquitto", "gateway": "aggregator", "agent": "agent"}
USER = 10001  # in all our images
BROKER, GATEWAY = "broker", "gateway"
AGENT_CONFIG, AGENT_STATE = "/etc/anabranch", "/var/lib/anabranch"
GATEWAY_CONFIG, GATEWAY_STATE = "/etc/anabranch-gateway", "/var/lib/anabranch-gateway"
BROKER_STATE = "/var/lib/mosquitto"
RUN = "/run/anabranch"


@dataclass(frozen=True)
class Volume:
    """A named volume at `path`. `files` are laid into it, by name: always when `read_only`, else when it is made."""

    name: str
    path: str
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    read_only: bool = False

    @property
    def digest(self) -> str:
        """Of the files that are laid into it."""
        whole = hashlib.sha256()
        for name in sorted(self.files):
            whole.update(f"{name}\0{len(self.files[name])}\0".encode() + self.files[name])
        return whole.hexdigest()


@dataclass(frozen=True)
class Container:
    """A member of the fleet: what runs, on what, and with how much of the machine."""

    fleet: str
    member: str  # its short name: `broker`, `gateway`, or the device's id
    role: str
    cpus: float
    memory_mb: int
    volumes: tuple[Volume, ...]
    ports: tuple[int, ...] = ()  # published on this machine only, at ports that the engine picks

    @property
    def name(self) -> str:
        """The container's."""
        return f"{self.fleet}-{self.member}"

    @property
    def image(self) -> str:
        """What it is made of."""
        return IMAGES[self.role]

    @property
    def digest(self) -> str:
        """Changes with whatever makes the container another one; what is only laid into a new volume does not."""
        volumes = [(v.name, v.path, v.read_only, v.digest if v.read_only else "") for v in self.volumes]
        plain = [self.role, self.image, self.cpus, self.memory_mb, self.ports, volumes]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()

    @property
    def labels(self) -> dict[str, str]:
        """How it is found again, also by who never made it."""
        return {**labels_of(self.fleet), MEMBER_LABEL: self.member, ROLE_LABEL: self.role, DIGEST_LABEL: self.digest}


def labels_of(fleet: str) -> dict[str, str]:
    """On everything that belongs to a fleet."""
    return {FLEET_LABEL: fleet}


def network_of(fleet: str) -> str:
    """The network that the members of a fleet meet on."""
    return f"{fleet}-network"


def broker_container(fleet: str, files: Mapping[str, bytes]) -> Container:
    """The broker, with its configuration and certificates."""
    return Container(
        fleet,
        BROKER,
        "broker",
        cpus=1.0,
        memory_mb=256,
        volumes=(
            Volume(f"{fleet}-broker-config", broker.CONFIG, files, read_only=True),
            Volume(f"{fleet}-broker-state", BROKER_STATE),
        ),
        ports=(broker.SERVICES,),
    )


def gateway_container(fleet: str, config: Mapping[str, bytes], state: Mapping[str, bytes]) -> Container:
    """The aggregator; `state` holds its keys and the task that it starts with."""
    return Container(
        fleet,
        GATEWAY,
        "gateway",
        cpus=2.0,
        memory_mb=1024,
        volumes=(
            Volume(f"{fleet}-gateway-config", GATEWAY_CONFIG, config, read_only=True),
            Volume(f"{fleet}-gateway-state", GATEWAY_STATE, state),
        ),
    )


def agent_container(
    fleet: str, device: str, profile: Profile, config: Mapping[str, bytes], state: Mapping[str, bytes]
) -> Container:
    """A device; `state` holds its key and its examples."""
    return Container(
        fleet,
        device,
        "agent",
        cpus=profile.cpus,
        memory_mb=profile.memory_mb,
        volumes=(
            Volume(f"{fleet}-{device}-config", AGENT_CONFIG, config, read_only=True),
            Volume(f"{fleet}-{device}-state", AGENT_STATE, state),
        ),
    )


def create_options(container: Container, cores: float) -> dict[str, Any]:
    """What `docker.containers.create` is given, on an engine with `cores`; the network is joined apart from it."""
    return {
        "image": container.image,
        "name": container.name,
        "hostname": container.member,
        "labels": container.labels,
        "user": f"{USER}:{USER}",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "tmpfs": {"/tmp": "size=16m,mode=1777", RUN: f"size=1m,uid={USER},gid={USER},mode=0700"},  # noqa: S108 - its own
        "nano_cpus": int(min(container.cpus, cores) * 1e9),
        "mem_limit": container.memory_mb << 20,
        "memswap_limit": container.memory_mb << 20,  # no swap on top, as on a board without
        "pids_limit": 128,
        "volumes": {v.name: {"bind": v.path, "mode": "ro" if v.read_only else "rw"} for v in container.volumes},
        "ports": {f"{port}/tcp": ("127.0.0.1", None) for port in container.ports},
        "restart_policy": {"Name": "unless-stopped"},
        "log_config": {"Type": "json-file", "Config": {"max-size": "5m", "max-file": "2"}},
        "detach": True,
    }
