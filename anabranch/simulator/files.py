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
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np

from anabranch.simulator.power import CrashPoint, Death, PowerCut, never
from fl_protocol.durable import File

Fault = Callable[[str], int]
"""The errno with which the effect of a label fails, 0 for one that works."""

_Names = dict[str, "_Inode | _Directory"]
_Operation = tuple[tuple[str, "_Inode | _Directory | None"], ...]


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
        self._root = _Directory()
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
        if isinstance(inode, _Directory):
            raise _error(errno.EISDIR, path)
        if inode is None:
            inode = _Inode()
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
        if isinstance(directory.names.get(name), _Directory):
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
        directory.do(((name, _Directory()),))

    def sync_directory(self, path: Path) -> None:
        """What was done to its names is done for good."""
        self._effect("fsync", path)
        self._directory(path).sync()

    def read(self, path: Path) -> bytes:
        """All of a file."""
        return self._inode(path).data

    def size(self, path: Path) -> int:
        """A file's bytes."""
        return len(self._inode(path).data)

    def names(self, path: Path) -> list[str]:
        """What is in a directory, sorted."""
        return sorted(self._directory(path).names)

    def is_file(self, path: Path) -> bool:
        """Whether there is a file of that name."""
        return isinstance(self._find(path), _Inode)

    def is_directory(self, path: Path) -> bool:
        """Whether there is a directory of that name."""
        return isinstance(self._find(path), _Directory)

    def temporary(self, path: Path) -> Path:
        """As `OsFiles` does; the count of boots stands for the process, so that a run is the same anywhere."""
        return path.with_name(f".{path.name}.{self._boots}.tmp")

    # --- inside ---

    def append(self, path: Path, inode: "_Inode", data: bytes) -> None:
        """What an open file writes; all that fits of it."""
        failure = self._effect("write", path, raises=False)
        room = len(data) if self.capacity is None else max(0, self.capacity - self.used())
        fits = data[: len(data) // 2] if failure else data[:room]
        inode.dirty = True
        inode.data = self._contents.one(inode.data + fits if inode.data else fits)
        if failure or len(fits) < len(data):
            raise _error(failure or errno.ENOSPC, path)

    def sync(self, path: Path, inode: "_Inode") -> None:
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

    def _find(self, path: PurePath) -> "_Inode | _Directory | None":
        self._alive()
        node: _Inode | _Directory | None = self._root
        for name in path.relative_to(path.anchor).parts:
            node = node.names.get(name) if isinstance(node, _Directory) else None
        return node

    def _inode(self, path: Path) -> "_Inode":
        node = self._find(path)
        if isinstance(node, _Inode):
            return node
        raise self._missing(path) if node is None else _error(errno.EISDIR, path)

    def _directory(self, path: Path) -> "_Directory":
        node = self._find(path)
        if isinstance(node, _Directory):
            return node
        raise self._missing(path) if node is None else _error(errno.ENOTDIR, path)

    def _missing(self, path: Path) -> OSError:
        return _error(errno.ENOTDIR if any(map(self.is_file, path.parents)) else errno.ENOENT, path)

    def _parent(self, path: Path) -> "tuple[_Directory, str]":
        return self._directory(path.parent), path.name


@dataclass(eq=False)
class _Inode:
    """A file: what processes read, and what of it a power cut cannot take."""

    data: bytes = b""
    synced: bytes = b""
    dirty: bool = False

    def size(self) -> int:
        return len(self.data)

    def lose_power(self, rng: np.random.Generator) -> None:
        if not self.dirty:
            return
        fate = ("kept", "lost", "cut", "hollow")[rng.integers(4)]
        length = int(rng.integers(len(self.data) + 1))
        if fate == "lost":
            self.data = self.synced
        elif fate == "cut":
            self.data = self.data[:length]
        elif fate == "hollow":  # the size got there and the blocks did not: zeros
            self.data = self.data[:length] + bytes(len(self.data) - length)
        self.synced, self.dirty = self.data, False


@dataclass(eq=False)
class _Directory:
    """Names: as processes see them, as the disk has them, and the operations between the two, oldest first."""

    names: _Names = field(default_factory=dict)
    synced: _Names = field(default_factory=dict)
    pending: list[_Operation] = field(default_factory=list)

    def do(self, operation: _Operation) -> None:
        self.pending.append(operation)
        _bind(self.names, operation)

    def sync(self) -> None:
        self.synced = dict(self.names)
        self.pending.clear()

    def size(self) -> int:
        return sum(node.size() for node in self.names.values())

    def lose_power(self, rng: np.random.Generator) -> None:
        for operation in self.pending[: rng.integers(len(self.pending) + 1)]:
            _bind(self.synced, operation)
        self.names = self.synced
        self.sync()
        for name in sorted(self.names):
            self.names[name].lose_power(rng)


class _OpenFile:
    """A file that is being written."""

    def __init__(self, files: MemoryFiles, path: Path, inode: _Inode) -> None:
        self._files, self._path, self._inode = files, path, inode

    def write(self, data: bytes) -> None:
        self._files.append(self._path, self._inode, data)

    def sync(self) -> None:
        self._files.sync(self._path, self._inode)


def _bind(names: _Names, operation: _Operation) -> None:
    for name, node in operation:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))
