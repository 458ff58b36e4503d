"""Verified objects on the disk: whole or not there, and never more than are wanted."""

import errno
from pathlib import Path

import pytest

from edge_agent import objects
from edge_agent.objects import Objects
from fl_protocol.errors import ConfigError


def test_what_was_saved_is_loaded_until_it_is_unwanted(tmp_path: Path) -> None:
    """By its name; leftovers of an interrupted write go with the unwanted."""
    store = Objects(tmp_path / "objects")
    assert store.load("a" * 64) is None
    assert store.save("a" * 64, b"one")
    assert store.save("b" * 64, b"two")
    (tmp_path / "objects/.c.123.tmp").write_bytes(b"half")
    store.keep(frozenset({"b" * 64, "d" * 64}))
    assert [path.name for path in (tmp_path / "objects").iterdir()] == ["b" * 64]
    assert Objects(tmp_path / "objects").load("b" * 64) == b"two"


def test_a_full_disk_is_no_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`save` says False; any other failure is the operator's."""
    store = Objects(tmp_path)
    answers = iter([OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken")])

    def fail(*_: object, **__: object) -> None:
        raise next(answers)

    monkeypatch.setattr(objects, "write_durably", fail)
    assert not store.save("a" * 64, b"data")
    with pytest.raises(ConfigError, match="broken"):
        store.save("a" * 64, b"data")
    assert store.load("a" * 64) is None


def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    """A file where the directory should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="objects directory"):
        Objects(tmp_path / "file")
