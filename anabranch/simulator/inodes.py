"""Files and directories of a disk in memory: as processes see them, and as a power cut leaves them."""

from dataclasses import dataclass, field

import numpy as np

Names = dict[str, "Inode | Directory"]
Operation = tuple[tuple[str, "Inode | Directory | None"], ...]


@dataclass(eq=False)
class Inode:
    """A file: what processes read, and what of it a power cut cannot take."""

    data: bytes = b""
    synced: bytes = b""
    dirty: bool = False

    def size(self) -> int:
        """Its bytes."""
        return len(self.data)

    def lose_power(self, rng: np.random.Generator) -> None:
        """What was not synced is kept, lost, cut or hollow."""
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
class Directory:
    """Names: as processes see them, as the disk has them, and the operations between the two, oldest first."""

    names: Names = field(default_factory=dict)
    synced: Names = field(default_factory=dict)
    pending: list[Operation] = field(default_factory=list)

    def do(self, operation: Operation) -> None:
        """Change names, in one step; volatile until `sync`."""
        self.pending.append(operation)
        _bind(self.names, operation)

    def sync(self) -> None:
        """What was done to the names is done for good."""
        self.synced = dict(self.names)
        self.pending.clear()

    def size(self) -> int:
        """Bytes in all files below."""
        return sum(node.size() for node in self.names.values())

    def lose_power(self, rng: np.random.Generator) -> None:
        """Some first ones of the pending operations were done; then each file loses what it loses."""
        for operation in self.pending[: rng.integers(len(self.pending) + 1)]:
            _bind(self.synced, operation)
        self.names = self.synced
        self.sync()
        for name in sorted(self.names):
            self.names[name].lose_power(rng)


def _bind(names: Names, operation: Operation) -> None:
    for name, node in operation:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node
