"""What the device hears on its local broker and keeps of it: `[sensors]` and `[ring]` of the configuration."""

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from edge_agent.segments import Form
from fl_protocol.broker import BrokerConfig
from fl_protocol.errors import ConfigError, ProtocolError
from fl_protocol.queues import check_topic

Name = Annotated[str, Meta(min_length=1, max_length=64)]
Topic = Annotated[str, Meta(min_length=1, max_length=1024)]
NotNegative = Annotated[float, Meta(ge=0)]
MAX_FEATURES = 1 << 20  # float32 numbers of one example


@dataclass(frozen=True, kw_only=True)
class ChannelConfig:
    """One row of an example: a topic, and where in its payload the number is."""

    name: Name
    topic: Topic
    field: str = ""  # of a JSON object, dots lead inside; empty: the payload is the number
    time_field: str = ""  # where the object says when it was measured: ISO 8601, or seconds or milliseconds since 1970
    min: float | None = None  # numbers below are refused,
    max: float | None = None  # and numbers above


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """How many values make an example: by `count`, or by `seconds` that are cut into `samples` equal slots."""

    count: Annotated[int, Meta(ge=0, le=1 << 16)] = 0  # values of every channel
    seconds: NotNegative = 0.0
    samples: Annotated[int, Meta(ge=1, le=1 << 16)] = 1  # each is the mean of its slot; one without is the last value
    step: NotNegative = 0.0  # from a window's start to the next one's, in values or seconds; 0: its own length
    max_gap_s: Annotated[float, Meta(gt=0)] = 10.0  # a longer silence of a channel drops the window in hand
    order: Literal["channel-time", "time-channel"] = "channel-time"  # an example's shape

    @property
    def rows(self) -> int:
        """Values of every channel in an example."""
        return self.samples if self.seconds else self.count

    @property
    def slot_s(self) -> float:
        """How long a slot is, where windows go by time."""
        return self.seconds / self.samples

    @property
    def step_rows(self) -> int:
        """The step in values, or in slots."""
        return round(self.step / self.slot_s if self.seconds else self.step) or self.rows


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Where labels come from. Without `horizon_s` the value in force when a window ends, also one that was retained.

    With it a window waits so long for an event, which labels every window that waits.
    """

    topic: Topic
    field: str = ""
    classes: tuple[str, ...] = ()  # payloads in the order of the model's labels; none: the payload is a number
    horizon_s: NotNegative = 0.0
    default: float | None = None  # the label of a window that got none; unless given it is dropped
    max_waiting: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000  # windows in memory; the oldest is then dropped


@dataclass(frozen=True, kw_only=True)
class SensorsConfig:
    """What becomes of messages on a local broker: channels -> windows, with their labels -> the ring."""

    channels: tuple[ChannelConfig, ...] = ()
    window: WindowConfig = field(default_factory=WindowConfig)
    label: LabelConfig | None = None  # none: every label is 0
    max_age_s: Annotated[float, Meta(gt=0)] = 60.0  # of a message with a `time_field`
    broker: BrokerConfig = field(default_factory=BrokerConfig)

    @property
    def form(self) -> Form:
        """What an example of these looks like."""
        rows, channels = self.window.rows, len(self.channels)
        shape = (channels, rows) if self.window.order == "channel-time" else (rows, channels)
        names = ",".join(channel.name for channel in self.channels)
        window = self.window
        cut = f"{window.seconds:g} s in {window.samples}" if window.seconds else f"{window.count} values"
        classes = f" labels {_brief(','.join(self.label.classes))}" if self.label and self.label.classes else ""
        return Form(shape, f"{_brief(names)}; {cut}{classes}")


@dataclass(frozen=True, kw_only=True)
class RingConfig:
    """How much is kept, and how often the flash is written; the section `[ring]` of the configuration."""

    max_mb: Annotated[float, Meta(ge=0.0625)] = 64.0  # on the disk, 2^20 bytes each
    days: Annotated[float, Meta(ge=0)] = 30.0  # older examples go; 0: none goes for its age
    flush_kb: Annotated[float, Meta(ge=1, le=4096)] = 64.0  # so much is written at once,
    flush_s: Annotated[float, Meta(gt=0)] = 300.0  # or what there is after so long: a power cut costs as much

    @property
    def max_bytes(self) -> int:
        """What all files together may have."""
        return int(self.max_mb * 2**20)


def check_sensors(config: SensorsConfig) -> None:
    """Raises `ConfigError` for channels, windows and labels that can never make an example."""
    names = [channel.name for channel in config.channels]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"sensors.channels: two are called {twice!r}", "give each a name of its own")
    for what, topic in (
        *((f"sensors.channels {channel.name!r}", channel.topic) for channel in config.channels),
        *([("sensors.label", config.label.topic)] if config.label else []),
    ):
        try:
            check_topic(topic)
        except ProtocolError as error:
            raise ConfigError(f"{what}: {error.message}", "name one topic, without + and #") from None
    for channel in config.channels:
        if channel.min is not None and channel.max is not None and not channel.min <= channel.max:
            raise ConfigError(
                f"sensors.channels {channel.name!r}: min {channel.min:g} is above max {channel.max:g}", "swap them"
            )
        if channel.time_field and not channel.field:
            raise ConfigError(
                f"sensors.channels {channel.name!r} has a `time_field` and no `field`",
                "only a JSON object says when it was measured: name the `field` with the number",
            )
    if config.channels:
        _check_window(config)


def _check_window(config: SensorsConfig) -> None:
    window = config.window
    if bool(window.count) == bool(window.seconds):
        raise ConfigError(
            f"sensors.window: count is {window.count} and seconds {window.seconds:g}", "set one of the two above 0"
        )
    unit = window.slot_s if window.seconds else 1.0
    if abs(window.step / unit - round(window.step / unit)) > 1e-6 or window.step > (window.seconds or window.count):
        raise ConfigError(
            f"sensors.window.step is {window.step:g}",
            f"a multiple of {unit:g}, and no more than the window is long: {window.seconds or window.count:g}",
        )
    if window.rows * len(config.channels) > MAX_FEATURES:
        raise ConfigError(
            f"sensors.window: {len(config.channels)} channels of {window.rows} values are too many",
            f"at most {MAX_FEATURES} numbers make an example",
        )
    label = config.label
    if label and label.classes and label.default is not None and not _is_class(label.default, label.classes):
        raise ConfigError(
            f"sensors.label.default is {label.default:g}", f"one of 0 to {len(label.classes) - 1}, as `classes` has"
        )


def _is_class(label: float, classes: tuple[str, ...]) -> bool:
    return label.is_integer() and 0 <= label < len(classes)


def _brief(text: str) -> str:
    """The text, or where it is long a digest of it: a header has little room."""
    return text if len(text) <= 200 else hashlib.sha256(text.encode()).hexdigest()[:32]
