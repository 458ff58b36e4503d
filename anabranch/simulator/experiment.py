"""What an experiment's file says: TOML -> a frozen `Experiment`; unknown keys refused, with a suggestion.

Times are virtual: `_s` seconds, `_ms` milliseconds, `_h` hours. What is left out has a default that makes sense alone.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from anabranch.simulator.attacks.kinds import read_terms
from anabranch.simulator.link import LinkSpec
from broker_aggregator.config import decimals
from fl_protocol.errors import ConfigError
from fl_protocol.messages import Id
from fl_protocol.settings import load_settings

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Deed = Literal[
    "cut", "partition", "slow", "kill", "power", "leave", "freeze", "clock", "disk-full", "disk-fails", "gate",
    "lose", "double", "reorder", "late", "tamper", "half-dies", "lost",
    "broker-stops", "broker-restart", "broker-forgets", "broker-wiped",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """What the devices learn from: a `source` (one of anabranch.datasets, stand-in, or an .npz), split over them.

    Split by `client`: each of the source's own clients is a device. By `dirichlet`: each class is spread over the
    devices by a draw of Dirichlet(alpha). An .npz has the arrays named here; `client` one id an example; `test` marks
    what is held out for measuring.
    """

    source: str = "stand-in"
    split: Literal["client", "dirichlet"] = "client"
    alpha: Positive = 0.5
    x: str = "x"
    y: str = "y"
    client: str = "client"
    test: str = "test"
    examples: tuple[Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)]] = (32, 128)  # of a stand-in device
    spread: NotNegative = 0.5  # of the stand-in devices' optima
    noise: NotNegative = 0.01  # of a stand-in training
    measured_on: Literal["validation", "test"] = "validation"


@dataclass(frozen=True, kw_only=True)
class TierSection:
    """A kind of device: `share` of the fleet; what is None here is as [fleet] and [link] say."""

    name: Id
    share: Share
    slowness: Positive = 1.0
    memory_mb: Positive | None = None
    latency_ms: NotNegative | None = None
    up_kbit_s: NotNegative | None = None
    down_kbit_s: NotNegative | None = None
    loss: Share | None = None


@dataclass(frozen=True, kw_only=True)
class FleetSection:
    """The machines. `slowness_spread` is the sigma of a log-normal factor on each one's time for a step."""

    devices: Annotated[int, Meta(ge=1, le=200_000)] = 10
    slowness_spread: NotNegative = 0.0
    memory_mb: Positive = 1024.0
    start_within_s: NotNegative = 5.0  # each starts at a random moment
    tiers: tuple[TierSection, ...] = ()
    slow: tuple[Id, ...] = ()  # by name, `slow_by` times slower
    slow_by: Positive = 10.0
    late: tuple[Id, ...] = ()  # start at `late_s`
    late_s: NotNegative = 0.0
    dies: Share = 0.0  # of the trainings that begin: the machine dies without a word in the middle of it
    back_s: Positive = 600.0  # and is back after about so long


@dataclass(frozen=True, kw_only=True)
class AvailabilitySection:
    """When a device is awake: always; in exponential turns around `awake_s` and `asleep_s`; or as a CSV trace says.

    A trace has rows `device,start_s,end_s` of wakefulness, one period long; our devices take its devices in turn.
    """

    kind: Literal["always", "turns", "trace"] = "always"
    awake_s: Positive = 600.0
    asleep_s: Positive = 600.0
    trace: Path | None = None
    period_s: Positive = 86400.0


@dataclass(frozen=True, kw_only=True)
class LinkSection:
    """A way to the broker; kbit/s 0: without limit; `loss`: packets that TCP sends again."""

    latency_ms: NotNegative = 20.0
    jitter_ms: NotNegative = 5.0
    up_kbit_s: NotNegative = 0.0
    down_kbit_s: NotNegative = 0.0
    loss: Share = 0.0

    def spec(self, tier: TierSection | None = None) -> LinkSpec:
        """As a link of the simulator, with what a tier changes."""

        def of(name: str) -> float:
            own = getattr(tier, name, None) if tier else None
            value: float = getattr(self, name) if own is None else own
            return value

        return LinkSpec(
            of("latency_ms") / 1000, self.jitter_ms / 1000, of("up_kbit_s") * 125, of("down_kbit_s") * 125, of("loss")
        )


@dataclass(frozen=True, kw_only=True)
class BrokerSection:
    """The broker's limits; `save_every_s`: how often its disk is written, 0 never (see broker-forgets).

    `will_at_take_over`: as MQTT 5 says; mosquitto does not.
    """

    max_packet: Annotated[int, Meta(ge=1024)] = 268_435_455
    max_queued: Annotated[int, Meta(ge=1)] = 1000
    receive_maximum: Annotated[int, Meta(ge=1, le=65535)] = 65535
    save_every_s: NotNegative = 1800.0
    will_at_take_over: bool = False


@dataclass(frozen=True, kw_only=True)
class GatewaySection:
    """The gateway: how often it looks at deadlines, how long a commit waits for company, a measurement takes."""

    tick_s: Positive = 0.25
    commit_ms: NotNegative = 20.0
    measure_ms: NotNegative = 50.0
    keep_releases: Annotated[int, Meta(ge=2, le=100_000)] = 100_000
    receive_maximum: Annotated[int, Meta(ge=1, le=65535)] = 200
    reconnect_max_s: Positive = 30.0


@dataclass(frozen=True, kw_only=True)
class TrainingSection:
    """How long training takes on the reference machine, and what it needs; `real` runs the bundle's graphs."""

    real: bool = False
    step_ms: Positive = 10.0
    overhead_ms: NotNegative = 50.0
    memory_mb: NotNegative = 77.0  # what an agent takes, benchmarks/memory.py
    threads: Annotated[int, Meta(ge=1, le=64)] = 2


@dataclass(frozen=True, kw_only=True)
class AgentSection:
    """What operators set on the devices."""

    health_s: Positive = 30.0
    state_s: NotNegative = 10.0
    measure_s: Positive = 10.0
    predict_s: NotNegative = 0.0
    reconnect_max_s: Positive = 300.0
    daily_mb: NotNegative = 0.0  # [budget] of the agents' configuration; 0: no limit
    up_kbit_s: NotNegative = 0.0


@dataclass(frozen=True, kw_only=True)
class FaultsSection:
    """A storm of `count` (from, to) random faults in the first `storm_s` seconds, drawn from the seed.

    After it everything heals, and within `calm_s` the fleet must be at work again: see docs/simulate.md. With `vary`
    the seed also draws mode, codec, clipping, packet size, predictions and availability.
    """

    storm_s: NotNegative = 0.0
    count: tuple[Count, Count] = (0, 0)
    deeds: tuple[Deed, ...] = ()  # of these only; empty: all
    calm_s: Positive = 900.0
    vary: bool = False


@dataclass(frozen=True, kw_only=True)
class EventSection:
    """Something that is to happen `at_s`: a deed, to whom (a device, `gateway` or `broker`), for how long, how much.

    `amount` is a share, seconds or times, as the deed has it; null: something sensible.
    """

    at_s: NotNegative
    deed: Deed
    who: str = "gateway"
    for_s: NotNegative = 10.0
    after: Count = 0  # so many more effects of whoever dies
    amount: float | None = None


@dataclass(frozen=True, kw_only=True)
class AttackSection:
    """A share of the devices, or those named, that attack: see `attacks.kinds`. What is null is as the kind has it."""

    kind: str
    share: Share = 0.0
    devices: tuple[Id, ...] = ()
    scale: Annotated[float, Meta(gt=0, le=1000)] | None = None
    target: Count | None = None  # a backdoor's label,
    poisoned: Share | None = None  # and the share of its examples that teach it
    every_s: Annotated[float, Meta(ge=0.05, le=86400)] | None = None  # between two updates that nobody asked for


@dataclass(frozen=True, kw_only=True)
class StopSection:
    """When a run ends, whichever is first: versions, counted updates, a value of the metric, virtual hours."""

    versions: Count = 0
    updates: Annotated[int, Meta(ge=0)] = 0
    value: NotNegative = 0.0
    hours: Positive = 24.0


@dataclass(frozen=True, kw_only=True)
class ChecksSection:
    """`thorough`: every invariant at every step; else what is cheap as it happens, and the rest at the end."""

    thorough: bool = True


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All of it, a section a field; `plan` is a task file's [plan]."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9._-]{1,64}\Z")]
    description: str = ""
    seeds: tuple[Count, ...] = (0,)
    bundle: str = "stand_in"  # of those that ship, or a path
    plan: dict[str, Any] = field(default_factory=dict)
    target: NotNegative | None = None  # a value of the metric that the comparison asks for the time of
    data: DataSection = field(default_factory=DataSection)
    fleet: FleetSection = field(default_factory=FleetSection)
    availability: AvailabilitySection = field(default_factory=AvailabilitySection)
    link: LinkSection = field(default_factory=LinkSection)
    gateway_link: LinkSection = field(default_factory=lambda: LinkSection(latency_ms=1.0, jitter_ms=0.0))
    broker: BrokerSection = field(default_factory=BrokerSection)
    gateway: GatewaySection = field(default_factory=GatewaySection)
    training: TrainingSection = field(default_factory=TrainingSection)
    agent: AgentSection = field(default_factory=AgentSection)
    faults: FaultsSection = field(default_factory=FaultsSection)
    events: tuple[EventSection, ...] = ()
    attacks: tuple[AttackSection, ...] = ()
    stop: StopSection = field(default_factory=StopSection)
    checks: ChecksSection = field(default_factory=ChecksSection)


def load_experiment(path: Path) -> Experiment:
    """Read an experiment's file; relative paths in it start at the file. Raises `ConfigError` naming field and mend."""
    if not path.is_file():
        raise ConfigError(f"there is no experiment {path}", "name a TOML file; some lie in benchmarks/experiments/")
    experiment = load_settings(Experiment, path, {})
    base = path.resolve().parent
    if not experiment.seeds:
        raise ConfigError(f"{path}: `seeds` is empty", "give at least one, e.g. seeds = [0, 1, 2]")
    if len(set(experiment.seeds)) != len(experiment.seeds):
        raise ConfigError(f"{path}: `seeds` names one twice", "give each seed once")
    low, high = experiment.faults.count
    if low > high:
        raise ConfigError(f"{path}: faults.count = [{low}, {high}]", "give the smaller number first")
    shares = sum(tier.share for tier in experiment.fleet.tiers)
    if experiment.fleet.tiers and abs(shares - 1.0) > 1e-6:
        raise ConfigError(f"{path}: the shares of fleet.tiers add up to {shares:g}", "make them add up to 1")
    if experiment.training.real and experiment.data.source == "stand-in":
        raise ConfigError(f"{path}: training.real with stand-in data", "name a data.source, or leave out training.real")
    for number, section in enumerate(experiment.attacks):
        read_terms(section, f"{path}: attacks[{number}]")
    trace = experiment.availability.trace
    if experiment.availability.kind == "trace" and trace is None:
        raise ConfigError(f"{path}: availability.trace is missing", "name a CSV file with device,start_s,end_s")
    return replace(
        experiment,
        plan=decimals(experiment.plan),
        availability=replace(experiment.availability, trace=base / trace if trace else None),
        data=replace(experiment.data, source=_path(experiment.data.source, ".npz", base)),
        bundle=_path(experiment.bundle, ".bundle", base),
    )


def _path(text: str, suffix: str, base: Path) -> str:
    return str(base / text) if text.endswith(suffix) else text
