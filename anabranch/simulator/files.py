"""A file system in memory that keeps what was synced and, in a power cut, may lose or tear the rest.

The model, after what POSIX promises and disks do (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014):

- what is written is volatile until the file is synced; a power cut loses it, tears it or keeps it, each file by itself;
- names are volatile until their directory is synced; a power cut keeps some first ones of a directory's operations, in
  their order, whatever became of the files' content;
- kill -9 loses nothing, and makes nothing durable: a later power cut still may take it;
- a rename is one operation: the new name has the old file or the new one;
- a full disk takes the first part of a write, then says so; names always fit.
"""

import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

import numpy as np

from anabranch.simulator.inodes import Directory, Inode
from anabranch.simulator.power import CrashPoint, Death, PowerCut, never
from fl_protocol.durable import File

Fault = Callable[[str], int]
"""The errno with which the effect of a label fails, 0 for one that works."""


class Contents:
    """Equal content is one object: a fleet holds each version once. Remembers the last `limit` contents."""

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._known: OrderedDict[bytes, bytes] = OrderedDict()

    def one(self, data: bytes) -> bytes:
        """The object that stands for all that are equal to it."""
        known = self._known.setdefault(data, data)
        self._known.move_to_end(data)
        if len(self._known) > self._limit:
            self._known.popitem(last=False)
        return known


class MemoryFiles:
    """`fl_protocol.durable.Files` in memory. Relative and absolute paths start at the same root, which is there.

    `crash_point` is called before every effect, with `create`, `write`, `fsync`, `rename`, `remove` or `mkdir` and the
    path; its `PowerCut` leaves the disk dead until `reboot`. `fault` is asked after it. `capacity` (bytes; None: no
    end) may be changed at any time; 0 is a full disk.
    """

    def __init__(
        self,
        crash_point: CrashPoint = never,
        *,
        fault: Fault | None = None,
        capacity: int | None = None,
        contents: Contents | None = None,
    ) -> None:
        self.crash_point, self.fault, self.capacity = crash_point, fault, capacity
        self._contents = contents or Contents()
        self._root = Directory()
        self._cut: BaseException | None = None
        self._boots = 1

    # --- life and death ---

    def die(self, death: Death, rng: np.random.Generator) -> None:
        """The process is gone, and with a power cut what the disk did not have; `rng` decides what that was."""
        if death == "power":
            self._root.lose_power(rng)
        self._cut = self._cut or PowerCut(death)

    def reboot(self) -> None:
        """A next process finds what is left."""
        self._cut = None
        self._boots += 1

    def used(self) -> int:
        """Bytes in all files."""
        return self._root.size()

    # --- Files ---

    @contextmanager
    def create(self, path: Path, mode: int) -> Iterator[File]:  # noqa: ARG002  # there is one user
        """An existing file is emptied in place, as O_TRUNC does."""
        self._effect("create", path)
        directory, name = self._parent(path)
        inode = directory.names.get(name)
        if isinstance(inode, Directory):
            raise _error(errno.EISDIR, path)
        if inode is None:
            inode = Inode()
            directory.do(((name, inode),))
        inode.data, inode.dirty = b"", True
        yield _OpenFile(self, path, inode)

    def rename(self, old: Path, new: Path) -> None:
        """Atomic; across directories it is refused."""
        self._effect("rename", old, new)
        inode = self._inode(old)
        directory, name = self._parent(new)
        if self._directory(old.parent) is not directory:
            raise _error(errno.EXDEV, new)
        if isinstance(directory.names.get(name), Directory):
            raise _error(errno.EISDIR, new)
        directory.do(((old.name, None), (name, inode)))

    def remove(self, path: Path) -> None:
        """Take a file away."""
        self._effect("remove", path)
        self._inode(path)
        directory, name = self._parent(path)
        directory.do(((name, None),))

    def make_directory(self, path: Path) -> None:
        """One directory, unless it is there."""
        self._effect("mkdir", path)
        if self.is_directory(path):
            return
        directory, name = self._parent(path)
        if name in directory.names:
            raise _error(errno.EEXIST, path)
        directory.do(((name, Directory()),))

    def sync_directory(self, path: Path) -> None:
        """What was done to its names is done for good."""
        self._effect("fsync", path)
        self._directory(path).sync()

    def read(self, path: Path) -> bytes:
        """All of a file."""
        return self._inode(path).data

    def read_at(self, path: Path, offset: int, size: int) -> bytes:
        """Fewer bytes where the file ends."""
        return self._inode(path).data[offset : offset + size]

    def write_at(self, path: Path, offset: int, data: bytes) -> None:
        """A file that is made for it is an effect of its own."""
        if not self.is_file(path):
            with self.create(path, 0o644):
                pass
        self.write(path, self._inode(path), offset, data)

    def sync(self, path: Path) -> None:
        """fsync."""
        inode = self._inode(path)
        self.sync_inode(path, inode)
        inode.data = inode.synced = self._contents.one(inode.data)

    def size(self, path: Path) -> int:
        """A file's bytes."""
        return len(self._inode(path).data)

    def names(self, path: Path) -> list[str]:
        """What is in a directory, sorted."""
        return sorted(self._directory(path).names)

    def is_file(self, path: Path) -> bool:
        """Whether there is a file of that name."""
        return isinstance(self._find(path), Inode)

    def is_directory(self, path: Path) -> bool:
        """Whether there is a directory of that name."""
        return isinstance(self._find(path), Directory)

    def temporary(self, path: Path) -> Path:
        """As `OsFiles` does; the count of boots stands for the process, so that a run is the same anywhere."""
        return path.with_name(f".{path.name}.{self._boots}.tmp")

    # --- inside ---

    def append(self, path: Path, inode: Inode, data: bytes) -> None:
        """What an open file writes; all that fits of it."""
        try:
            self.write(path, inode, len(inode.data), data)
        finally:
            inode.data = self._contents.one(inode.data)

    def write(self, path: Path, inode: Inode, offset: int, data: bytes) -> None:
        """All that fits of what is written at `offset`; only what makes the file longer takes room."""
        failure = self._effect("write", path, raises=False)
        before = inode.data.ljust(offset, b"\0")
        room = len(data)
        if self.capacity is not None:
            room = max(0, max(0, self.capacity - self.used()) + len(inode.data) - offset)
        fits = data[: len(data) // 2] if failure else data[:room]
        inode.dirty = True
        if fits:
            inode.data = before[:offset] + fits + before[offset + len(fits) :] if before else fits
        if failure or len(fits) < len(data):
            raise _error(failure or errno.ENOSPC, path)

    def sync_inode(self, path: Path, inode: Inode) -> None:
        """What an open file syncs; after a failure it is as volatile as before."""
        self._effect("fsync", path)
        inode.synced, inode.dirty = inode.data, False

    def _effect(self, verb: str, *paths: Path, raises: bool = True) -> int:
        self._alive()
        label = " ".join([verb, *map(str, paths)])
        try:
            self.crash_point(label)
        except PowerCut as cut:
            self._cut = cut
            raise
        failure = self.fault(label) if self.fault else 0
        if failure and raises:
            raise _error(failure, paths[0])
        return failure

    def _alive(self) -> None:
        """The same object each time: whoever cleans up after a power cut, and meets it again, passes on the first."""
        if self._cut is not None:
            raise self._cut

    def _find(self, path: PurePath) -> Inode | Directory | None:
        self._alive()
        node: Inode | Directory | None = self._root
        for name in path.relative_to(path.anchor).parts:
            node = node.names.get(name) if isinstance(node, Directory) else None
        return node

    def _inode(self, path: Path) -> Inode:
        node = self._find(path)
        if isinstance(node, Inode):
            return node
        raise self._missing(path) if node is None else _error(errno.EISDIR, path)

    def _directory(self, path: Path) -> Directory:
        node = self._find(path)
        if isinstance(node, Directory):
            return node
        raise self._missing(path) if node is None else _error(errno.ENOTDIR, path)

    def _missing(self, path: Path) -> OSError:
        return _error(errno.ENOTDIR if any(map(self.is_file, path.parents)) else errno.ENOENT, path)

    def _parent(self, path: Path) -> tuple[Directory, str]:
        return self._directory(path.parent), path.name


class _OpenFile:
    """A file that is being written."""

    def __init__(self, files: MemoryFiles, path: Path, inode: Inode) -> None:
        self._files, self._path, self._inode = files, path, inode

    def write(self, data: bytes) -> None:
        self._files.append(self._path, self._inode, data)

    def sync(self) -> None:
        self._files.sync_inode(self._path, self._inode)


def _error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))
