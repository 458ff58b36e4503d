"""May the device train now? A pure function of what its sensors say; a missing sensor never blocks."""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

Percent = Annotated[float, Meta(ge=0, le=100)]
ClockTime = Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]\Z")]


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """When the device may train; the section `[gate]` of its configuration."""

    min_battery_pct: Percent = 30.0  # ignored while it charges
    max_temperature_c: float = 75.0
    cool_down_c: Annotated[float, Meta(ge=0)] = 5.0  # a device that stopped for heat cools this far below first
    allow_throttled: bool = False
    allow_metered: bool = True
    min_disk_free_mb: Annotated[float, Meta(ge=0)] = 50.0
    start: ClockTime = "00:00"  # local time; start == end: at any time
    end: ClockTime = "00:00"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the sensors say; None where there is none."""

    battery_pct: float | None = None
    charging: bool | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    metered: bool | None = None
    disk_free_mb: float | None = None
    minute_of_day: int | None = None  # local time; None without a clock
    local_s: float | None = None  # seconds since 1970 by the local clock, whose midnights begin a day; None without one


@dataclass(frozen=True)
class Vitals:
    """What this process uses: megabytes resident and at its peak, seconds of processor, and what trains."""

    memory_mb: float = 0.0
    peak_memory_mb: float = 0.0
    cpu_s: float = 0.0
    provider: str | None = None  # of onnxruntime, as the configuration names it; None before the first training


@dataclass(frozen=True)
class Answer:
    """Yes, or no and why, in words that stay the same while the reason does."""

    may: bool
    because: str = ""
    hot: bool = False


YES = Answer(True)


def may_train(config: GateConfig, reading: Reading, was_hot: bool = False) -> Answer:
    """Whether training may start or go on; `was_hot`: the last answer was no for heat."""
    limit_c = config.max_temperature_c - (config.cool_down_c if was_hot else 0.0)
    if reading.temperature_c is not None and reading.temperature_c > limit_c:
        return Answer(False, f"too hot: above {limit_c:g} °C", hot=True)
    if reading.throttled and not config.allow_throttled:
        return Answer(False, "the processor is throttled")
    if reading.battery_pct is not None and not reading.charging and reading.battery_pct < config.min_battery_pct:
        return Answer(False, f"battery below {config.min_battery_pct:g} %")
    if reading.metered and not config.allow_metered:
        return Answer(False, "the link is metered")
    if reading.disk_free_mb is not None and reading.disk_free_mb < config.min_disk_free_mb:
        return Answer(False, f"less than {config.min_disk_free_mb:g} MB free on the disk")
    if reading.minute_of_day is not None and not _within(reading.minute_of_day, config.start, config.end):
        return Answer(False, f"trains from {config.start} to {config.end}")
    return YES


def _within(minute: int, start: str, end: str) -> bool:
    """Whether a minute of the day is in [start, end), also over midnight."""
    first, last = (int(t[:2]) * 60 + int(t[3:]) for t in (start, end))
    if first <= last:
        return first == last or first <= minute < last
    return minute >= first or minute < last
