"""A roll-out of a release of the agent, as the store keeps it; and how its devices are cut into waves. Pure."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from broker_aggregator.fleet import Device
from fl_protocol.errors import ConfigError

RolloutState = Literal["running", "paused", "stopped", "finished"]
AttemptState = Literal["waiting", "asked", "executing", "successful", "failed", "skipped"]
OVER = frozenset({"successful", "failed", "skipped"})
MAX_WAVES = 20
_GROUP = re.compile(r"([0-9]{1,7})(\.[0-9]{1,3})?(%?)")


@dataclass(frozen=True)
class KeptRelease:
    """A release of the agent on the gateway's shelf; `sha256` is the file's, by which devices fetch it."""

    sha256: str
    size: int
    number: int
    version: str
    arch: str
    python: str


@dataclass(frozen=True)
class Rollout:
    """A release on its way to devices, wave by wave; `wave` is the one under way, from 0."""

    id: str
    release: KeptRelease
    waves: int
    per_hour: int  # commands; 0: as many as there are
    stop_at: str  # per cent of a wave that may fail, as text
    deadline_s: int  # that a device is given from its command on
    started_ms: int
    state: RolloutState = "running"
    wave: int = 0
    why: str = ""
    ended_ms: int = 0
    left_out: dict[str, int] = field(default_factory=dict)  # devices of the fleet that it is not for, by reason

    @property
    def open(self) -> bool:
        """Whether more devices may be asked."""
        return self.state in ("running", "paused")


@dataclass(frozen=True)
class Attempt:
    """One device's part in a roll-out. `skipped`: nothing was learnt of the release there, and why."""

    rollout: str
    device: str
    wave: int
    place: int  # in the order in which they are asked
    state: AttemptState = "waiting"
    why: str = ""
    asked_ms: int = 0
    ended_ms: int = 0

    @property
    def command(self) -> str:
        """The id of the command that it is asked by: another one for each roll-out and device."""
        return f"{self.rollout}-{self.place}"

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.state in OVER


def read_groups(groups: Sequence[object], num_devices: int) -> list[int]:
    """How many devices have been asked when each wave ends: `1`, `10%`, `100%` of all; a part of one is a whole one.

    Waves that would add nobody are left out. Raises `ConfigError` for what is no such list, or does not grow.
    """
    ends: list[int] = []
    hint = "numbers of devices, or per cent of all, that grow: 1,10%,100%"
    if not 1 <= len(groups) <= MAX_WAVES:
        raise ConfigError(f"groups = {len(groups)} of them", f"1 to {MAX_WAVES}: {hint}")
    before, values = 0, {"": 0.0, "%": 0.0}
    for group in groups:
        match = _GROUP.fullmatch(group) if isinstance(group, str) else None
        if match is None or (match[2] and not match[3]):
            raise ConfigError(f"groups: {group!r:.40}", hint)
        value = float(match[1] + (match[2] or ""))
        if match[3] and not 0 < value <= 100:
            raise ConfigError(f"groups: {group:.40}", "above 0 % and up to 100 %")
        end = min(num_devices, math.ceil(value * num_devices / 100 - 1e-9) if match[3] else int(value))
        if value <= values[match[3]]:
            raise ConfigError(f"groups: {group:.40} is not above {values[match[3]]:g}{match[3]}", hint)
        values[match[3]] = value
        if end > before:
            ends.append(end)
            before = end
    return ends


def wave_of(ends: Sequence[int], place: int) -> int:
    """The wave that has the device at that place; `len(ends)`: none."""
    return sum(place >= end for end in ends)


def in_order(devices: Sequence[Device], rollout: str) -> list[str]:
    """Those that are here first, and among them no favourites: another order for each roll-out, the same each time."""

    def key(device: Device) -> tuple[bool, str]:
        return not device.active, hashlib.sha256(f"{rollout}|{device.id}".encode()).hexdigest()

    return [device.id for device in sorted(devices, key=key)]


def unfit(device: Device, release: KeptRelease) -> str:
    """Why a device is not for a release; empty where it is."""
    info = device.info
    if device.revoked:
        return "revoked"
    if info is None:
        return "never seen"
    if info.release is None:
        return "takes no release from afar"
    if info.arch != release.arch or not info.python.startswith(f"{release.python}."):
        return f"not {release.arch} with Python {release.python}"
    if info.release > release.number:
        return "has a newer release"
    return ""


def count(attempts: Mapping[str, Attempt], wave: int | None = None) -> dict[str, int]:
    """How many attempts are in each state, of a wave or of all."""
    states = [a.state for a in attempts.values() if wave in (None, a.wave)]
    return {state: states.count(state) for state in sorted(set(states))}
