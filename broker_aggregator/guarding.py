"""What a release must show before it is published: `guard` in a plan, and the judgement that it leads to. Pure.

Either the gateway's held-out set says what a candidate is worth, or a sample of devices (the canary) does: each
measures it on its own held-out examples before it trains from it, and says so with its update.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from statistics import median
from typing import Literal

from broker_aggregator.measured import KEPT_VALUES
from fl_protocol.better import best_of
from fl_protocol.bundle import Better
from fl_protocol.errors import ConfigError, ProtocolError
from fl_protocol.messages import Plan
from fl_protocol.parameters import Parameters

SAMPLE = 0.1  # of the fleet, where there is no held-out set and the guard names no canary
MOST_S = 1_000_000


@dataclass(frozen=True)
class Guard:
    """A plan's `guard`, read. Times in seconds, `margin` in the metric's own unit."""

    margin: float  # how much worse than the best of the last a version may be
    against: int = 10  # so many last published versions
    canary: float = 0.0  # the share of the fleet that tries a version first
    reports: int = 3  # so many words of the canary are enough
    canary_s: int = 600  # the longest wait for them
    measure_s: int = 60  # the longest wait for the held-out set's word
    in_doubt: Literal["promote", "withhold"] = "promote"  # where nobody said anything

    def share(self, evaluation: str) -> float:
        """The canary's share of the fleet; without a held-out set there has to be one."""
        return self.canary or (0.0 if evaluation else SAMPLE)


SETTINGS = tuple(field.name for field in fields(Guard))


def read_guard(plan: Plan) -> Guard | None:
    """The plan's guard, None where it has none. Raises `ConfigError` naming setting, value and mend."""
    if plan.guard is None:
        return None
    unknown = sorted(set(plan.guard) - set(SETTINGS))
    if unknown:
        raise ConfigError(f"guard has no setting {unknown[0]!r:.80}", f"settings: {', '.join(SETTINGS)}")
    if "margin" not in plan.guard:
        raise ConfigError(
            "guard.margin is missing", "say how much worse a version may be, in the metric's own unit: margin = 0.02"
        )
    p = Parameters(plan.guard, "guard")
    try:
        guard = Guard(
            margin=p.number("margin", 0.0, 0.0, 999_999),
            against=p.whole("against", 10, 1, KEPT_VALUES),
            canary=p.number("canary", 0.0, 0.0, 0.5),
            reports=p.whole("reports", 3, 1, 10_000),
            canary_s=p.whole("canary_s", 600, 1, MOST_S),
            measure_s=p.whole("measure_s", 60, 1, MOST_S),
            in_doubt="withhold" if p.choice("in_doubt", ("promote", "withhold")) == "withhold" else "promote",
        )
    except ProtocolError as error:
        raise ConfigError(f"guard.{error.message}", "docs/operate.md says what each setting does") from None
    return guard


@dataclass(frozen=True)
class Judgement:
    """Whether a version is good enough, and by which values."""

    good: bool
    why: str


def fall(value: float, before: float, better: Better) -> float:
    """How much worse `value` is than `before`, below 0 if it is better; infinite for what is not a number."""
    worse = before - value if better == "higher" else value - before
    return worse if math.isfinite(value) else math.inf


def judge_value(value: float, recent: Iterable[float], guard: Guard, better: Better, metric: str) -> Judgement:
    """By the held-out set, against the best of the last published versions; `recent` are theirs, oldest first."""
    best = best_of(list(recent)[-guard.against :], better)
    if best is None:
        return Judgement(math.isfinite(value), f"{metric} {value:.4f}, with nothing to compare")
    lost = fall(value, best, better)
    return Judgement(lost <= guard.margin, f"{metric} {value:.4f} after {best:.4f}, margin {guard.margin:g}")


def judge_words(
    words: Mapping[str, float],
    before: Mapping[str, float],
    reference: float | None,
    guard: Guard,
    better: Better,
    metric: str,
) -> Judgement:
    """By the canary's words, device -> value, each against the same device's last word on a published version.

    The median of what the devices lost, so that a minority that lies neither withholds a version nor lets one pass.
    Devices differ more from each other than versions do: unpaired words are compared, with `reference`, only where no
    device has said anything before. `words` has at least one.
    """
    paired = [fall(value, before[device], better) for device, value in sorted(words.items()) if device in before]
    if paired:
        lost, how = median(paired), f"{len(paired)} devices lost {median(paired):.4f} of {metric}"
    elif reference is not None:
        lost = fall(median(words.values()), reference, better)
        how = f"{len(words)} devices say {metric} {median(words.values()):.4f} after {reference:.4f}"
    else:
        return Judgement(True, f"{len(words)} devices, with nothing to compare")
    return Judgement(lost <= guard.margin, f"{how}, margin {guard.margin:g}")


def chosen(
    devices: Iterable[str], task: str, version: int, share: float, waiting: Mapping[str, int] | None = None
) -> tuple[str, ...]:
    """The canary of a version: that share of the devices, one at the least, by a hash so that it moves about.

    Those first of whom the fewest updates wait: one whose next update is put off trains nothing until it is taken.
    """
    present, waiting = list(devices), waiting or {}

    def place(device: str) -> tuple[int, bytes]:
        return waiting.get(device, 0), hashlib.sha256(f"{task}/{version}/{device}".encode()).digest()

    return tuple(sorted(sorted(present, key=place)[: math.ceil(share * len(present))]))
