"""What of a device's configuration may be set from afar, in `Desired.configuration`: these keys, and no other.

Values travel as text, since what is signed holds no floats. The gateway refuses what cannot be before it is sent; the
device, whose software may be older or newer, reads it again by its own table.

Not in the list is what would make the operator's key the key to a shell or to the examples (`budget.metered` names a
program, `inference.tell_numbers` and `data` say what may leave), and what a mistake in would cut the device off
(`broker`, `gateway`, `enroll`).
"""

import difflib
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from fl_protocol.errors import ConfigError

Value = float | bool | str | tuple[int, ...]
_NUMBER = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,12})?")
_TIME = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_INTEGERS = re.compile(r"(-?[0-9]{1,6}(, ?-?[0-9]{1,6}){0,15})?")


class Number(NamedTuple):
    """From `least` to `most`."""

    least: float = 0.0
    most: float = 1e9

    def read(self, text: str) -> Value | None:
        """None for what is no such number."""
        value = float(text) if _NUMBER.fullmatch(text) else math.nan
        return value if self.least <= value <= self.most else None

    def __str__(self) -> str:
        return f"a number from {self.least:g} to {self.most:g}"


class Choice(NamedTuple):
    """One of some words."""

    words: tuple[str, ...]

    def read(self, text: str) -> Value | None:
        """None for another word."""
        return text if text in self.words else None

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}"


class Flag(NamedTuple):
    """Yes or no."""

    def read(self, text: str) -> Value | None:
        """None for anything but true and false."""
        return {"true": True, "false": False}.get(text)

    def __str__(self) -> str:
        return "true or false"


class ClockTime(NamedTuple):
    """An hour and a minute of the device's day."""

    def read(self, text: str) -> Value | None:
        """None for what is no time."""
        return text if _TIME.fullmatch(text) else None

    def __str__(self) -> str:
        return "a local time from 00:00 to 23:59"


class Integers(NamedTuple):
    """A list of whole numbers; an empty text is an empty list."""

    def read(self, text: str) -> Value | None:
        """None for what is no such list."""
        return tuple(int(word) for word in text.split(",") if word.strip()) if _INTEGERS.fullmatch(text) else None

    def __str__(self) -> str:
        return "whole numbers with commas between them"


class Digest(NamedTuple):
    """A SHA-256."""

    def read(self, text: str) -> Value | None:
        """None for what is none."""
        return text if _DIGEST.fullmatch(text) else None

    def __str__(self) -> str:
        return "a SHA-256: 64 hexadecimal digits, small letters"


DAY_S = 86400.0
PERCENT = Number(0, 100)
MEGABYTES = Number(0, 1e9)
Reader = Number | Choice | Flag | ClockTime | Integers | Digest
ADJUSTABLE: Mapping[str, Reader] = {
    "gate.min_battery_pct": PERCENT,
    "gate.max_temperature_c": Number(-40, 125),
    "gate.cool_down_c": Number(0, 100),
    "gate.allow_throttled": Flag(),
    "gate.allow_under_voltage": Flag(),
    "gate.power_modes": Integers(),
    "gate.allow_metered": Flag(),
    "gate.min_disk_free_mb": MEGABYTES,
    "gate.max_disk_wear_pct": PERCENT,
    "gate.start": ClockTime(),
    "gate.end": ClockTime(),
    "budget.daily_mb": MEGABYTES,
    "budget.metered_daily_mb": MEGABYTES,
    "budget.metered_object_mb": MEGABYTES,
    "budget.up_kbit_s": Number(0, 1e9),
    "inference.interval_s": Number(0, DAY_S),
    "health.measure_s": Number(0.1, 3600),
    "health.publish_s": Number(1, DAY_S),
    "health.state_s": Number(0, DAY_S),
    "log.level": Choice(("debug", "info", "warning", "error")),
}


def read_configuration(configuration: Mapping[str, str]) -> dict[str, Value]:
    """The values that the texts mean. Raises `ConfigError` naming key, value and what it may be."""
    return {key: read_value(key, text) for key, text in configuration.items()}


def read_value(key: str, text: str) -> Value:
    """One of them. Raises `ConfigError`."""
    reader = ADJUSTABLE.get(key)
    if reader is None:
        near = difflib.get_close_matches(key, ADJUSTABLE, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"keys: {', '.join(ADJUSTABLE)}"
        raise ConfigError(f"`{key:.80}` cannot be set from afar", hint[:400])
    value = reader.read(text)
    if value is None:
        raise ConfigError(f"{key} = {text!r:.80}", f"it is {reader}")
    return value
