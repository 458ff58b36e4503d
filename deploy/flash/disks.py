"""Which disks may be written: never one that is mounted, swapped to, part of something, or this machine's own."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.errors import ConfigError


@dataclass(frozen=True)
class Kernel:
    """Where the kernel tells what it has."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")


@dataclass(frozen=True)
class Target:
    """An image file, or a whole disk that may be written; `name` is the kernel's, empty for a file."""

    path: Path
    size: int
    name: str = ""


def check_target(path: Path, yes_this_disk: str = "", kernel: Kernel = Kernel()) -> Target:
    """The target, if it may be written. Raises `ConfigError` saying what it is and what stands against it."""
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"cannot use {path}: {error.strerror}", "name an image file or a card, see `lsblk`") from None
    if stat.S_ISREG(status.st_mode):
        _refuse_loop(path, kernel)
        return Target(path, status.st_size)
    if not stat.S_ISBLK(status.st_mode):
        raise ConfigError(f"{path} is neither a file nor a disk", "name an image file or a card, see `lsblk`")
    disk = _disk(path, status.st_rdev, kernel)
    _refuse_busy(path, disk, kernel)
    if _text(disk / "ro") == "1":
        raise ConfigError(f"{path} is write-protected", "slide the lock on the card's adapter, or take another card")
    if not _is_card(disk) and yes_this_disk != disk.name:
        raise ConfigError(
            f"{path} is not removable ({_text(disk / 'device/model') or 'no model'}, {_size(disk) / 1e9:.1f} GB)",
            f"all of it will be lost: if it is the one, say `--yes-this-disk {disk.name}`",
        )
    if _size(disk) == 0:
        raise ConfigError(f"{path} has no medium in it", "put a card into the reader")
    return Target(path, _size(disk), disk.name)


@contextmanager
def exclusively(target: Target) -> Iterator[int]:
    """A descriptor to write to; while it is open nobody can mount the disk. Raises `ConfigError`."""
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if target.name else 0)
    try:
        descriptor = os.open(target.path, flags)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {target.path}: {error.strerror}", "unmount it, and run this as root or a member of `disk`"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _disk(path: Path, number: int, kernel: Kernel) -> Path:
    """The disk's folder in /sys. Raises `ConfigError` for a partition."""
    folder = (kernel.sys / "dev/block" / f"{os.major(number)}:{os.minor(number)}").resolve()
    if not folder.is_dir():
        raise ConfigError(f"the kernel does not know {path}", "name a card, see `lsblk`")
    if (folder / "partition").exists():
        raise ConfigError(f"{path} is one partition of a disk", f"name the whole disk, /dev/{folder.parent.name}")
    return folder


def _refuse_busy(path: Path, disk: Path, kernel: Kernel) -> None:
    root = f"{os.major(Path('/').stat().st_dev)}:{os.minor(Path('/').stat().st_dev)}"
    for part in (disk, *_partitions(disk)):
        for user in (part, *_holders(part, kernel)):
            number = _text(user / "dev")
            places = _mounted(number, user.name, kernel)
            if number == root or "/" in places:
                raise ConfigError(f"{path} is the disk that this machine runs from", "name the card's, see `lsblk`")
            if places:
                raise ConfigError(f"/dev/{user.name} is mounted at {places[0]}", f"`umount {places[0]}` first")
            if number in _swaps(kernel):
                raise ConfigError(f"/dev/{user.name} is swapped to", f"`swapoff /dev/{user.name}` first")
        holders = [h.name for h in _holders(part, kernel)]
        if holders:
            raise ConfigError(f"/dev/{part.name} is part of {', '.join(holders)}", "name a disk that nothing stands on")


def _partitions(disk: Path) -> list[Path]:
    return sorted(child for child in disk.iterdir() if (child / "partition").exists())


def _holders(part: Path, kernel: Kernel) -> Iterator[Path]:
    """What is built on a disk or a partition: a volume group's volume, a RAID, an encrypted disk, and so on."""
    if (part / "holders").is_dir():
        for link in sorted((part / "holders").iterdir()):
            holder = kernel.sys / "class/block" / link.name
            yield holder
            yield from _holders(holder, kernel)


def _mounted(number: str, name: str, kernel: Kernel) -> list[str]:
    """Where it is mounted; a file system with a device number of its own, as btrfs, is known by its source."""
    places = []
    for line in _text(kernel.proc / "self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        source = [*rest.split(), "", ""][1]
        if fields.split()[2:3] == [number] or Path(source).name == name:
            places.append(fields.split()[4].encode().decode("unicode_escape"))
    return places


def _swaps(kernel: Kernel) -> set[str]:
    numbers = set()
    for line in _text(kernel.proc / "swaps").splitlines()[1:]:
        file = kernel.dev / line.split()[0].removeprefix("/dev/")
        if file.exists() and stat.S_ISBLK(file.stat().st_mode):
            numbers.add(f"{os.major(file.stat().st_rdev)}:{os.minor(file.stat().st_rdev)}")
    return numbers


def _refuse_loop(path: Path, kernel: Kernel) -> None:
    for backing in (kernel.sys / "block").glob("loop*/loop/backing_file"):
        if _text(backing) == str(path.resolve()):
            name = backing.parent.parent.name
            raise ConfigError(f"{path} is in use as /dev/{name}", f"`umount` it, then `losetup -d /dev/{name}`")


def _is_card(disk: Path) -> bool:
    """A card in the machine's own slot does not call itself removable, but SD."""
    return _text(disk / "removable") == "1" or _text(disk / "device/type") == "SD"


def _size(disk: Path) -> int:
    return int(_text(disk / "size") or 0) * 512


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
