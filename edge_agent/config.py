"""The device's configuration: TOML and environment -> a frozen `AgentConfig`; unknown keys refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from edge_agent.budget import BudgetConfig
from edge_agent.gate import GateConfig
from edge_agent.metering import check_metered
from edge_agent.sensing import RingConfig, SensorsConfig, check_sensors
from edge_agent.training import Provider
from fl_protocol import broker
from fl_protocol.errors import ConfigError
from fl_protocol.messages import Id, Key
from fl_protocol.settings import parse_settings, read_table, section_environment

Seconds = Annotated[float, Meta(ge=0)]
PositiveSeconds = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Who the device is, and where it keeps what must survive a power cut."""

    id: Id
    fleet: Id
    state_dir: Path = Path("/var/lib/anabranch")


@dataclass(frozen=True, kw_only=True)
class BrokerConfig(broker.BrokerConfig):
    """How the device reaches the broker, and whether that costs by the byte."""

    metered: bool = False


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """Whom the device believes: the fleet's public key, 64 hex digits."""

    public_key: Key


@dataclass(frozen=True, kw_only=True)
class EnrollConfig:
    """How a device without keys comes by its certificate: by a ticket; `directory` keeps what it gets.

    With this section `[device] id` and `fleet`, `[gateway]` and `[broker]` may be left out: the enrolment knows them.
    """

    ticket: Path = Path("/etc/anabranch/ticket.toml")
    directory: Path = Path("/var/lib/anabranch/identity")
    claim: str = ""  # by which it was enrolled; not yours to set


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the examples lie: a folder of `.npz` or `.csv` files, the ring of `[sensors]`, or a plug-in's place."""

    source: str = "folder"  # "ring", or the name of an entry point in the group `anabranch.sources`
    path: Path | None = None  # the folder; the ring's is `ring` in `state_dir` unless given
    label: str = ""  # the label's column in CSV files; the last one unless named
    max_bytes: Annotated[int, Meta(ge=1024)] = 64 << 20  # of examples in memory
    options: dict[str, Any] = field(default_factory=dict)  # a plug-in's own settings


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What training may use: a provider of onnxruntime, threads, memory, and the share of time that it may compute."""

    provider: Provider = "auto"
    threads: Annotated[int, Meta(ge=1, le=64)] | Literal["auto"] = "auto"
    max_batch: Annotated[int, Meta(ge=0)] = 0  # a plan's larger batches are made smaller; 0: taken as they are
    memory_mb: Annotated[int, Meta(ge=0)] = 0  # of the whole agent; 0: what machine and control group have free
    duty_cycle: Annotated[float, Meta(gt=0, le=1)] = 1.0
    seed: Annotated[int, Meta(ge=0)] | None = None  # for experiments that must repeat; else from the system


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How often the int8 model looks at the newest example; 0: never."""

    interval_s: Seconds = 10.0
    tell_numbers: bool = False  # publish what a model without labels says: it may be close to what was measured


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """How often sensors are read, and told."""

    measure_s: PositiveSeconds = 10.0
    publish_s: PositiveSeconds = 30.0
    state_s: Seconds = 10.0  # at most so often a device at work says what it is at


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
    data: DataConfig = field(default_factory=DataConfig)
    ring: RingConfig = field(default_factory=RingConfig)
    sensors: SensorsConfig = field(default_factory=SensorsConfig)
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    log: LogConfig = field(default_factory=LogConfig)
    enroll: EnrollConfig | None = None


def load_enrollment(path: Path, environ: Mapping[str, str]) -> EnrollConfig | None:
    """The section `[enroll]` alone, None without one; relative paths start at the file. Raises `ConfigError`."""
    table, variables = read_table(path), section_environment("enroll", environ)
    if "enroll" not in table and not variables:
        return None
    only = parse_settings(_Enrollment, {"enroll": table.get("enroll", {})}, variables, str(path)).enroll
    base = path.resolve().parent
    return replace(only, ticket=base / only.ticket, directory=base / only.directory)


def state_directory(path: Path, environ: Mapping[str, str]) -> Path:
    """`[device] state_dir` of a file that does not name its device yet."""
    told = environ.get("ANABRANCH_DEVICE__STATE_DIR")
    return Path(told or read_table(path).get("device", {}).get("state_dir", DeviceConfig.state_dir))


@dataclass(frozen=True, kw_only=True)
class _Enrollment:
    enroll: EnrollConfig


def load_config(path: Path, environ: Mapping[str, str]) -> AgentConfig:
    """Read `path`, with `ANABRANCH_SECTION__KEY` on top; relative paths start at the file. Raises `ConfigError`.

    What the enrolment found out stands below it.
    """
    table, enrollment = read_table(path), load_enrollment(path, environ)
    identity = enrollment.directory / "identity.toml" if enrollment else None
    if identity is not None and identity.exists():
        known = read_table(identity)
        known["broker"].update({k: str(identity.parent / known["broker"][k]) for k in ("ca", "certificate")})
        table = {**table, **{name: {**section, **table.get(name, {})} for name, section in known.items()}}
    elif identity is not None and "id" not in table.get("device", {}):
        raise ConfigError(
            "this device is not enrolled yet",
            "`edge-agent run` or `edge-agent enroll` does it, by the ticket in [enroll]",
        )
    config = parse_settings(AgentConfig, table, environ, str(path))
    check_metered(config.budget.metered)
    check_sensors(config.sensors)
    _check_source(config)
    base = path.resolve().parent
    return replace(
        config,
        device=replace(config.device, state_dir=base / config.device.state_dir),
        data=replace(config.data, path=base / config.data.path if config.data.path else None),
        sensors=replace(config.sensors, broker=config.sensors.broker.relative_to(base)),
        broker=config.broker.relative_to(base),
        enroll=enrollment,
    )


def _check_source(config: AgentConfig) -> None:
    source, channels = config.data.source, len(config.sensors.channels)
    if source == "folder" and config.data.path is None:
        raise ConfigError('data.path is missing, and data.source is "folder"', "name the folder with the examples")
    if source == "ring" and not channels:
        raise ConfigError(
            'data.source is "ring", and [sensors] has no channels', "add [[sensors.channels]] with a name and a topic"
        )
    if source != "ring" and channels:
        raise ConfigError(
            f'[sensors] has {channels} channels, and data.source is "{source}"',
            'set `source = "ring"` in [data], or remove [sensors]',
        )
