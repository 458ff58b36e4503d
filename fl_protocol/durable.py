"""Files that are either the old or the new ones after a power cut, never half of either.

`Files` is what production asks of a file system: `OS_FILES` is the real one, and the simulator's loses what was not
synced. A name lives in its directory, not in its file: it is durable once the directory is synced.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol


class File(Protocol):
    """A file that is being written. Both raise `OSError`."""

    def write(self, data: bytes) -> None:
        """Append. A failure may leave a part of it."""
        ...

    def sync(self) -> None:
        """On the disk when this returns: the content, not the name."""
        ...


class Files(Protocol):
    """A file system. Everything here but `is_file` and `is_directory` raises `OSError` as the system does."""

    def create(self, path: Path, mode: int) -> AbstractContextManager[File]:
        """An empty file in place of what was in it, open until the context ends."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Within one directory; what had the new name is gone."""
        ...

    def remove(self, path: Path) -> None:
        """Take a file away."""
        ...

    def make_directory(self, path: Path) -> None:
        """One directory in one that is there; nothing where it is there itself."""
        ...

    def sync_directory(self, path: Path) -> None:
        """The names in it are on the disk when this returns."""
        ...

    def read(self, path: Path) -> bytes:
        """All of a file."""
        ...

    def read_at(self, path: Path, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer where the file ends."""
        ...

    def write_at(self, path: Path, offset: int, data: bytes) -> None:
        """Write into a file, which is made if it is not there; zeros lie before `offset` where nothing was written.

        Not synced. A failure may leave a part of it.
        """
        ...

    def sync(self, path: Path) -> None:
        """A file's content is on the disk when this returns, whoever wrote it: not its name."""
        ...

    def size(self, path: Path) -> int:
        """A file's bytes."""
        ...

    def names(self, path: Path) -> list[str]:
        """What is in a directory, sorted."""
        ...

    def is_file(self, path: Path) -> bool:
        """Whether there is a file of that name."""
        ...

    def is_directory(self, path: Path) -> bool:
        """Whether there is a directory of that name."""
        ...

    def temporary(self, path: Path) -> Path:
        """A name beside `path` that no other process takes."""
        ...


class _OsFile:
    """A real file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


class OsFiles:
    """The operating system's files."""

    @contextmanager
    def create(self, path: Path, mode: int) -> Iterator[File]:
        """Written and synced by one descriptor: it is the one that hears of a write that failed later."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            yield _OsFile(file)

    def rename(self, old: Path, new: Path) -> None:
        """Atomic: there is no moment without a file of the new name."""
        old.replace(new)

    def remove(self, path: Path) -> None:
        """Take a file away."""
        path.unlink()

    def make_directory(self, path: Path) -> None:
        """Raises `FileExistsError` where a file has that name."""
        path.mkdir(exist_ok=True)

    def sync_directory(self, path: Path) -> None:
        """fsync of the directory itself."""
        with _descriptor(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            os.fsync(descriptor)

    def read(self, path: Path) -> bytes:
        """All of a file."""
        return path.read_bytes()

    def read_at(self, path: Path, offset: int, size: int) -> bytes:
        """No descriptor stays open: a gateway has thousands of such files."""
        with _descriptor(path, os.O_RDONLY) as descriptor:
            return os.pread(descriptor, size, offset)

    def write_at(self, path: Path, offset: int, data: bytes) -> None:
        """As often as the system takes a part only."""
        with _descriptor(path, os.O_WRONLY | os.O_CREAT) as descriptor, memoryview(data) as view:
            written = 0
            while written < len(view):
                written += os.pwrite(descriptor, view[written:], offset + written)

    def sync(self, path: Path) -> None:
        """fsync."""
        with _descriptor(path, os.O_RDONLY) as descriptor:
            os.fsync(descriptor)

    def size(self, path: Path) -> int:
        """A file's bytes."""
        return path.stat().st_size

    def names(self, path: Path) -> list[str]:
        """What is in a directory, sorted."""
        return sorted(child.name for child in path.iterdir())

    def is_file(self, path: Path) -> bool:
        """Whether there is a file of that name."""
        return path.is_file()

    def is_directory(self, path: Path) -> bool:
        """Whether there is a directory of that name."""
        return path.is_dir()

    def temporary(self, path: Path) -> Path:
        """Hidden, and with this process in its name."""
        return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def _descriptor(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


OS_FILES: Files = OsFiles()


def write_durably(path: Path, data: bytes, mode: int = 0o644, files: Files = OS_FILES) -> None:
    """Replace `path` by `data`, on the disk when this returns. Raises `OSError`; the old file is then untouched.

    An error of the last step, syncing the directory, is the one that leaves open which of the two it is.
    """
    make_directory(path.parent, files)
    temporary = files.temporary(path)
    try:
        with files.create(temporary, mode) as file:
            file.write(data)
            file.sync()
        files.rename(temporary, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one that says what is wrong
            files.remove(temporary)
        raise
    files.sync_directory(path.parent)


def make_directory(path: Path, files: Files = OS_FILES) -> None:
    """Make a directory, and those above it, unless they are there; on the disk when this returns. Raises `OSError`."""
    if files.is_directory(path):
        return
    if path.parent != path:
        make_directory(path.parent, files)
    files.make_directory(path)
    files.sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a real directory durable. Raises `OSError`."""
    OS_FILES.sync_directory(path)
