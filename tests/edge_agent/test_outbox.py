"""The device's database: whole transactions, over kill -9, a full disk and damage."""

import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge_agent.events import Forget, LocalVector, PendingUpdate, Restored, SaveCounter, SaveUpdate, Settle
from edge_agent.outbox import Outbox
from fl_protocol.errors import ConfigError
from fl_protocol.messages import Result
from tests.edge_agent.rig import ROOT

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


def reopened(path: Path) -> Restored:
    """What the next start finds."""
    outbox = Outbox(path)
    restored = outbox.start()
    outbox.close()
    return restored


def test_a_new_outbox_makes_an_incarnation_and_counts_its_starts(tmp_path: Path) -> None:
    """boot +1 a start; the incarnation stays with the storage."""
    first, second = (reopened(tmp_path / "o.sqlite3") for _ in range(2))
    assert (first.boot, second.boot) == (1, 2)
    assert first.incarnation == second.incarnation
    assert len(first.incarnation) == 16
    assert reopened(tmp_path / "other.sqlite3").incarnation != first.incarnation


def test_an_update_survives_until_its_verdict(tmp_path: Path) -> None:
    """The row, its residuals, seq, the version trained from and the personal state are there after a restart."""
    path = tmp_path / "o.sqlite3"
    outbox = Outbox(path)
    outbox.start()
    assert outbox.apply(save(1))
    outbox.close()
    restored = reopened(path)
    (pending,) = restored.pending
    assert (pending.seq, pending.base_version, pending.sealed, pending.num_examples) == (1, 11, b"sealed", 9)
    np.testing.assert_array_equal(pending.if_accepted, VECTOR)
    np.testing.assert_array_equal(pending.if_refused, -VECTOR)
    np.testing.assert_array_equal(restored.personal["t"].vector, VECTOR[:3])
    assert (restored.seq, restored.trained, pending.origin) == (1, {"t": 11}, 7)


@pytest.mark.parametrize("verdict", ["accepted", "stale", "rejected"])
def test_a_verdict_moves_the_residual_and_is_kept_in_the_ledger(tmp_path: Path, verdict: str) -> None:
    """In one transaction with the counter; settling twice is settling once."""
    path = tmp_path / "o.sqlite3"
    outbox = Outbox(path)
    outbox.start()
    outbox.apply(save(1))
    for _ in range(2):
        assert outbox.apply(settle(1, verdict, code="E_STALE" if verdict == "stale" else ""))
    assert [(row["seq"], row["verdict"], row["base_version"]) for row in outbox.ledger()] == [(1, verdict, 11)]
    outbox.close()
    restored = reopened(path)
    assert not restored.pending
    assert restored.counters == {"results": 1}
    np.testing.assert_array_equal(restored.residuals["t"].vector, VECTOR if verdict == "accepted" else -VECTOR)
    assert (restored.residuals["t"].fingerprint, restored.residuals["t"].origin) == ("f" * 32, 7)


def test_a_verdict_on_an_update_that_is_not_here_writes_no_ledger(tmp_path: Path) -> None:
    """Only what was in flight is settled."""
    outbox = Outbox(tmp_path / "o.sqlite3")
    outbox.start()
    outbox.apply(settle(5, "accepted"))
    assert outbox.ledger() == []


def test_the_ledger_keeps_the_newest(tmp_path: Path) -> None:
    """It is bounded; the oldest rows go first."""
    outbox = Outbox(tmp_path / "o.sqlite3", ledger_rows=10)
    outbox.start()
    for seq in range(1, 26):
        outbox.apply(save(seq))
        outbox.apply(settle(seq, "accepted"))
    assert [row["seq"] for row in outbox.ledger()] == list(range(16, 26))


def test_leaving_a_task_forgets_it_alone(tmp_path: Path) -> None:
    """The others stay, and so does the ledger."""
    outbox = Outbox(tmp_path / "o.sqlite3")
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


def test_counters_never_shrink(tmp_path: Path) -> None:
    """The highest is kept, whatever the order."""
    outbox = Outbox(tmp_path / "o.sqlite3")
    for counter in (3, 9, 4):
        outbox.apply(SaveCounter("plans", counter))
    assert outbox.start().counters == {"plans": 9}


def test_a_full_disk_changes_nothing_and_is_no_error(tmp_path: Path) -> None:
    """`apply` says False, the old state stands, and the same effect succeeds once there is room."""
    path = tmp_path / "o.sqlite3"
    outbox = Outbox(path)
    outbox.start()
    outbox.apply(save(1))
    outbox._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (pages,) = outbox._db.execute("PRAGMA page_count").fetchone()
    outbox._db.execute(f"PRAGMA max_page_count = {pages}")
    assert not outbox.apply(save(2, "another"))
    assert [p.task for p in outbox.start().pending] == ["t"]
    outbox._db.execute(f"PRAGMA max_page_count = {10 * pages}")
    assert outbox.apply(save(2, "another"))
    outbox.close()
    assert [p.task for p in reopened(path).pending] == ["t", "another"]


@pytest.mark.parametrize("damage", ["not a database", "torn"])
def test_a_damaged_database_is_a_clear_error(tmp_path: Path, damage: str) -> None:
    """It names the file, and what to do."""
    path = tmp_path / "o.sqlite3"
    outbox = Outbox(path)
    outbox.start()
    outbox.apply(save(1))
    outbox.close()
    data = bytearray(path.read_bytes())
    if damage == "torn":
        data[4096:8192] = b"\xa5" * 4096
        data[-4096:] = b"\x5a" * 4096
    else:
        data[:100] = b"x" * 100
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"o\.sqlite3") as caught:
        Outbox(path).start()
    assert "move" in caught.value.hint


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """An older agent does not touch what a newer one wrote."""
    path = tmp_path / "o.sqlite3"
    reopened(path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 2")
    with pytest.raises(ConfigError, match="schema 2"):
        Outbox(path)


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    """A file where the directory should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot use the device's database"):
        Outbox(tmp_path / "file" / "o.sqlite3")


def test_killed_at_any_moment_the_disk_has_whole_transactions(tmp_path: Path) -> None:
    """What was said to be stored is there; an update is in flight or in the ledger, never both, never neither."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    said: dict[str, int] = {"saved": 0, "settled": 0, "counted": 0}
    for _ in range(6):
        command = [sys.executable, str(ROOT / "tests/edge_agent/outbox_writer.py"), str(tmp_path), str(seed)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}
        ) as writer:
            assert writer.stdout
            lines = [writer.stdout.readline() for _ in range(rng.randrange(1, 30))]
            deadline = time.monotonic() + rng.random() * 0.01
            while time.monotonic() < deadline:  # somewhere inside of a transaction, not just after one
                pass
            writer.kill()
            lines += writer.stdout.readlines()
        for word, seq in (line.split() for line in lines if line.endswith("\n")):
            said[word] = int(seq)
        outbox = Outbox(tmp_path / "outbox.sqlite3")
        restored, ledger = outbox.start(), outbox.ledger()
        outbox.close()
        settled = [row["seq"] for row in ledger]
        assert settled == list(range(1, len(settled) + 1))
        assert restored.seq >= said["saved"]
        assert len(settled) >= said["settled"]
        assert restored.counters.get("plans", 0) >= said["counted"]
        assert [p.seq for p in restored.pending] == list(range(len(settled) + 1, restored.seq + 1))
        assert restored.trained == {"t": 3 * restored.seq}
        if settled:
            sign = 1 if settled[-1] % 3 else -1
            expected = np.full(5_000, sign * settled[-1], np.float32)
            np.testing.assert_array_equal(restored.residuals["t"].vector, expected)
        for pending in restored.pending:
            assert set(pending.if_accepted.tolist()) == {pending.seq}
            assert pending.sealed.startswith(pending.seq.to_bytes(8, "big"))
