"""A finished object read from the disk, piece by piece."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from fl_protocol.durable import OS_FILES, Files
from fl_protocol.errors import Code, ProtocolError

PIECE = 256 << 10  # bytes read at once


class FileSource:
    """A `Source` on the disk. Raises `OSError` where there is no file.

    Its SHA-256 is whoever opens it to know, or `sha256_of` to compute.
    """

    def __init__(self, path: Path, sha256: str, files: Files = OS_FILES) -> None:
        self._path, self._files = path, files
        self.sha256, self.size = sha256, files.size(path)

    def read(self, offset: int, size: int) -> bytes:
        """See `Source.read`."""
        try:
            data = self._files.read_at(self._path, offset, size)
        except OSError as error:
            raise ProtocolError(Code.DISK, f"cannot read {self._path}: {error.strerror}") from None
        if len(data) != size:
            raise ProtocolError(Code.DISK, f"{self._path} was cut short")
        return data


def sha256_of(path: Path, files: Files = OS_FILES) -> str:
    """A file's SHA-256, in little memory. Raises `OSError`."""
    digest = hashlib.sha256()
    for piece in _pieces(path, files):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path, files: Files) -> Iterator[bytes]:
    offset = 0
    while piece := files.read_at(path, offset, PIECE):
        yield piece
        offset += len(piece)
