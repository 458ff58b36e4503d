"""A file is the old one or the new one, whatever happens in between."""

import errno
import os

import pytest

from fl_protocol import durable
from fl_protocol.durable import write_durably


def test_a_file_is_replaced(tmp_path):
    """And its folder made."""
    path = tmp_path / "a" / "b"
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert [f.name for f in path.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step):
    """The disk is full at fsync, or the rename fails: the old content stands, nothing is left over."""
    path = tmp_path / "f"
    write_durably(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "fsync":
        monkeypatch.setattr(durable.os, "fsync", fail)
    else:
        monkeypatch.setattr(durable.Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_data_is_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    """The visible order is the durable order (temp, write, fsync, rename, fsync the folder)."""
    calls = []
    fsync, replace = os.fsync, durable.Path.replace
    monkeypatch.setattr(durable.os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(durable.Path, "replace", lambda a, b: (calls.append("rename"), replace(a, b))[1])
    write_durably(tmp_path / "f", b"x")
    assert calls == ["fsync", "rename", "fsync"]


def test_a_new_directory_is_durable_too(tmp_path, monkeypatch):
    """Each new one is synced into the one above it, the uppermost first; those that are there are left alone."""
    synced = []
    sync_directory = durable.OsFiles.sync_directory
    monkeypatch.setattr(
        durable.OsFiles, "sync_directory", lambda self, path: (synced.append(path), sync_directory(self, path))[1]
    )
    write_durably(tmp_path / "a" / "b" / "f", b"x")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    synced.clear()
    write_durably(tmp_path / "a" / "b" / "g", b"x")
    assert synced == [tmp_path / "a" / "b"]


def test_the_first_error_is_the_one_that_is_told(tmp_path, monkeypatch):
    """The disk is full, and then the leftover cannot be removed either."""

    def fail(number: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durable.os, "fsync", lambda _: fail(errno.ENOSPC))
    monkeypatch.setattr(durable.Path, "unlink", lambda *_: fail(errno.EIO))
    with pytest.raises(OSError, match="No space"):
        write_durably(tmp_path / "f", b"x")


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_has_its_mode_before_it_has_its_content(tmp_path, monkeypatch, mode):
    """A private key is never readable by others, not for a moment."""
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(durable.os, "fsync", lambda fd: (seen.append(os.fstat(fd).st_mode & 0o777), fsync(fd))[1])
    write_durably(tmp_path / "f", b"secret", mode)
    assert seen[0] == mode & ~os.umask(os.umask(0))
