"""The device's database in SQLite: whole transactions over kill -9, and damage. Its rules: tests/contracts/."""

import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge_agent.events import Restored
from edge_agent.outbox import Outbox
from fl_protocol.errors import ConfigError
from tests.contracts.test_outbox import save
from tests.edge_agent.rig import ROOT


def reopened(path: Path) -> Restored:
    """What the next start finds."""
    outbox = Outbox(path)
    restored = outbox.start()
    outbox.close()
    return restored


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
