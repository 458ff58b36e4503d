"""What every outbox does: an effect is there after `apply`, whole, over restarts; or it is not there at all."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.budget import Spent
from edge_agent.events import Forget, LocalVector, PendingUpdate, SaveCounter, SaveSpent, SaveUpdate, Settle
from fl_protocol.errors import ConfigError
from fl_protocol.messages import Result
from tests.support.disks import KINDS, OutboxDisk, fill, make_room

VECTOR = np.arange(1000, dtype=np.float32)


def update(seq: int, task: str = "t", incarnation: str = "0" * 16) -> PendingUpdate:
    """An update whose residuals say which verdict they are for."""
    return PendingUpdate(task, incarnation, seq, seq + 10, "f" * 32, 9, b"sealed", VECTOR, -VECTOR, origin=7)


def save(seq: int, task: str = "t") -> SaveUpdate:
    """Its durable effect."""
    return SaveUpdate(update(seq, task), LocalVector("f" * 32, VECTOR[:3]))


def settle(seq: int, verdict: str, task: str = "t", code: str = "") -> Settle:
    """Its verdict's."""
    result = Result(task=task, incarnation="0" * 16, seq=seq, verdict=verdict, code=code, counter=seq)  # type: ignore[arg-type]
    return Settle(update(seq, task), result, "results")


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OutboxDisk]:
    """Where the outbox is kept: in SQLite's file, or in the simulator's model of it."""
    disk = OutboxDisk(request.param, tmp_path)
    yield disk
    disk.close()


def test_a_new_outbox_makes_an_incarnation_and_counts_its_starts(disk: OutboxDisk) -> None:
    """boot +1 a start; the incarnation stays with the storage."""
    first, second = disk.open().start(), disk.open(death="power").start()
    assert (first.boot, second.boot) == (1, 2)
    assert first.incarnation == second.incarnation
    assert len(first.incarnation) == 16
    other = replace(disk, name="other.sqlite3", _outbox=None)
    assert other.open().incarnation() != first.incarnation
    assert other.open().incarnation() == other.open().start().incarnation
    other.close()


def test_an_update_survives_until_its_verdict(disk: OutboxDisk) -> None:
    """The row, its residuals, seq, the version trained from and the personal state are there after a restart."""
    outbox = disk.open()
    outbox.start()
    assert outbox.apply(save(1))
    restored = disk.open().start()
    (pending,) = restored.pending
    assert (pending.seq, pending.base_version, pending.sealed, pending.num_examples) == (1, 11, b"sealed", 9)
    np.testing.assert_array_equal(pending.if_accepted, VECTOR)
    np.testing.assert_array_equal(pending.if_refused, -VECTOR)
    np.testing.assert_array_equal(restored.personal["t"].vector, VECTOR[:3])
    assert (restored.seq, restored.trained, pending.origin) == (1, {"t": 11}, 7)


@pytest.mark.parametrize("verdict", ["accepted", "stale", "rejected"])
def test_a_verdict_moves_the_residual_and_is_kept_in_the_ledger(disk: OutboxDisk, verdict: str) -> None:
    """In one transaction with the counter; settling twice is settling once."""
    outbox = disk.open()
    outbox.start()
    outbox.apply(save(1))
    for _ in range(2):
        assert outbox.apply(settle(1, verdict, code="E_STALE" if verdict == "stale" else ""))
    assert [(row["seq"], row["verdict"], row["base_version"]) for row in outbox.ledger()] == [(1, verdict, 11)]
    restored = disk.open().start()
    assert not restored.pending
    assert restored.counters == {"results": 1}
    np.testing.assert_array_equal(restored.residuals["t"].vector, VECTOR if verdict == "accepted" else -VECTOR)
    assert (restored.residuals["t"].fingerprint, restored.residuals["t"].origin) == ("f" * 32, 7)


def test_a_verdict_on_an_update_that_is_not_here_writes_no_ledger(disk: OutboxDisk) -> None:
    """Only what was in flight is settled."""
    outbox = disk.open()
    outbox.start()
    outbox.apply(settle(5, "accepted"))
    assert outbox.ledger() == []


def test_the_ledger_keeps_the_newest(disk: OutboxDisk) -> None:
    """It is bounded; the oldest rows go first."""
    outbox = disk.open(ledger_rows=10)
    outbox.start()
    for seq in range(1, 26):
        outbox.apply(save(seq))
        outbox.apply(settle(seq, "accepted"))
    assert [row["seq"] for row in outbox.ledger()] == list(range(16, 26))


def test_leaving_a_task_forgets_it_alone(disk: OutboxDisk) -> None:
    """The others stay, and so does the ledger."""
    outbox = disk.open()
    outbox.start()
    for task in ("a", "b"):
        outbox.apply(save(1, task))
        outbox.apply(settle(1, "accepted", task))
        outbox.apply(save(2, task))
    outbox.apply(Forget("a"))
    restored = outbox.start()
    assert [p.task for p in restored.pending] == ["b"]
    assert set(restored.trained) == set(restored.residuals) == set(restored.personal) == {"b"}
    assert len(outbox.ledger()) == 2


def test_counters_never_shrink(disk: OutboxDisk) -> None:
    """The highest is kept, whatever the order."""
    outbox = disk.open()
    for counter in (3, 9, 4):
        outbox.apply(SaveCounter("plans", counter))
    assert outbox.start().counters == {"plans": 9}


@pytest.mark.parametrize("spent", [Spent(20_000, 1800.5, 4_000_000, 1_000_000), Spent(None, 0.0, 7, 0)])
def test_what_was_spent_is_there_over_a_power_cut(disk: OutboxDisk, spent: Spent) -> None:
    """The newest, whole; and nothing at first."""
    outbox = disk.open()
    assert outbox.start().spent == Spent()
    for each in (Spent(19_999, 86400.0, 5_000_000, 5), spent):
        assert outbox.apply(SaveSpent(each))
    assert disk.open(death="power").start().spent == spent


def test_a_full_disk_changes_nothing_and_is_no_error(disk: OutboxDisk) -> None:
    """`apply` says False, the old state stands, and the same effect succeeds once there is room."""
    outbox = disk.open()
    outbox.start()
    outbox.apply(save(1))
    fill(outbox)
    assert not outbox.apply(save(2, "another"))
    make_room(outbox)
    assert [p.task for p in outbox.start().pending] == ["t"]
    assert outbox.apply(save(2, "another"))
    assert [p.task for p in disk.open(death="power").start().pending] == ["t", "another"]


def test_one_update_of_a_task_is_in_flight(disk: OutboxDisk) -> None:
    """A second one is the agent's fault, an error, and changes nothing."""
    outbox = disk.open()
    outbox.apply(save(1))
    with pytest.raises(ConfigError, match="UNIQUE"):
        outbox.apply(save(2))
    restored = outbox.start()
    assert ([p.seq for p in restored.pending], restored.seq) == ([1], 1)
