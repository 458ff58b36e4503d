"""Who is asked next: a score with its reasons, drawn by chance, and by turns now and then. Pure.

score = availability x what is looked for: usefulness as in Oort (Lai et al., OSDI 2021), |B| sqrt(mean loss^2) times
(T / t)^alpha for a device slower than the fleet's median T; staleness debt, the versions since it last counted; and
fairness, how seldom it counted. Chosen in proportion to the score; and every eighth invitation goes to whoever waited
longest for one, so that no score keeps a device out for ever.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from broker_aggregator.participation import By

SLOW = 0.5  # alpha; Oort's 2 would leave the slow with a tenth
FLOOR_EVERY = 8
LEAST = 0.02  # of availability and of every score: never zero
OUTLIER = 0.9  # a usefulness above this quantile of the candidates' counts as that: it is the device's own word


@dataclass(frozen=True)
class Candidate:
    """A device that could be asked. `debt` is in versions; `asked` is the number of its last invitation, -1: none."""

    device: str
    availability: float = 1.0
    debt: int = 0
    usefulness: float | None = None
    seconds: float | None = None
    accepted: int = 0
    asked: int = -1


@dataclass(frozen=True)
class Choice:
    """Whom to ask, and why, for people."""

    device: str
    why: str


@dataclass(frozen=True)
class Score:
    """Each part in 0..1."""

    availability: float
    usefulness: float
    debt: float
    fairness: float

    def by(self, by: By) -> float:
        """The score, above 0."""
        wanted = {
            "balanced": (self.usefulness + self.debt + self.fairness) / 3,
            "useful": self.usefulness,
            "fair": self.fairness,
            "random": 1.0,
        }[by]
        return max(LEAST, wanted) * (1.0 if by == "random" else max(LEAST, self.availability))


def scores(candidates: Sequence[Candidate]) -> list[Score]:
    """Each candidate's parts, beside the others; a device of which nothing is known is as useful as the best."""
    known = [c.usefulness for c in candidates if c.usefulness is not None]
    most = float(np.quantile(known, OUTLIER)) if known else 0.0
    times = [c.seconds for c in candidates if c.seconds is not None]
    usual = float(np.median(times)) if times else 0.0
    debt = max((c.debt for c in candidates), default=0)
    least = min((c.accepted for c in candidates), default=0)
    return [
        Score(
            c.availability,
            _usefulness(c, most, usual),
            c.debt / debt if debt > 0 else 1.0,
            (1 + least) / (1 + c.accepted),
        )
        for c in candidates
    ]


def _usefulness(candidate: Candidate, most: float, usual: float) -> float:
    told = candidate.usefulness
    share = 1.0 if told is None or most <= 0 else min(1.0, told / most)
    slow = candidate.seconds is not None and candidate.seconds > usual > 0
    return share * (usual / candidate.seconds) ** SLOW if slow and candidate.seconds else share


def choose(candidates: Sequence[Candidate], by: By, how_many: int, number: int, rng: Generator) -> list[Choice]:
    """The next `how_many` at most, the first of them being invitation `number`; no device twice.

    Drawn in proportion to the score without replacement (Efraimidis and Spirakis 2006); the order of `candidates` is
    of no consequence.
    """
    left = sorted(candidates, key=lambda c: c.device)
    parts = dict(zip((c.device for c in left), scores(left), strict=True))
    draws = rng.random(len(left))
    keys = {c.device: math.log(1 - u) / parts[c.device].by(by) for c, u in zip(left, draws, strict=True)}
    by_chance = sorted(left, key=lambda c: (-keys[c.device], c.device))
    by_turns = sorted(left, key=lambda c: (c.asked, c.device))
    chosen: dict[str, Choice] = {}
    for n in range(number, number + min(how_many, len(left))):
        its_turn = n % FLOOR_EVERY == FLOOR_EVERY - 1
        queue = by_turns if its_turn else by_chance
        candidate = next(c for c in queue if c.device not in chosen)
        why = _turn(candidate, n) if its_turn else _why(candidate, parts[candidate.device], by)
        chosen[candidate.device] = Choice(candidate.device, why)
    return list(chosen.values())


def _turn(candidate: Candidate, number: int) -> str:
    since = "never asked" if candidate.asked < 0 else f"not asked for {number - candidate.asked} invitations"
    return f"its turn: {since}"


def _why(candidate: Candidate, score: Score, by: By) -> str:
    if by == "random":
        return "by chance"
    pace = "" if candidate.seconds is None else f", takes {candidate.seconds:.0f} s"
    return (
        f"{by} {score.by(by):.2f}: availability {score.availability:.2f}, usefulness {score.usefulness:.2f},"
        f" counted {candidate.accepted} times, last {candidate.debt} versions ago{pace}"
    )
