"""The gateway's configuration, and a task's: TOML (and environment) -> frozen dataclasses; unknown keys refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from fl_protocol.broker import BrokerConfig
from fl_protocol.messages import Id, Key
from fl_protocol.settings import load_settings


@dataclass(frozen=True, kw_only=True)
class GatewaySection:
    """Which fleet, and where the gateway keeps what it must not forget."""

    fleet: Id
    data_dir: Path = Path("/var/lib/anabranch-gateway")
    keep_releases: Annotated[int, Meta(ge=2, le=100_000)] = 200  # versions whose vectors and updates stay on disk
    min_free_mb: Annotated[int, Meta(ge=0)] = 64  # below this, updates are deferred with E_DISK
    receive_maximum: Annotated[int, Meta(ge=1, le=65535)] = 200  # updates in flight from the broker to here
    commit_ms: Annotated[int, Meta(ge=0, le=1000)] = 20  # how long a transaction waits for company
    log_level: str = "INFO"


@dataclass(frozen=True, kw_only=True)
class EnrollmentSection:
    """How new devices come in: by tickets, once `pki` names the folder of the fleet's certificate authority."""

    pki: Path | None = None
    host: str = ""  # under which devices reach the broker; tickets name it
    port: Annotated[int, Meta(ge=1, le=65535)] = 8883
    enroll_port: Annotated[int, Meta(ge=1, le=65535)] = 8884
    approve: bool = False  # each device waits until `device approve`
    hardware: tuple[str, ...] = ()  # serial numbers of the machines that may come in; none named: all
    certificate_days: Annotated[int, Meta(ge=1, le=3650)] = 365


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """All of it; `[devices]` maps ids to public keys in hex, `device allow` adds more while it runs."""

    gateway: GatewaySection
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    devices: dict[Id, Key] = field(default_factory=dict)
    enrollment: EnrollmentSection = field(default_factory=EnrollmentSection)

    @property
    def store_path(self) -> Path:
        """The SQLite file."""
        return self.gateway.data_dir / "store.sqlite"

    @property
    def key_path(self) -> Path:
        """The fleet's signing key."""
        return self.gateway.data_dir / "fleet.key"

    @property
    def bundles(self) -> Path:
        """Bundles by SHA-256."""
        return self.gateway.data_dir / "bundles"

    @property
    def agent_releases(self) -> Path:
        """Releases of the agent by SHA-256."""
        return self.gateway.data_dir / "agent-releases"


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """A task file: what `task create` reads. `[plan]` holds the plan's fields as numbers or text."""

    task: Id
    bundle: Path
    evaluation: Path | None = None
    start: bool = False
    plan: dict[str, Any] = field(default_factory=dict)


def load_config(path: Path, environ: Mapping[str, str]) -> GatewayConfig:
    """Read the gateway's file; relative paths start at it. Raises `ConfigError`."""
    config = load_settings(GatewayConfig, path, environ)
    base = path.resolve().parent
    gateway = replace(config.gateway, data_dir=base / config.gateway.data_dir)
    enrollment = replace(config.enrollment, pki=base / config.enrollment.pki if config.enrollment.pki else None)
    return replace(config, gateway=gateway, broker=config.broker.relative_to(base), enrollment=enrollment)


def load_task(path: Path) -> TaskConfig:
    """Read a task file; relative paths start at it. Raises `ConfigError`."""
    config = load_settings(TaskConfig, path, {})
    base = path.resolve().parent
    return replace(
        config,
        bundle=base / config.bundle,
        evaluation=base / config.evaluation if config.evaluation else None,
        plan=decimals(config.plan),
    )


NUMBERS_AS_TEXT = frozenset(
    {"clip_norm", "norm_limit", "staleness_exponent", "example_exponent", "server_learning_rate", "server_momentum"}
)


def decimals(plan: Mapping[str, Any]) -> dict[str, Any]:
    """TOML's numbers as the wire's decimals, where a plan wants those: signed messages hold no floats."""
    fields = {k: _text(v) if k in NUMBERS_AS_TEXT else v for k, v in plan.items()}
    for table in ("hyper", "codec", "downlink", "rule", "optimizer", "participation", "guard"):
        if isinstance(fields.get(table), Mapping):
            fields[table] = {k: _text(v) for k, v in fields[table].items()}
    if isinstance(fields.get("stop"), Mapping) and "metric" in fields["stop"]:
        fields["stop"] = {**fields["stop"], "metric": _text(fields["stop"]["metric"])}
    return fields


def _text(value: Any) -> Any:
    return f"{value:.12g}" if isinstance(value, float) else str(value) if type(value) is int else value
