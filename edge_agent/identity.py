"""Who the device is: its id, its fleet, its key, and which life of its flash storage this is."""

import importlib.metadata
import os
import platform
from dataclasses import dataclass

from edge_agent.config import AgentConfig
from edge_agent.health import machine_memory_mb, machine_name
from edge_agent.updating import arch_name
from fl_protocol.codec import encode
from fl_protocol.keyfile import load_or_create_key
from fl_protocol.messages import DeviceInfo, DeviceState
from fl_protocol.signing import SigningKey
from fl_protocol.topics import Kind, build
from fl_protocol.transport import Will


@dataclass(frozen=True)
class Identity:
    """The device's names and keys. `incarnation` and `boot` come from its disk.

    `fleet_key` is the fleet's as the device was told it; what it believes now is `Trust.fleet_key`.
    """

    device: str
    fleet: str
    key: SigningKey
    fleet_key: str
    incarnation: str
    boot: int

    def topic(self, kind: Kind, **ids: str) -> str:
        """A topic of this device, or of its fleet."""
        return build(kind, self.fleet, **{"device": self.device, **ids})

    def will(self, bseq: int) -> Will:
        """What the broker says of the device when it is gone without a word."""
        lost = DeviceState(state="lost", boot=self.boot, bseq=bseq, incarnation=self.incarnation)
        return Will(self.topic(Kind.STATE), encode(lost))


def load_key(config: AgentConfig) -> SigningKey:
    """The device's key, made at its first use. Raises `ConfigError`."""
    return load_or_create_key(config.device.state_dir / "device.key")


def describe(identity: Identity, release: int | None = None) -> DeviceInfo:
    """What the device is, for `dev/{id}/info`; `release` is the installed one, None where none can be."""
    return DeviceInfo(
        software=f"edge-agent {software_version()}",
        public_key=identity.key.public,
        incarnation=identity.incarnation,
        machine=machine_name(),
        python=platform.python_version(),
        cpus=os.cpu_count() or 0,
        memory_mb=machine_memory_mb(),
        arch=arch_name(),
        release=release,
    )


def software_version() -> str:
    """The installed distribution's version."""
    try:
        return importlib.metadata.version("anabranch")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "0+checkout"
