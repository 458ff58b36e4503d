"""Verified objects on the disk: bundles and versions, each a file named by its SHA-256."""

import errno
from pathlib import Path

from fl_protocol.durable import OS_FILES, Files, make_directory, write_durably
from fl_protocol.errors import ConfigError
from fl_protocol.messages import MAX_OBJECT_BYTES

_FULL = {errno.ENOSPC, errno.EDQUOT}


class Objects:
    """A directory of objects. Raises `ConfigError` for a directory that cannot be used."""

    def __init__(self, path: Path, files: Files = OS_FILES) -> None:
        self._path, self._files = path, files
        try:
            make_directory(path, files)
        except OSError as error:
            raise self._unusable(error) from None

    def save(self, sha256: str, data: bytes) -> bool:
        """Write an object durably; False when the disk is full."""
        try:
            write_durably(self._path / sha256, data, files=self._files)
        except OSError as error:
            if error.errno in _FULL:
                return False
            raise self._unusable(error) from None
        return True

    def load(self, sha256: str) -> bytes | None:
        """An object's bytes, which the reader verifies; None where there are none that can be read."""
        path = self._path / sha256
        try:
            return self._files.read(path) if self._files.size(path) <= MAX_OBJECT_BYTES else None
        except OSError:
            return None

    def keep(self, sha256s: frozenset[str]) -> None:
        """Delete everything else."""
        try:
            for name in self._files.names(self._path):
                if name not in sha256s:
                    self._files.remove(self._path / name)
            self._files.sync_directory(self._path)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"cannot use the objects directory {self._path}: {error}",
            "make `state_dir` in [device] a writable directory of this user, on a disk without errors",
        )
