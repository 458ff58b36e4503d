"""What an operator may ask about roll-outs of the agent; commands as in `operations.py`."""

import re
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING

from broker_aggregator.events import Effect
from broker_aggregator.rollout import KeptRelease
from fl_protocol.errors import ConfigError

if TYPE_CHECKING:
    from broker_aggregator.coordinator import Coordinator

ROLLOUT_START = "rollout-start"
_ID = re.compile(r"[a-z0-9-]{1,32}")  # of which commands are named, with a number behind it
MAX_NAMED = 150  # devices in one command, which has 12 KiB
MAX_PER_HOUR = 360_000
MAX_ROLLOUT_DEADLINE_S = 30 * 86400


def rollout_start(
    at: "Coordinator", arguments: Mapping[str, object], release: KeptRelease | None, now_ms: int
) -> Generator[Effect, None, str]:
    """Begin a roll-out of the release that the command names. Says to how many it goes. Raises `ConfigError`."""
    if release is None:
        raise ConfigError(
            "the gateway has no such release, or it is not signed with the fleet's key", "`release list` shows them"
        )
    id_, per_hour, deadline_s = _id(arguments), arguments.get("per_hour"), arguments.get("deadline_s")
    stop_at, groups, devices = arguments.get("stop_at"), arguments.get("groups"), arguments.get("devices")
    if not isinstance(per_hour, int) or not 0 <= per_hour <= MAX_PER_HOUR:
        raise ConfigError(f"per_hour = {per_hour!r:.40}", f"1 to {MAX_PER_HOUR} devices; 0: as many as there are")
    if not isinstance(deadline_s, int) or not 60 <= deadline_s <= MAX_ROLLOUT_DEADLINE_S:
        raise ConfigError(
            f"deadline_s = {deadline_s!r:.40}", f"a device is given 60 to {MAX_ROLLOUT_DEADLINE_S} seconds"
        )
    if not isinstance(stop_at, str) or not _is_per_cent(stop_at):
        raise ConfigError(f"stop_at = {stop_at!r:.40}", "per cent of a wave that may fail, from 0 and below 100")
    if not isinstance(groups, list):
        raise ConfigError("`groups` is not a list", "such as 1,10%,100%")
    if devices is not None and not (isinstance(devices, list) and all(isinstance(d, str) for d in devices)):
        raise ConfigError("`devices` is not a list of ids", "leave it out for all devices that the release fits")
    yield from at.rolling.start(at, id_, release, devices, groups, per_hour, stop_at, deadline_s, now_ms)
    rollout, attempts = at.rolling.rollouts[id_], at.rolling.attempts[id_]
    left = "".join(f"; {number} left out: {why}" for why, number in sorted(rollout.left_out.items()))
    return f"release {release.number} ({release.version}) to {len(attempts)} devices in {rollout.waves} waves{left}"[
        :400
    ]


def rollout_pause(at: "Coordinator", arguments: Mapping[str, object], _: int) -> Iterator[Effect]:
    """Ask no more devices, until `rollout-resume`."""
    yield from at.rolling.pause(_id(arguments))


def rollout_resume(at: "Coordinator", arguments: Mapping[str, object], _: int) -> Iterator[Effect]:
    """Go on."""
    yield from at.rolling.resume(_id(arguments))


def rollout_stop(at: "Coordinator", arguments: Mapping[str, object], now_ms: int) -> Iterator[Effect]:
    """Ask no more devices, for good."""
    yield from at.rolling.stop(at, _id(arguments), now_ms)


def _id(arguments: Mapping[str, object]) -> str:
    value = arguments.get("rollout")
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ConfigError(f"rollout = {value!r:.40}", "its id is 1 to 32 of a-z, 0-9 and -")
    return value


def _is_per_cent(text: str) -> bool:
    try:
        return 0 <= float(text) < 100
    except ValueError:
        return False
