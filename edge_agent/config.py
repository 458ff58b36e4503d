"""The device's configuration: TOML and environment -> a frozen `AgentConfig`; unknown keys refused."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from edge_agent.gate import GateConfig
from fl_protocol.errors import ConfigError
from fl_protocol.messages import Id, Key
from fl_protocol.settings import load_settings

Seconds = Annotated[float, Meta(ge=0)]
PositiveSeconds = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Who the device is, and where it keeps what must survive a power cut."""

    id: Id
    fleet: Id
    state_dir: Path = Path("/var/lib/anabranch")


@dataclass(frozen=True, kw_only=True)
class BrokerConfig:
    """How to reach the broker; with `ca` the connection is TLS, with `certificate` and `key` mutual."""

    host: Annotated[str, Meta(min_length=1)] = "localhost"
    port: Annotated[int, Meta(ge=0, le=65535)] = 0  # 0: 8883 with TLS, 1883 without
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    mqtt_version: Literal["auto", "5", "3.1.1"] = "auto"
    max_packet: Annotated[int, Meta(ge=1024, le=8 << 20)] | None = None  # bytes; where the broker does not say
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30
    reconnect_max_s: PositiveSeconds = 300.0
    metered: bool = False  # this link costs by the byte

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port or (8883 if self.ca else 1883)

    def tls(self) -> ssl.SSLContext | None:
        """The TLS settings, None without. Raises `ConfigError` for files that are not what they should be."""
        if self.ca is None:
            if self.certificate or self.key:
                raise ConfigError("`certificate` and `key` in [broker] need `ca`", "name the broker's CA file")
            return None
        try:
            context = ssl.create_default_context(cafile=str(self.ca))
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot use the TLS files of [broker]: {error}", "`ca`, `certificate` and `key` are PEM files"
            ) from None
        return context


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """Whom the device believes: the fleet's public key, 64 hex digits."""

    public_key: Key


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the examples lie: a folder of `.npz` or `.csv` files."""

    path: Path
    label: str = ""  # the label's column in CSV files; the last one unless named
    max_bytes: Annotated[int, Meta(ge=1024)] = 64 << 20  # of examples in memory


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What training may use: threads, and the share of time that it may compute."""

    threads: Annotated[int, Meta(ge=1, le=64)] = 1
    duty_cycle: Annotated[float, Meta(gt=0, le=1)] = 1.0
    seed: Annotated[int, Meta(ge=0)] | None = None  # for experiments that must repeat; else from the system


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How often the int8 model looks at the newest example; 0: never."""

    interval_s: Seconds = 10.0


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """How often sensors are read, and told."""

    measure_s: PositiveSeconds = 10.0
    publish_s: PositiveSeconds = 30.0


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is logged, on standard error; never an example."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """All of it, a section a field."""

    device: DeviceConfig
    gateway: GatewayConfig
    data: DataConfig
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    log: LogConfig = field(default_factory=LogConfig)


def load_config(path: Path, environ: Mapping[str, str]) -> AgentConfig:
    """Read `path`, with `ANABRANCH_SECTION__KEY` on top; relative paths start at the file. Raises `ConfigError`."""
    config = load_settings(AgentConfig, path, environ)
    base = path.resolve().parent
    broker = config.broker
    return replace(
        config,
        device=replace(config.device, state_dir=base / config.device.state_dir),
        data=replace(config.data, path=base / config.data.path),
        broker=replace(
            broker,
            ca=broker.ca and base / broker.ca,
            certificate=broker.certificate and base / broker.certificate,
            key=broker.key and base / broker.key,
        ),
    )
