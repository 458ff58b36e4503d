"""Files on a FAT partition inside an image or a card, without root and without mounting: mtools does it.

mtools rather than pyfatfs: that one left the free-cluster count wrong after a plain write, and stands on PyFilesystem2,
which needs a setuptools of years ago.
"""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from fl_protocol.errors import ConfigError

from .partitions import Partition
from .tools import run_tool

_FREE = re.compile(rb"([0-9][0-9 ]*) bytes free")
_ENTRY = 32  # bytes of a directory's entry; a long name has one more for every 13 characters


class FatFiles:
    """The files of one partition. Paths have no leading slash. All of it raises `ConfigError`."""

    def __init__(self, image: Path, partition: Partition) -> None:
        self._at = f"{image}@@{partition.offset}"
        self._cluster = partition.cluster

    def free(self) -> int:
        """Bytes that no file has."""
        found = _FREE.search(run_tool("mdir", "-i", self._at, "::/"))
        if found is None:
            raise ConfigError(f"mdir does not say what is free on {self._at}", "see that the card can be read")
        return int(found[1].replace(b" ", b""))

    def names(self, folder: str = "") -> set[str]:
        """What is in a folder; nothing where there is none."""
        lines = run_tool("mdir", "-b", "-i", self._at, f"::/{folder}", check=False).decode("utf-8", "replace")
        return {PurePosixPath(line.rstrip("/")).name for line in lines.splitlines()} - {""}

    def taken(self, path: str) -> int:
        """Bytes that a file or a folder with all in it takes; 0 where there is none."""
        said = run_tool("mdu", "-a", "-i", self._at, f"::/{path}", check=False).split()
        return int(said[-1]) * self._cluster if said and said[-1].isdigit() else 0

    def needed(self, sizes: Iterable[tuple[str, int]]) -> int:
        """Bytes that files of these paths and sizes will take, with their folders, never less than they do."""
        entries: dict[PurePosixPath, int] = {}
        clusters = 0
        for name, size in sizes:
            clusters += -(-size // self._cluster)
            path = PurePosixPath(name)
            for child in (path, *path.parents[:-1]):
                entries.setdefault(child, 2 + len(child.name) // 13)
        for folder in {path.parent for path in entries}:
            held = _ENTRY * (2 + sum(n for path, n in entries.items() if path.parent == folder))
            clusters += 1 + held // self._cluster
        return clusters * self._cluster

    def read(self, path: str) -> bytes:
        """All of a file."""
        return run_tool("mcopy", "-i", self._at, f"::/{path}", "-")

    def write(self, path: str, data: bytes) -> None:
        """Replace a file; its folders are made."""
        for folder in reversed(PurePosixPath(path).parents[:-1]):
            if folder.name not in self.names("" if str(folder.parent) == "." else str(folder.parent)):
                run_tool("mmd", "-i", self._at, f"::/{folder}")
        run_tool("mcopy", "-o", "-i", self._at, "-", f"::/{path}", data=data)

    def remove(self, path: str) -> None:
        """Take a file or a folder away, if it is there."""
        run_tool("mdeltree", "-i", self._at, f"::/{path}", check=False)
