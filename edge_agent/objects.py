"""Verified objects on the disk, each a file named by its SHA-256: bundles, versions, and what will be one.

A large object is written once: when its last chunk has come and its hash is right, it is given its name.
"""

import errno
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from fl_protocol.durable import OS_FILES, Files, make_directory, write_durably
from fl_protocol.errors import ConfigError
from fl_protocol.messages import MAX_OBJECT_BYTES
from fl_protocol.parts import FileParts

PARTS_BYTES = 256 << 20  # what objects in the making take at most: four of the largest bundles
PARTS_TTL_S = 7 * 86400.0  # a device that was away for longer begins again
_FULL = {errno.ENOSPC, errno.EDQUOT}


class Objects:
    """A directory of objects, and of `parts` of some. Raises `ConfigError` for a directory that cannot be used.

    `now_s` is a wall clock.
    """

    def __init__(self, path: Path, files: Files = OS_FILES, now_s: Callable[[], float] = time.time) -> None:
        self._path, self._files = path, files
        self.parts = FileParts(path, files, now_s=now_s, max_bytes=PARTS_BYTES)
        try:
            make_directory(path, files)
        except OSError as error:
            raise self._unusable(error) from None
        self.parts.expire(PARTS_TTL_S)

    def save(self, sha256: str, data: bytes) -> bool:
        """Write an object durably; False when the disk is full."""
        path = self._path / sha256
        try:
            if not self.parts.finish(sha256, path):
                write_durably(path, data, files=self._files)
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

    def of_size(self, size: int) -> bytes | None:
        """Any object of that many bytes which is what its name says; None where there is none."""
        try:
            for name in sorted(self._files.names(self._path)):
                if "." not in name and self._files.size(self._path / name) == size:
                    data = self.load(name)
                    if data is not None and hashlib.sha256(data).hexdigest() == name:
                        return data
        except OSError:
            pass
        return None

    def keep(self, sha256s: frozenset[str]) -> None:
        """Delete everything else; parts of these stay."""
        try:
            for name in self._files.names(self._path):
                if name.partition(".")[0] not in sha256s:
                    self._files.remove(self._path / name)
            self._files.sync_directory(self._path)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"cannot use the objects directory {self._path}: {error}",
            "make `state_dir` in [device] a writable directory of this user, on a disk without errors",
        )
