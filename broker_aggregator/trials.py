"""A candidate's way to the fleet: measured on the held-out set, tried by the canary, released or withheld. Sans-I/O.

A task has one trial at the most, and while it lasts no other version is made: its buffer fills on. A candidate that is
only being measured is nowhere but in memory; after a crash its updates wait in the buffer as before, and it is made
again. One that the canary tries is durable, with what it used. A version that is withheld keeps its number, and the
parameters before it are published again under the next one, so that devices train them once more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from broker_aggregator.events import (
    CommitRelease,
    Effect,
    Evaluate,
    Note,
    Promote,
    Quarantine,
    Release,
    SaveEvaluation,
    Withhold,
)
from broker_aggregator.guarding import Judgement, chosen, judge_value, judge_words, read_guard
from broker_aggregator.releasing import same_again
from fl_protocol.better import best_of
from fl_protocol.messages import Update

if TYPE_CHECKING:
    from broker_aggregator.restoring import KeptTask
    from broker_aggregator.task import Task

IN_A_ROW = 3  # withheld versions after which somebody should look


@dataclass
class Trial:
    """A version that has yet to show what it is worth."""

    release: Release
    since: float  # monotonic seconds: when it was handed to the held-out set, or to the canary
    with_canary: bool = False  # written, and announced to `devices`
    value: float | None = None  # on the held-out set
    loss: float | None = None
    devices: tuple[str, ...] = ()  # of the canary
    words: dict[str, float] = field(default_factory=dict)  # device -> what it measured
    heard: set[str] = field(default_factory=set)  # of the canary, whose update came, with a word or without
    tier: int = 0  # whose cohort made it


def propose(task: Task, release: Release, now: float) -> Iterator[Effect]:
    """Try a version that the task's buffer came to, before anybody sees it."""
    task.trial = Trial(release, now)
    if not task.evaluation:
        yield from _to_canary(task, task.trial, now)
        return
    asked = [release] if task.measured.recent else [task.release, release]  # what it began with was never measured
    for each in asked:
        yield Evaluate(each.task, each.version, task.plan.bundle_sha256, each.vector, task.evaluation)


def measured(task: Task, trial: Trial, loss: float, value: float, now: float) -> Iterator[Effect]:
    """The held-out set's word on the candidate; it may come late, when the canary has it already."""
    trial.loss, trial.value = loss, value
    if trial.with_canary:
        yield SaveEvaluation(task.plan.task, trial.release.version, loss, value)
    guard = read_guard(task.plan)
    if guard is not None:
        judgement = judge_value(value, task.measured.recent, guard, task.measured.better, task.metric)
        if not judgement.good:
            yield from withhold(task, judgement.why, now)
            return
    if not trial.with_canary:
        yield from _go_on(task, trial, now)


def hear(task: Task, update: Update) -> None:
    """A device's word on the version that it trained from."""
    value = update.metrics.get("value", math.nan)
    trial, words = task.trial, task.words
    if trial is not None and update.base_version == trial.release.version:
        if trial.devices and update.device not in trial.devices:
            return
        trial.heard.add(update.device)
        words = trial.words
    if math.isfinite(value):
        words[update.device] = value


def choose(task: Task, present: Iterable[str]) -> None:
    """Who tries the version, if nobody has been chosen yet; after a restart, those who have spoken stay."""
    trial = task.trial
    if trial is None or not trial.with_canary or trial.devices:
        return  # asked after every event: the plan is read only where it matters
    guard = read_guard(task.plan)
    if guard is not None:
        of_others = (b.update for b in task.buffer if b.update.base_version != trial.release.version)
        waiting = Counter(update.device for update in of_others)
        found = chosen(present, task.plan.task, trial.release.version, guard.share(task.evaluation), waiting)
        trial.devices = tuple(sorted({*found, *trial.words}))


def look(task: Task, trial: Trial, now: float) -> Iterator[Effect]:
    """Go on where enough has been said, or the wait is over."""
    guard = read_guard(task.plan)
    if guard is None:  # the plan has changed
        yield from _release(task, trial, now)
        return
    waited = now - trial.since
    if not trial.with_canary:
        if waited >= guard.measure_s:
            yield Note("warning", f"{task.plan.task}: version {trial.release.version} was not measured in time")
            yield from _in_doubt(task, trial, guard.in_doubt == "promote", now)
        return
    enough = len(trial.words) >= min(guard.reports, len(trial.devices) or guard.reports)
    nobody_left = bool(trial.devices) and trial.heard.issuperset(trial.devices)
    if not enough and not nobody_left and waited < guard.canary_s:
        return
    if not trial.words:
        yield Note("warning", f"{task.plan.task}: nobody spoke of version {trial.release.version} in {waited:.0f} s")
        yield from _in_doubt(task, trial, guard.in_doubt == "promote", now)
        return
    reference = _reported(task, guard.against)
    judgement = judge_words(trial.words, task.words, reference, guard, task.measured.better, task.metric)
    yield from _judged(task, trial, judgement, now)


def withhold(task: Task, why: str, now: float, *, renew: bool = True) -> Iterator[Effect]:
    """The trial's version is none for the fleet; what it used, and what was trained from it, is quarantined."""
    trial, task.trial = task.trial, None
    if trial is None:
        return
    release, name = trial.release, task.plan.task
    why = f"version {release.version} withheld: {why}"[:400]
    if trial.with_canary:
        yield Withhold(name, release.version, why)
    else:
        yield CommitRelease(release, "withheld", why)
        if trial.value is not None and trial.loss is not None:
            yield SaveEvaluation(name, release.version, trial.loss, trial.value)
    task.withheld.append(release.version)
    task.reports.pop(release.version, None)
    of_it = [b for b in task.buffer if b.update.base_version == release.version]
    if of_it:
        task.buffer = [b for b in task.buffer if b.update.base_version != release.version]
        yield Quarantine(tuple(b.name for b in of_it), f"trained from version {release.version}, which was withheld")
    task.refused_lines.append(replace(task.line(release), value=trial.value, loss=trial.loss, withheld=True))
    yield Note("error", f"{name}: {why}; quarantined {', '.join(device for device, _, _ in release.used)}")
    if renew:
        again = same_again(task.release, task.plan, task.running_s(now))
        yield from task.commit(replace(again, version=release.version + 1), now)
        task.gathering.released(trial.tier, task.release.version, now)
    task.why = why
    if task.withheld_in_a_row >= IN_A_ROW:
        task.why = (
            f"{task.withheld_in_a_row} versions in a row withheld, last: {why[:200]}; see `broker-aggregator quarantine"
            f" {name}`, then `task rollback`, or widen guard.margin"
        )
        yield Note("warning", f"{name}: {task.why}")


def restore_trial(task: Task, kept: KeptTask, now: float) -> None:
    """What was withheld, and the canary's version with the words that came with updates which still wait."""
    task.withheld, task.last_made = list(kept.withheld), kept.last_made
    if kept.canary is not None:
        known = kept.canary
        task.trial = Trial(known.release, now, with_canary=True, value=known.value, loss=known.loss)
    tried = kept.canary.used if kept.canary else ()
    for buffered in (*tried, *kept.buffered):
        hear(task, buffered.update)
        task.hear(buffered.update)


def _in_doubt(task: Task, trial: Trial, promote: bool, now: float) -> Iterator[Effect]:
    if not promote:
        yield from withhold(task, "nothing is known of it", now)
    elif trial.with_canary:
        yield from _release(task, trial, now)
    else:
        yield from _go_on(task, trial, now)


def _judged(task: Task, trial: Trial, judgement: Judgement, now: float) -> Iterator[Effect]:
    if not judgement.good:
        yield from withhold(task, judgement.why, now)
        return
    yield Note("info", f"{task.plan.task}: version {trial.release.version} is good: {judgement.why}")
    yield from _release(task, trial, now)


def _go_on(task: Task, trial: Trial, now: float) -> Iterator[Effect]:
    guard = read_guard(task.plan)
    if guard is not None and guard.share(task.evaluation):
        yield from _to_canary(task, trial, now)
    else:
        yield from _release(task, trial, now)


def _to_canary(task: Task, trial: Trial, now: float) -> Iterator[Effect]:
    trial.with_canary, trial.since = True, now
    yield CommitRelease(trial.release, "canary")
    if trial.value is not None and trial.loss is not None:
        yield SaveEvaluation(task.plan.task, trial.release.version, trial.loss, trial.value)


def _release(task: Task, trial: Trial, now: float) -> Iterator[Effect]:
    """The version is the fleet's from now on."""
    task.trial = None
    task.words |= trial.words
    promoted = Promote(task.plan.task, trial.release.version) if trial.with_canary else None
    yield from task.made_one(trial.release, promoted, now)
    task.gathering.released(trial.tier, trial.release.version, now)
    if trial.value is None or trial.loss is None:
        yield from task.measure(now)
    else:
        yield from task.take_value(trial.release.version, trial.loss, trial.value, now)
    yield from task.stop_at_versions(now)


def _reported(task: Task, against: int) -> float | None:
    """The best of the last published versions, by the median of the words on each: one that lies decides nothing."""
    versions = [v for v in sorted(task.reports) if task.trial is None or v != task.trial.release.version]
    return best_of([task.middle_of(v) for v in versions][-against:], task.measured.better)
