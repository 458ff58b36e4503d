"""What a gateway is to be: names, ports, places, accounts. Everything that `up` writes follows from it."""

import os
import pwd
import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Self

from fl_protocol.errors import ConfigError

How = Literal["systemd", "compose"]
LOCAL = ("127.0.0.1", "localhost")  # where the gateway's own programs find the broker
COMPOSE_HOST = "broker"  # the same in a compose project
_ID = re.compile(r"[a-z0-9-]{1,64}")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.I)


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """Who runs the brokers, and who the gateway."""

    broker: str = "mosquitto"
    gateway: str = "anabranch-gateway"

    @classmethod
    def myself(cls) -> Self:
        """Whoever runs this, for both."""
        name = pwd.getpwuid(os.geteuid()).pw_name
        return cls(broker=name, gateway=name)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Raises `ConfigError` for what can never work. `root` stands before every path: `/`, but for tests and images."""

    fleet: str
    names: tuple[str, ...]
    how: How = "systemd"
    root: Path = Path("/")
    port: int = 8883
    enroll_port: int = 8884
    services_port: int = 8885
    services_address: str = "127.0.0.1"
    accounts: Accounts = Accounts()
    autosave_s: int = 30
    memory_mb: int = 512

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.fleet):
            raise ConfigError(f"--fleet {self.fleet!r:.80} is no fleet's name", "1 to 64 of a-z, 0-9 and -")
        if not self.names:
            raise ConfigError("no --name", "give the host name or address under which devices reach this machine")
        for name in self.names:
            if not _HOST.fullmatch(name) and not _is_address(name):
                raise ConfigError(
                    f"--name {name!r:.80} is neither a host name nor an address", "for example gw.local, or 10.0.0.5"
                )
        ports = {"--port": self.port, "--enroll-port": self.enroll_port, "--services-port": self.services_port}
        for option, port in ports.items():
            if not 0 < port < 65536:
                raise ConfigError(f"{option} {port} is no port", "1 to 65535")
        if len(set(ports.values())) < len(ports):
            raise ConfigError(f"{' '.join(ports)}: two are the same", "each listener needs its own port")
        if not _is_address(self.services_address):
            raise ConfigError(
                f"--services-address {self.services_address!r:.80} is no address", "127.0.0.1, or one of this machine's"
            )

    @property
    def server_names(self) -> tuple[str, ...]:
        """What stands in the broker's certificate."""
        local = (*LOCAL, COMPOSE_HOST) if self.how == "compose" else LOCAL
        there = () if ip_address(self.services_address).is_unspecified else (self.services_address,)
        return tuple(dict.fromkeys((*self.names, *local, *there)))

    @property
    def etc(self) -> Path:
        """Configuration."""
        return self.root / "etc/anabranch-gateway"

    @property
    def data(self) -> Path:
        """What the gateway must not forget."""
        return self.root / "var/lib/anabranch-gateway"

    @property
    def pki(self) -> Path:
        """The fleet's authority and the certificates of this machine."""
        return self.data / "pki"

    @property
    def broker_data(self) -> Path:
        """The broker's disk."""
        return self.root / "var/lib/anabranch-broker"

    @property
    def units(self) -> Path:
        """Where an administrator's units lie."""
        return self.root / "etc/systemd/system"

    @property
    def config(self) -> Path:
        """What `broker-aggregator run --config` reads."""
        return self.etc / "gateway.toml"

    @property
    def installed(self) -> bool:
        """Whether this is the machine itself, and not a folder of it."""
        return self.root == Path("/")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
