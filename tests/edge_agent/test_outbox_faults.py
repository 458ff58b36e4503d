"""The device's files on a disk that is really full: nothing half, and everything again once there is room."""

import errno

import numpy as np
import pytest

from edge_agent.events import LocalVector, PendingUpdate, SaveCounter, SaveUpdate, Settle
from edge_agent.objects import Objects
from edge_agent.outbox import Outbox
from fl_protocol.durable import write_durably
from fl_protocol.messages import Result
from tests.support.small_disk import PAGE, SmallDisk, on_a_small_disk


def saving(seq: int) -> SaveUpdate:
    """An update of about ten pages, filled with its seq."""
    vector = np.full(2_000, seq, np.float32)
    update = PendingUpdate("t", "0" * 16, seq, 3 * seq, "f" * 32, 7, bytes(3 * PAGE), vector, -vector)
    return SaveUpdate(update, LocalVector("f" * 32, vector))


def settling(seq: int) -> Settle:
    """Its verdict."""
    result = Result(task="t", incarnation="0" * 16, seq=seq, verdict="accepted", counter=seq)
    return Settle(saving(seq).update, result, "results")


def contents(outbox: Outbox) -> object:
    """All that is in it, as values."""
    return list(outbox._db.iterdump())


@on_a_small_disk(kilobytes=1024)
def test_an_outbox_on_a_full_disk(disk: SmallDisk) -> None:
    """However many pages are free: an effect is there whole, or `apply` is False and nothing changed."""
    answers = []
    for pages in range(24):
        path = disk.path / str(pages) / "outbox.sqlite3"
        outbox = Outbox(path)
        outbox.start()
        assert outbox.apply(saving(1))
        for effect in (settling(1), saving(2), SaveCounter("plans", 5)):
            before = contents(outbox)
            disk.fill(pages)
            done = outbox.apply(effect)
            answers.append(done)
            assert done == (contents(outbox) != before)
            disk.make_room()
            if not done:
                assert outbox.apply(effect)
        outbox.close()
        outbox = Outbox(path)
        restored = outbox.start()
        assert [p.seq for p in restored.pending] == [2]
        assert restored.counters == {"results": 1, "plans": 5}
        assert [row["seq"] for row in outbox.ledger()] == [1]
        outbox.close()
        for file in path.parent.iterdir():
            file.unlink()
    assert set(answers) == {True, False}


@on_a_small_disk(kilobytes=256)
def test_a_file_on_a_full_disk(disk: SmallDisk) -> None:
    """`write_durably` leaves the old one and no other; a device's objects say False."""
    path, old, new = disk.path / "folder" / "f", b"old" * 100, bytes(range(256)) * 40
    write_durably(path, old)
    objects = Objects(path.parent)
    for pages in range(len(new) // PAGE + 1):
        disk.fill(pages)
        with pytest.raises(OSError, match="No space") as caught:
            write_durably(path, new)
        assert caught.value.errno == errno.ENOSPC
        assert not objects.save("object", new)
        assert [f.name for f in path.parent.iterdir()] == ["f"]
        assert path.read_bytes() == old
        disk.make_room()
    write_durably(path, new)
    assert objects.save("object", new)
    assert path.read_bytes() == objects.load("object") == new
