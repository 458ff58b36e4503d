"""A number out of a payload: plain text (ESPHome), or a field of a JSON object (Zigbee2MQTT). Or the reason why not.

Nothing that a broker can deliver raises anything else than `RefusedError`.
"""

import math
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np

MAX_PAYLOAD = 64 << 10
MAX_NUMBER = 64  # bytes of a plain number
_FLOAT32 = float(np.finfo(np.float32).max)
_WORDS = {"ON": 1.0, "OFF": 0.0}
_MILLISECONDS = 1e11  # numbers above are milliseconds since 1970, not seconds


class Reason(StrEnum):
    """Why a message, or a window, came to nothing; in words for people."""

    TOO_LARGE = "the payload is larger than 64 KiB"
    NOT_JSON = "the payload is no JSON object"
    NO_FIELD = "the JSON object lacks the field"
    NOT_A_NUMBER = "not a number"
    OUT_OF_RANGE = "out of range"
    TOO_OLD = "too old"
    RETAINED = "retained: not of now"
    UNKNOWN_LABEL = "a label that is no class"
    REPLACED = "a newer value came before the other channels' values"
    LATE = "the other channels came too late for it"
    SILENT = "slots in which a channel had no value"
    GAP = "windows with a gap"
    UNLABELED = "windows without a label"
    WAITING = "windows that no longer could wait for a label"


class RefusedError(Exception):
    """A payload that is not used."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def value_at(payload: bytes, field: str) -> Any:
    """What the payload says: text, or what lies at `field` of its JSON object."""
    if len(payload) > MAX_PAYLOAD:
        raise RefusedError(Reason.TOO_LARGE)
    if not field:
        return payload[: MAX_NUMBER + 1].decode("utf-8", "replace").strip()
    try:
        found = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RefusedError(Reason.NOT_JSON) from None
    if not isinstance(found, dict):
        raise RefusedError(Reason.NOT_JSON)
    if field in found:
        return found[field]
    for name in field.split("."):
        if not isinstance(found, dict) or name not in found:
            raise RefusedError(Reason.NO_FIELD)
        found = found[name]
    return found


def number_of(value: Any, least: float | None = None, most: float | None = None) -> float:
    """A finite number within the bounds that a float32 holds; `ON` and true are 1, `OFF` and false 0."""
    try:
        number = _WORDS[value] if isinstance(value, str) and value in _WORDS else _parsed(value)
    except (TypeError, ValueError, OverflowError):
        raise RefusedError(Reason.NOT_A_NUMBER) from None
    if not math.isfinite(number):
        raise RefusedError(Reason.NOT_A_NUMBER)
    if abs(number) > _FLOAT32 or (least is not None and number < least) or (most is not None and number > most):
        raise RefusedError(Reason.OUT_OF_RANGE)
    return number


def label_of(value: Any, classes: tuple[str, ...]) -> float:
    """The place of the value among `classes`; without any it is a number itself."""
    if not classes:
        return number_of(value)
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if text not in classes:
        raise RefusedError(Reason.UNKNOWN_LABEL)
    return float(classes.index(text))


def time_of(value: Any) -> float:
    """Seconds since 1970 of an ISO 8601 time (without a zone: local), or of a number of seconds or milliseconds."""
    try:
        number = _parsed(value)
    except (TypeError, ValueError, OverflowError):
        try:
            return datetime.fromisoformat(value).timestamp()
        except (TypeError, ValueError, OverflowError, OSError):
            raise RefusedError(Reason.TOO_OLD) from None
    return number / 1000 if number > _MILLISECONDS else number


def _parsed(value: Any) -> float:
    """Raises `TypeError`, `ValueError` or `OverflowError`."""
    if isinstance(value, str) and (len(value) > MAX_NUMBER or "_" in value):
        raise ValueError
    return float(value)
