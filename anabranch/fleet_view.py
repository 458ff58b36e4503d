"""A fleet as its messages show it: what each device, the gateway and the tasks said last. Sans-I/O."""

from collections import Counter, deque
from dataclasses import dataclass, field

from fl_protocol.codec import decode
from fl_protocol.errors import ProtocolError
from fl_protocol.messages import (
    DeviceEvent,
    DeviceState,
    GatewayState,
    Health,
    Prediction,
    ReleaseMetrics,
    Result,
    TaskStatus,
)
from fl_protocol.topics import Kind, build, parse

WATCHED = (
    (Kind.STATE, 1),
    (Kind.HEALTH, 0),
    (Kind.EVENT, 1),
    (Kind.PREDICTION, 0),
    (Kind.RESULT, 1),
    (Kind.STATUS, 1),
    (Kind.METRICS, 0),
    (Kind.GATEWAY, 1),
)
KEPT_NEWS = 200  # until somebody asks


def filters(fleet: str) -> list[tuple[str, int]]:
    """The subscriptions (filter, QoS) that `FleetView.take` wants to be fed from."""
    return [(build(kind, fleet, **_any(kind)), qos) for kind, qos in WATCHED]


def _any(kind: Kind) -> dict[str, str]:
    return {name: "+" for name in ("device", "task") if f"{{{name}}}" in kind.value}


@dataclass
class DeviceView:
    """One device. `version` is what it last trained from; bytes are counted at its sockets, over restarts.

    `last_words` is the state that it was in when it was last lost; `healths` counts its reports.
    """

    id: str
    state: str = ""
    last_words: str = ""
    why: str = ""
    version: int | None = None
    verdicts: Counter[str] = field(default_factory=Counter)
    health: Health | None = None
    healths: int = 0
    prediction: Prediction | None = None
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def connected(self) -> bool:
        """Whether it is there, as far as its messages show."""
        return self.state not in ("", "lost", "disconnected")

    def take(self, message: object) -> None:
        """One more message of this device, or to it."""
        match message:
            case DeviceState():
                if message.state == "lost":
                    self.last_words = self.state
                self.state, self.why = message.state, message.why
                self.version = self.version if message.version is None else message.version
            case Health():
                # A process counts from zero: after a restart there is less than was said before.
                last = self.health or Health()
                restarted = message.bytes_up < last.bytes_up or message.bytes_down < last.bytes_down
                since = Health() if restarted else last
                self.bytes_up += message.bytes_up - since.bytes_up
                self.bytes_down += message.bytes_down - since.bytes_down
                self.health, self.healths = message, self.healths + 1
            case Prediction():
                self.prediction = message
            case Result() if not message.repeat:
                self.verdicts[message.verdict] += 1


@dataclass
class FleetView:
    """All of it."""

    devices: dict[str, DeviceView] = field(default_factory=dict)
    tasks: dict[str, TaskStatus] = field(default_factory=dict)
    releases: dict[str, list[ReleaseMetrics]] = field(default_factory=dict)
    gateway: GatewayState | None = None
    _news: deque[tuple[str, DeviceEvent]] = field(default_factory=lambda: deque(maxlen=KEPT_NEWS))

    def take_news(self) -> list[tuple[str, DeviceEvent]]:
        """What devices reported since the last call, as (device, event), oldest first."""
        news = list(self._news)
        self._news.clear()
        return news

    def take(self, topic: str, payload: bytes) -> None:
        """Read one message; what cannot be read, or is no business of this view, changes nothing."""
        try:
            at = parse(topic)
            message = decode(at.kind, payload) if payload else None
        except ProtocolError:
            return
        match message:
            case None:
                if at.kind is Kind.STATUS:
                    self.tasks.pop(at.task, None)
            case TaskStatus():
                self.tasks[at.task] = message
            case ReleaseMetrics() if not message.withheld:
                self.releases.setdefault(at.task, []).append(message)
            case GatewayState():
                self.gateway = message
            case DeviceEvent():
                self._news.append((at.device, message))
            case _ if at.device:
                self.devices.setdefault(at.device, DeviceView(at.device)).take(message)
