"""A store that comes from a backup, made fit to go on: past everything that its fleet may have heard since.

Between the backup and its end the lost gateway signed messages, made versions, and let devices in. A device keeps the
highest counter of each topic and the version that it trained last, on its disk: what falls behind those is
E_DOWNGRADE, or worse, another version under a number that the device holds already. Nobody knows how far it went, so
that everything that only grows is moved on by more than it can have grown:

- counters of signed messages to the second of the restore, in steps of 2^20: less was signed on any topic since;
- versions by 100 for each second that has passed since, 1,000 at least, and plan revisions by 1,000: the newest kept
  parameters are the first version of a new life of the model (`plan.origin`), and what was trained from any earlier
  one is stale;
- tickets that were out are void, unless told: one may have been used meanwhile, and a copy of it would serve again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import get_args

from broker_aggregator.events import Durable, Effect, RemoveClaim, SaveCounter, SaveEvaluation
from broker_aggregator.operations import LAST_VERSION, SIGNED
from broker_aggregator.store import SqliteStore
from broker_aggregator.task import Task
from broker_aggregator.trials import withhold

STEP_BITS = 20  # of counters a second
VERSIONS_PER_S, MIN_VERSIONS = 100, 1000  # 25 a second were seen, of a tiny model and a buffer of one
REVISIONS = 1000  # of plans: an operator makes them by hand
WHY = "the gateway was restored from a backup"
_DURABLE = get_args(Durable)


@dataclass(frozen=True)
class Advanced:
    """What was moved on: each task's new version, the tickets that are void now, the lowest counter from now on."""

    versions: dict[str, int]
    void: list[str]
    counter: int


def advance(store: SqliteStore, made_ms: int, now_ms: int, *, keep_tickets: bool = False) -> Advanced:
    """Move a restored store on, in one transaction; `made_ms` is when its backup was made. Raises `sqlite3.Error`."""
    loaded = store.load(0.0)
    by = max(MIN_VERSIONS, VERSIONS_PER_S * max(0, now_ms - made_ms) // 1000)
    signed = max([0, *(value for name, value in loaded.counters.items() if name.startswith(SIGNED))])
    counter = max((now_ms // 1000) << STEP_BITS, signed + (1 << STEP_BITS))
    ended = {name: value for name, value in loaded.counters.items() if name.startswith(LAST_VERSION)}
    newest = max([0, *ended.values(), *(task.next_version for task in loaded.tasks.values())])
    with store.transaction():
        store.apply(SaveCounter(SIGNED, counter), now_ms)
        for name, value in {**ended, LAST_VERSION: newest}.items():
            store.apply(SaveCounter(name, value + by), now_ms)
        store.apply(SaveCounter("boot", loaded.counters.get("boot", 0) + by), now_ms)
        for name, task in loaded.tasks.items():
            newest_kept = (name, task.release.version)
            row = store.query("SELECT loss, value FROM release WHERE task = ? AND version = ?", *newest_kept)
            _apply(store, _new_life(task, by), now_ms)
            if row and row[0]["value"] is not None:
                measured = SaveEvaluation(name, task.release.version, row[0]["loss"], row[0]["value"])
                store.apply(measured, now_ms)
        void = [] if keep_tickets else sorted(loaded.claims)
        for claim in void:
            store.apply(RemoveClaim(claim), now_ms)
    return Advanced({name: task.release.version for name, task in loaded.tasks.items()}, void, counter)


def _new_life(task: Task, by: int) -> Iterator[Effect]:
    """The newest parameters again, as a version that nobody has had."""
    yield from withhold(task, WHY, 0.0, renew=False)
    yield from task.quarantine(WHY)
    task.plan = replace(task.plan, revision=task.plan.revision + REVISIONS, origin=task.next_version + by)
    task.why = WHY
    yield task.saved(0.0)
    yield from task.roll_back(task.release, 0.0)


def _apply(store: SqliteStore, effects: Iterable[Effect], now_ms: int) -> None:
    for effect in effects:
        if isinstance(effect, _DURABLE):
            store.apply(effect, now_ms)
