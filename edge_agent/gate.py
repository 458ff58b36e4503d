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
    allow_under_voltage: bool = False
    power_modes: tuple[int, ...] = ()  # of `nvpmodel`, in which a Jetson trains; none: in any
    allow_metered: bool = True
    min_disk_free_mb: Annotated[float, Meta(ge=0)] = 50.0
    max_disk_wear_pct: Annotated[float, Meta(ge=0)] = 100.0  # of an eMMC's life, by its own estimate
    start: ClockTime = "00:00"  # local time; start == end: at any time
    end: ClockTime = "00:00"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the sensors say; None where there is none."""

    battery_pct: float | None = None
    charging: bool | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    under_voltage: bool | None = None
    power_mode: int | None = None
    disk_wear_pct: float | None = None
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
    """Yes, or no and why: all reasons, in words that stay the same while they do."""

    may: bool
    because: str = ""
    hot: bool = False


YES = Answer(True)


def may_train(config: GateConfig, reading: Reading, was_hot: bool = False) -> Answer:
    """Whether training may start or go on; `was_hot`: the last answer was no for heat."""
    limit_c = config.max_temperature_c - (config.cool_down_c if was_hot else 0.0)
    hot = reading.temperature_c is not None and reading.temperature_c > limit_c
    reasons = [f"too hot: above {limit_c:g} °C"] if hot else []
    reasons += [why for no, why in _others(config, reading) if no]
    return Answer(False, "; ".join(reasons), hot) if reasons else YES


def _others(config: GateConfig, reading: Reading) -> list[tuple[bool | None, str]]:
    """What else may forbid, and in which words."""
    battery, wear, free = reading.battery_pct, reading.disk_wear_pct, reading.disk_free_mb
    low = battery is not None and not reading.charging and battery < config.min_battery_pct
    mode, minute = reading.power_mode, reading.minute_of_day
    return [
        (reading.throttled and not config.allow_throttled, "the processor is throttled"),
        (reading.under_voltage and not config.allow_under_voltage, "under-voltage: the power supply is too weak"),
        (low, f"battery below {config.min_battery_pct:g} %"),
        (bool(config.power_modes) and mode is not None and mode not in config.power_modes, f"power mode {mode}"),
        (reading.metered and not config.allow_metered, "the link is metered"),
        (
            free is not None and free < config.min_disk_free_mb,
            f"less than {config.min_disk_free_mb:g} MB free on the disk",
        ),
        (
            wear is not None and wear > config.max_disk_wear_pct,
            f"more than {config.max_disk_wear_pct:g} % of the disk's life used",
        ),
        (
            minute is not None and not _within(minute, config.start, config.end),
            f"trains from {config.start} to {config.end}",
        ),
    ]


def _within(minute: int, start: str, end: str) -> bool:
    """Whether a minute of the day is in [start, end), also over midnight."""
    first, last = (int(t[:2]) * 60 + int(t[3:]) for t in (start, end))
    if first <= last:
        return first == last or first <= minute < last
    return minute >= first or minute < last
