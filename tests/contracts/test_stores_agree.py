"""SQLite's store and the simulator's model of it, side by side: whatever is written, they say the same."""

import math
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.simulator.store_model import MemoryStore
from broker_aggregator.events import (
    CommitRelease,
    Durable,
    Promote,
    Quarantine,
    RecordUpdate,
    RecordVerdict,
    Release,
    RemoveCommand,
    RemoveRollout,
    RemoveTask,
    SaveAttempt,
    SaveCommand,
    SaveConfiguration,
    SaveCounter,
    SaveDevice,
    SaveEvaluation,
    SaveRollout,
    SaveState,
    SaveTask,
    Withhold,
)
from broker_aggregator.fleet import CommandRecord, Configuration
from broker_aggregator.releasing import digest
from broker_aggregator.rollout import Attempt, KeptRelease, Rollout
from broker_aggregator.storage import Store
from broker_aggregator.store import SqliteStore
from fl_protocol.errors import ConfigError
from fl_protocol.messages import DeviceInfo, DeviceState, Plan, Reported, Result
from fl_protocol.tensors import ModelLayout, TensorEntry
from tests.support.disks import rows
from tests.support.fleet import LAYOUT, Gateway, make_update
from tests.support.plain import plain

DEVICES, TASKS = ("d0", "d1", "d2"), ("a", "b")
KEPT = 2  # releases
PLAN = Gateway().start().task.plan
OTHER = ModelLayout((TensorEntry("v", (5,), "parameter"),))
FIRST = np.zeros(LAYOUT.size, np.float32)
BEGINNING: list[Durable] = [
    *(SaveDevice(device, "0" * 64) for device in DEVICES),
    *(SaveTask(replace(PLAN, task=task), LAYOUT, "accuracy") for task in TASKS),
    *(CommitRelease(Release(task, 0, 1, LAYOUT.fingerprint, FIRST, digest(FIRST), share=0.0)) for task in TASKS),
]


numbers = st.integers(0, 3)
reals = st.sampled_from([0.0, 0.25, 1.0, 2.5])
devices, tasks = st.sampled_from(DEVICES), st.sampled_from(TASKS)
names = st.tuples(devices, st.just("0" * 16), st.integers(1, 6))


def verdict(name: tuple[str, str, int], task: str, word: str) -> Result:
    """What an update was told."""
    return Result(task=task, incarnation=name[1], seq=name[2], verdict=word, why="because")  # type: ignore[arg-type]


@st.composite
def records(draw: st.DrawFn) -> RecordUpdate:
    name, task = draw(names), draw(tasks)
    update = make_update(name[0], name[2], draw(numbers), [0.5, 1, draw(reals)], task=task)
    return RecordUpdate(update, verdict(name, task, "accepted"), draw(numbers), draw(reals), draw(reals))


@st.composite
def refusals(draw: st.DrawFn) -> RecordVerdict:
    name = draw(names)
    word = draw(st.sampled_from(["stale", "rejected"]))
    return RecordVerdict(name[0], verdict(name, draw(tasks), word), draw(numbers), draw(numbers))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    buffer = draw(st.integers(1, 9))
    return replace(PLAN, task=draw(tasks), revision=draw(numbers), origin=draw(numbers), buffer=buffer)


def others() -> st.SearchStrategy[Durable]:
    """Effects that need not fit to what is there."""
    key = st.sampled_from(["0" * 64, "1" * 64])
    states = st.one_of(
        st.builds(DeviceState, state=st.sampled_from(["ready", "lost"]), boot=numbers, bseq=numbers),
        st.builds(Reported, revision=numbers, why=st.sampled_from(["", "no"])),
        st.builds(DeviceInfo, software=st.just("x/1"), public_key=key, incarnation=st.just("0" * 16)),
    )
    counters = st.sampled_from(["boot", "versions/a"])
    commands = st.builds(
        CommandRecord,
        id=st.sampled_from(["c1", "c2"]),
        device=devices,
        name=st.just("pause"),
        arguments=st.just({"minutes": "3"}),
        asked_ms=numbers,
        deadline_ms=numbers,
        status=st.sampled_from(["asked", "executing", "successful"]),
        lines=st.sampled_from([None, ["a line"]]),
        health=st.sampled_from([None, {"memory_mb": 1.5}]),
    )
    rollouts = st.builds(
        Rollout,
        st.sampled_from(["r1", "r2"]),
        st.builds(KeptRelease, st.just("0" * 64), numbers, numbers, st.just("2"), st.just("arm64"), st.just("3.13")),
        numbers,
        numbers,
        st.sampled_from(["10", "2.5"]),
        numbers,
        numbers,
        state=st.sampled_from(["running", "stopped"]),
        wave=numbers,
        left_out=st.sampled_from([{}, {"never seen": 3}]),
    )
    attempts = st.builds(
        Attempt,
        st.sampled_from(["r1", "r2"]),
        devices,
        numbers,
        numbers,
        st.sampled_from(["waiting", "asked", "failed"]),
        st.sampled_from(["", "rolled back"]),
        numbers,
    )
    return st.one_of(
        st.builds(SaveRollout, rollouts),
        st.builds(SaveAttempt, attempts),
        st.builds(RemoveRollout, st.sampled_from(["r1", "r2"])),
        st.builds(
            SaveTask,
            plans(),
            st.sampled_from([LAYOUT, OTHER]),
            st.sampled_from(["accuracy", "loss"]),
            st.just(""),
            reals,
        ),
        st.builds(
            SaveEvaluation, tasks, st.integers(0, 8), st.sampled_from([0.5, math.nan]), reals | st.just(math.nan)
        ),
        st.builds(RemoveTask, tasks),
        st.builds(SaveDevice, devices, key, st.booleans()),
        st.builds(SaveState, devices, states),
        st.builds(SaveCounter, counters, numbers),
        st.builds(SaveCommand, commands),
        st.builds(RemoveCommand, st.sampled_from(["c1", "c2"])),
        st.builds(
            SaveConfiguration,
            st.builds(Configuration, devices | st.just("*"), numbers, st.just({"log.level": "debug"})),
        ),
    )


def draw_disposal(data: st.DataObject, store: MemoryStore, before: list[Durable]) -> Durable:
    """A release or a quarantine of what waits in the task's buffer after the effects before it; or of what does not."""
    task = data.draw(tasks)
    waiting = [row[:3] for row in store.rows() if row.disposal == "buffered" and row.task == task]
    fresh = [e.update for e in before if isinstance(e, RecordUpdate) and e.update.task == task]
    waiting += [(update.device, update.incarnation, update.seq) for update in fresh]
    if data.draw(st.integers(0, 9)) == 0:
        waiting.append(("nobody", "0" * 16, 1))
    used = tuple(data.draw(st.lists(st.sampled_from(waiting), max_size=3, unique=True))) if waiting else ()
    if data.draw(st.integers(0, 4)) == 0:
        return Quarantine(used, "not finite")
    tried = [v for v, row in store._of(task).items() if row.state == "canary"]  # judged before another version is made
    made = (e for e in before if isinstance(e, CommitRelease) and e.release.task == task)
    tried += [e.release.version for e in made if e.state == "canary"]
    if tried or data.draw(st.integers(0, 9)) == 0:
        judged = data.draw(st.sampled_from(tried or [0, 1, 2, 3]))
        return Promote(task, judged) if data.draw(st.booleans()) else Withhold(task, judged, "worse")
    version = max(store._of(task), default=-1) + data.draw(st.sampled_from([1, 1, 1, 1, 2, 0]))
    vector = np.full(LAYOUT.size, version + data.draw(reals), np.float32)
    release = Release(
        task=task,
        version=version,
        plan_revision=data.draw(numbers),
        fingerprint=LAYOUT.fingerprint,
        vector=vector,
        sha256=digest(vector),
        used=used,
        staleness=tuple(range(len(used))),
        share=data.draw(st.sampled_from([0.0, 0.5])),
        rule={"variance": vector * 2},
        optimizer={"velocity": vector * 3},
        num_examples=7,
        num_bytes=8,
        step_norm=0.5,
        elapsed_s=data.draw(reals),
    )
    state = data.draw(st.sampled_from(["released", "released", "canary", "withheld"]))
    return CommitRelease(release, state, "worse" if state == "withheld" else "")  # type: ignore[arg-type]  # as said


def draw_transaction(data: st.DataObject, store: MemoryStore) -> list[Durable]:
    """Some effects; a task's removal comes last, for nothing of it can be counted after it."""
    kinds = st.lists(st.sampled_from(["record", "record", "refuse", "dispose", "dispose", "other"]), max_size=4)
    effects: list[Durable] = []
    for kind in data.draw(kinds):
        match kind:
            case "record":
                effects.append(data.draw(records()))
            case "refuse":
                effects.append(data.draw(refusals()))
            case "dispose":
                effects.append(draw_disposal(data, store, effects))
            case _:
                effects.append(data.draw(others()))
    return sorted(effects, key=lambda effect: isinstance(effect, RemoveTask))


def outcome(store: Store, effects: list[Durable], ts: int) -> str:
    """What became of a transaction."""
    try:
        with store.transaction():
            for effect in effects:
                store.apply(effect, ts)
            store.next_counter("boot")
    except sqlite3.IntegrityError:
        return "refused"
    return "committed"


def plan_of(store: Store, task: str, revision: int | None) -> object:
    """A plan and its layout, if they are there."""
    try:
        plan = store.plan(task, revision)
        return plain(plan), plain(store.layout(task, plan.revision))
    except LookupError:
        return None


def seen(store: SqliteStore | MemoryStore) -> object:
    """All that a store says, where it says it."""
    try:
        loaded = plain(store.load(5.0))
    except ConfigError as error:  # a task that has no release
        loaded = [error.message, error.hint]
    kept = {task: store.releases(task) for task in TASKS}
    values = {task: plain(store.values(task)) for task in TASKS}
    releases = {(task, v): store.release(task, v) for task in TASKS for v in kept[task]}
    plans = {(task, revision): plan_of(store, task, revision) for task in TASKS for revision in (None, 0, 1, 2, 3)}
    hashes = sorted({r.sha256 for r in releases.values()})
    pruned = {(row.task, row.version) for row in rows(store) if row.update is None}
    return [
        loaded,
        values,
        plain(rows(store)),
        plans,
        {key: plain(release) for key, release in releases.items()},
        {(t, v): plain(store.counted_in(t, v)) for t in TASKS for v in kept[t] if (t, v) not in pruned},
        {sha256: store.vector_bytes(sha256) for sha256 in hashes},
        store.suspects(),
        plain(store.reported()),
    ]


@given(st.data())
@settings(max_examples=80)
def test_both_stores_come_to_the_same(data: st.DataObject) -> None:
    """Whatever is written in whatever order, fit or unfit: the same refusals, and the same found by the next start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.sqlite"
        real, model = SqliteStore(path, keep_releases=KEPT), MemoryStore(keep_releases=KEPT)
        assert outcome(model, BEGINNING, 0) == outcome(real, BEGINNING, 0) == "committed"
        for step in range(data.draw(st.integers(4, 16))):
            effects = draw_transaction(data, model)
            if data.draw(st.integers(0, 5)) == 0:
                real.suspect("a")
                model.suspect("a")
            assert outcome(model, effects, step) == outcome(real, effects, step)
            if data.draw(st.booleans()):
                real.close()
                real = SqliteStore(path, keep_releases=KEPT)
                model.die("power", np.random.default_rng(step))
        assert seen(model) == seen(real)
        real.close()
