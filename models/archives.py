"""What was published, read with suspicion: zip archives and folders, found by the ends of paths, bounded before memory.

Nothing is unpacked to the disk: a member's path only ever names what is read.
"""

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from fl_protocol.errors import ConfigError

MAX_FILES = 10_000  # in an archive, or below a folder
MAX_FILE_BYTES = 200_000_000  # of one file, unpacked
Reader = Callable[[], bytes]

# What zipfile raises for bytes that were never an archive; NotImplementedError is a RuntimeError, as is a password.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError, RuntimeError)

_HINT = "fetch the archive again, from the address that docs/datasets.md gives"


class Archive:
    """Files by their path; what is asked for is read anew each time, so that memory holds one at a time."""

    def __init__(self, files: Mapping[str, Reader]) -> None:
        self._files = files

    @classmethod
    def of_downloads(cls, downloads: Mapping[str, bytes]) -> "Archive":
        """Files that were fetched, and what is in those of them that are zip archives. Raises `ConfigError`."""
        files: dict[str, Reader] = {}
        for name, data in downloads.items():
            files |= _members(name, data, depth=1) if _is_zip(name) else {name: partial(bytes, data)}
        return cls(files)

    @classmethod
    def of_folder(cls, folder: Path) -> "Archive":
        """All files below a folder, and what is in its zip archives. Raises `ConfigError`."""
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder}", "--from takes the folder with the files or the archive")
        files: dict[str, Reader] = {}
        for path in islice((p for p in folder.rglob("*") if p.is_file()), MAX_FILES + 1):
            name = path.relative_to(folder).as_posix()
            files |= _members(name, _read_file(path), depth=1) if _is_zip(name) else {name: partial(_read_file, path)}
            if len(files) > MAX_FILES:
                raise ConfigError(f"{folder} has more than {MAX_FILES:,} files", "give the folder with the data alone")
        return cls(files)

    def read(self, pattern: str) -> bytes:
        """The one file whose path ends with `pattern`. Raises `ConfigError`: none, several, damaged, or too large."""
        found = [path for path in self._files if PurePosixPath(path).match(pattern)]
        if len(found) != 1:
            what = f"{len(found)} files are called {pattern}" if found else f"there is no {pattern}"
            raise ConfigError(f"{what} in what was given", ", ".join(found[:5]) or _HINT)
        return self._files[found[0]]()


def _is_zip(name: str) -> bool:
    return name.lower().endswith(".zip")


def _read_file(path: Path) -> bytes:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES:,} bytes", "it is not a file of this data set")
    return path.read_bytes()


def _members(name: str, data: bytes, depth: int) -> dict[str, Reader]:
    """The files of an archive, and those of archives in it, `depth` deep. Raises `ConfigError` for a hostile one."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except _DAMAGED as error:
        raise ConfigError(f"{name} is not a zip archive: {error}", _HINT) from None
    files: dict[str, Reader] = {}
    inner_bytes = 0
    for info in archive.infolist():
        _check_path(name, info.filename)
        read = partial(_read_member, name, archive, info)
        path = f"{name}/{info.filename}"
        if depth and _is_zip(info.filename):
            inner = read()  # it stays in memory
            inner_bytes += len(inner)
            files |= _members(path, inner, depth - 1)
        elif not info.is_dir():
            files[path] = read
        if len(files) > MAX_FILES or inner_bytes > MAX_FILE_BYTES:
            raise ConfigError(
                f"{name} has too much in it: {MAX_FILES:,} files are allowed, and {MAX_FILE_BYTES:,} bytes of archives",
                _HINT,
            )
    return files


def _check_path(archive: str, path: str) -> None:
    parts = path.replace("\\", "/").split("/")
    if "\\" in path or path.startswith("/") or ":" in parts[0] or ".." in parts:
        raise ConfigError(f"{archive} has a file that wants to be outside of it: {path!r:.100}", _HINT)


def _read_member(name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """One file. What the archive says about its size is not believed: reading ends at the bound."""
    try:
        with archive.open(info) as file:
            data = file.read(MAX_FILE_BYTES + 1) if info.file_size <= MAX_FILE_BYTES else None
    except _DAMAGED as error:
        raise ConfigError(f"{name}: {info.filename} is damaged: {error}", _HINT) from None
    if data is None or len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{name}: {info.filename} is larger than {MAX_FILE_BYTES:,} bytes unpacked", _HINT)
    return data


def check_npz(path: str, data: bytes) -> None:
    """Refuse arrays that would not fit: what numpy reads next is bounded like an archive. Raises `ConfigError`."""
    for read in _members(path, data, depth=0).values():
        read()


def converted(folder: Path, paths: Iterator[str]) -> dict[str, bytes] | None:
    """Files that are in the folder as we read them, by our path or by its last part; None unless all are."""
    found: dict[str, bytes] = {}
    for path in paths:
        for candidate in (folder / path, folder / Path(path).name):
            if candidate.is_file():
                found[path] = _read_file(candidate)
                break
        else:
            return None
    return found
