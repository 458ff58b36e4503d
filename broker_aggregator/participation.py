"""`plan.participation`, read once: who trains a version, and how many at a time."""

from dataclasses import dataclass
from typing import Literal

from fl_protocol.errors import ConfigError, ProtocolError
from fl_protocol.messages import Plan
from fl_protocol.parameters import Parameters

By = Literal["balanced", "useful", "fair", "random"]
CHOICES: tuple[By, ...] = ("balanced", "useful", "fair", "random")


@dataclass(frozen=True)
class Open:
    """Whoever is there. The devices pace themselves: each waits for a random part of `spread_s` after a version came,
    and takes part in it with the probability `share`.
    """

    spread_s: float = 0.0
    share: float = 1.0


@dataclass(frozen=True)
class Invited:
    """Whoever holds a slot; times in seconds."""

    cohort: int | None = None  # slots at once, asynchronous; none: twice the buffer
    over: float = 1.3  # slots of a version over its buffer, synchronous
    lease: float = 3.0  # how many times the device's own usual time a slot lasts
    lease_min_s: int = 30
    lease_max_s: int = 3600
    by: By = "balanced"


def participation_of(plan: Plan) -> Open | Invited:
    """What the plan says. Raises `ConfigError` that names setting and value."""
    p = Parameters(plan.participation or {"name": "open"}, "participation")
    made: Open | Invited
    try:
        if p.name == "open":
            made = Open(p.number("spread_s", 0, 0, 86_400), p.number("share", 1, 0.001, 1))
        elif p.name == "invited":
            made = Invited(
                p.whole("cohort", 1, 1, 100_000) if p.has("cohort") else None,
                p.number("over", 1.3, 1, 10),
                p.number("lease", 3, 1, 100),
                p.whole("lease_min_s", 30, 1, 86_400),
                p.whole("lease_max_s", 3600, 1, 604_800),
                p.choice("by", CHOICES),  # type: ignore[arg-type]  # one of them
            )
        else:
            raise ConfigError(f"participation.name = {p.name!r}", "`open` or `invited`")
        p.finish()
    except ProtocolError as error:
        raise ConfigError(f"participation: {error.message}", "docs/protocol.md, section Slots, has every one") from None
    if isinstance(made, Invited) and made.lease_min_s > made.lease_max_s:
        raise ConfigError(
            f"participation.lease_min_s = {made.lease_min_s} is above lease_max_s = {made.lease_max_s}",
            "lower the first, or raise the second",
        )
    return made


def check_participation(plan: Plan) -> None:
    """Refuse what can never work. Raises `ConfigError`."""
    participation_of(plan)
    if plan.tiers is None:
        return
    if plan.mode != "synchronous":
        raise ConfigError(
            f"tiers = {plan.tiers} in {plan.mode} mode", 'set mode = "synchronous": each tier waits for its own devices'
        )
    if plan.tiers > plan.buffer:
        raise ConfigError(
            f"tiers = {plan.tiers} share buffer = {plan.buffer}", "a tier needs one update at least: raise the buffer"
        )
