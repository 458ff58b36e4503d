"""The device's database in memory: SQLite's twin, it dies as a disk does, and thousands of it fit in a process."""

import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.simulator.outbox_model import MemoryOutbox
from anabranch.simulator.power import PowerCut, never
from edge_agent.budget import Spent
from edge_agent.commands import Configured, KeptCommand, Paused
from edge_agent.events import (
    Forget,
    ForgetCommand,
    LocalVector,
    PendingUpdate,
    SaveCommand,
    SaveConfigured,
    SaveCounter,
    SavePaused,
    SaveSpent,
    SaveUpdate,
    Settle,
)
from edge_agent.outbox import Outbox
from edge_agent.storage import Kept
from fl_protocol.errors import ConfigError
from fl_protocol.messages import CommandProgress, Health, Result
from tests.support.plain import plain

ROWS = 3  # of the ledger

numbers = st.integers(0, 4)
tasks = st.sampled_from(["a", "b", "c"])
vectors = st.builds(np.full, st.integers(0, 2), numbers.map(float), dtype=st.just(np.float32))
pending = st.builds(
    PendingUpdate, tasks, st.just("0" * 16), numbers, numbers, st.just("f" * 32), numbers, st.binary(max_size=2),
    vectors, vectors, origin=numbers,
)  # fmt: skip
verdicts = st.builds(
    Result, task=tasks, incarnation=st.just("0" * 16), seq=numbers, counter=numbers,
    verdict=st.sampled_from(["accepted", "stale", "rejected"]), code=st.sampled_from(["", "E_STALE"]),
)  # fmt: skip
effects = st.one_of(
    st.builds(SaveUpdate, pending, st.builds(LocalVector, st.just("f" * 32), vectors, numbers)),
    st.builds(Settle, pending, verdicts, st.sampled_from(["results", "plans"])),
    st.builds(Forget, tasks),
    st.builds(SaveCounter, st.sampled_from(["results", "plans"]), numbers),
    st.builds(SaveSpent, st.builds(Spent, st.none() | numbers, numbers.map(float), numbers, numbers)),
    st.builds(
        SaveCommand,
        st.builds(
            KeptCommand,
            st.sampled_from(["c1", "c2"]),
            st.just("pause"),
            numbers,
            st.just({"minutes": "3"}),
            st.builds(
                CommandProgress,
                status=st.sampled_from(["executing", "failed"]),
                lines=st.none() | st.just(("a line",)),
                health=st.none() | st.just(Health(memory_mb=1.5)),
            ),
        ),
    ),
    st.builds(ForgetCommand, st.sampled_from(["c1", "c2"])),
    st.builds(
        SavePaused, st.none() | st.builds(Paused, st.none() | numbers.map(float), st.none() | numbers.map(float))
    ),
    st.builds(SaveConfigured, st.builds(Configured, numbers, st.just({"log.level": "debug"}))),
)


def draw_effect(data: st.DataObject, here: tuple[PendingUpdate, ...]) -> Kept:
    """One effect; every other one a verdict on what is in the outbox."""
    effect = data.draw(effects)
    if here and data.draw(st.booleans()):
        update, result = data.draw(st.sampled_from(here)), data.draw(verdicts)
        return Settle(update, replace(result, task=update.task, seq=update.seq), "results")
    return effect


def outcome(outbox: Outbox | MemoryOutbox, effect: Kept) -> bool | str:
    """What became of it."""
    try:
        return outbox.apply(effect)
    except ConfigError:
        return "refused"


@given(st.data())
@settings(max_examples=60)
def test_both_outboxes_come_to_the_same(data: st.DataObject) -> None:
    """Whatever is written in whatever order: the same refusals, and the same found by the next start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "o.sqlite3"
        real, model = Outbox(path, ROWS), MemoryOutbox(never, np.random.default_rng(0), ROWS)
        for step in range(data.draw(st.integers(1, 20))):
            if data.draw(st.booleans()):
                real.close()
                real = Outbox(path, ROWS)
                model.die("power", np.random.default_rng(step))
            restored = model.start()
            assert plain(replace(restored, incarnation=real.incarnation())) == plain(real.start())
            effect = draw_effect(data, restored.pending)
            assert outcome(model, effect) == outcome(real, effect)
            assert model.ledger() == real.ledger()
        real.close()


# --- how it dies ---


class Fuse:
    """A crash point that lets so many effects pass."""

    def __init__(self, passes: int) -> None:
        self.left, self.labels = passes, []

    def __call__(self, label: str) -> None:
        self.labels.append(label)
        if self.left == 0:
            raise PowerCut(label)
        self.left -= 1


def live(outbox: MemoryOutbox, said: list[str]) -> None:
    """Three updates, each saved and settled; `said` follows what is on the disk."""
    outbox.start()
    for seq in range(1, 4):
        update = PendingUpdate(
            "t", "0" * 16, seq, seq, "f" * 32, 9, b"", np.ones(1, np.float32), np.ones(1, np.float32)
        )
        assert outbox.apply(SaveUpdate(update, LocalVector("f" * 32, np.ones(1, np.float32))))
        said.append(f"saved {seq}")
        result = Result(task="t", incarnation="0" * 16, seq=seq, verdict="accepted", counter=seq)
        assert outbox.apply(Settle(update, result, "results"))
        said.append(f"settled {seq}")


def found(outbox: MemoryOutbox) -> list[str]:
    """The same story, as the disk tells it. Every update is in flight or in the ledger, not both, not neither."""
    outbox.crash_point = never
    restored, settled = outbox.start(), [row["seq"] for row in outbox.ledger()]
    flying = [p.seq for p in restored.pending]
    assert settled + flying == list(range(1, restored.seq + 1))
    assert restored.counters.get("results", 0) == len(settled)
    assert restored.trained == ({"t": restored.seq} if restored.seq else {})
    assert ("t" in restored.residuals) == bool(settled)
    story = [f"{word} {seq}" for seq in settled for word in ("saved", "settled")]
    return story + [f"saved {seq}" for seq in flying]


@pytest.mark.parametrize("death", ["kill", "power"])
def test_whoever_dies_at_any_moment_leaves_whole_transactions(death) -> None:
    """At every crash point: what was said to be there is, and at most the one effect that was in hand more."""
    whole: list[str] = []
    counted = Fuse(-1)
    live(MemoryOutbox(counted, np.random.default_rng(0)), whole)
    assert counted.labels == ["write", "commit", "fsync", "synced"] * 7
    for passes in range(len(counted.labels)):
        outbox, said, told = MemoryOutbox(Fuse(passes), np.random.default_rng(0)), [], []
        outbox.on_durable = told.extend
        with pytest.raises(PowerCut):
            live(outbox, said)
        outbox.die(death, np.random.default_rng(passes))
        story = found(outbox)
        assert story in (whole[: len(said)], whole[: len(said) + 1])
        assert len(told) == len(story)


def test_without_fsync_a_power_cut_takes_what_was_said() -> None:
    """The model has teeth: an outbox that leaves its fsync out is found by the same check, though not by kill -9."""
    lost = 0
    for seed in range(20):
        outbox, said = MemoryOutbox(never, np.random.default_rng(0), synchronous=False), []
        live(outbox, said)
        outbox.die("kill", np.random.default_rng(seed))
        assert found(outbox) == said
        outbox.die("power", np.random.default_rng(seed))
        lost += found(outbox) != said
    assert lost > 5


def test_an_incarnation_that_was_lost_is_another() -> None:
    """Until it is on the disk nobody was told; the next start draws again."""
    outbox, lost = MemoryOutbox(Fuse(1), np.random.default_rng(0)), np.random.default_rng(0).bytes(8).hex()
    with pytest.raises(PowerCut, match="commit"):
        outbox.start()
    outbox.die("kill", np.random.default_rng(0))
    outbox.crash_point = never
    restored = outbox.start()
    assert restored.boot == 1
    assert restored.incarnation != lost


def test_a_full_disk_does_not_let_it_start() -> None:
    """As in production: the start itself must be counted."""
    outbox = MemoryOutbox(never, np.random.default_rng(0))
    outbox.full = True
    with pytest.raises(ConfigError, match="full"):
        outbox.start()
    outbox.full = False
    assert outbox.start().boot == 1


def test_ten_thousand_fit_in_a_process() -> None:
    """Less than 3 kB each, started and idle; what is in flight comes on top."""
    rng, count = np.random.default_rng(0), 1000
    tracemalloc.start()
    outboxes = [MemoryOutbox(never, rng) for _ in range(count)]
    for outbox in outboxes:
        outbox.start()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{size / count:.0f} bytes")  # noqa: T201  # what was measured
    assert size / count < 3000
