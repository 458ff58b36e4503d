"""Onto the boot partition of one target: measured before the first byte, written, read back, compared."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.errors import ConfigError

from .fat import FatFiles
from .partitions import Partition
from .seed import IMAGE_MARK

CLOUD_INIT = ("meta-data", "user-data")
OWN_FOLDER = "anabranch"
MARGIN = 1 << 20  # cloud-init and the first boot write a little there too
Progress = Callable[[int], None]  # bytes more


@dataclass(frozen=True)
class Room:
    """Bytes of the boot partition: what the files take, what is free once an earlier flash's are gone."""

    needed: int
    free: int


def measure(image: Path, partition: Partition, files: Mapping[str, bytes], *, any_image: bool = False) -> Room:
    """What there is room for; reads only. Raises `ConfigError` for too little, and what the image cannot do."""
    fat = FatFiles(image, partition)
    names = fat.names()
    if not any_image and not set(CLOUD_INIT) <= names:
        raise ConfigError(
            f"{image}: its boot partition has no {' and no '.join(n for n in CLOUD_INIT if n not in names)}: "
            "this system does not ask cloud-init, and would never look at what is written",
            "take Raspberry Pi OS of October 2025 or newer, or Ubuntu Server; "
            "if you know that this one asks cloud-init's NoCloud, say --any-image",
        )
    if IMAGE_MARK in names and "network-config" in files:
        raise ConfigError(
            f"--wifi: {image} is an image of `deploy image`, which knows cables only",
            "leave --wifi out, or take a stock image",
        )
    old = [OWN_FOLDER, *(name for name in files if "/" not in name)]
    room = Room(fat.needed((n, len(d)) for n, d in files.items()), fat.free() + sum(fat.taken(n) for n in old))
    if room.needed + MARGIN > room.free:
        raise ConfigError(
            f"{image}: the boot partition {partition.label} is too full: the files take {room.needed / 1e6:.1f} MB, "
            f"{MARGIN / 1e6:.1f} MB must stay free, and there are {room.free / 1e6:.1f} MB",
            "take an image with a larger boot partition, or one that has the agent already, without --wheelhouse",
        )
    return room


def write_files(image: Path, partition: Partition, files: Mapping[str, bytes], progress: Progress) -> None:
    """Write them in their order, after taking an earlier flash's away. Raises `ConfigError`."""
    fat = FatFiles(image, partition)
    for name in ("user-data", OWN_FOLDER):  # from here to the last file the card does nothing
        fat.remove(name)
    for name, data in files.items():
        fat.write(name, data)
        progress(len(data))


def verify_files(image: Path, partition: Partition, files: Mapping[str, bytes], progress: Progress) -> None:
    """Read everything back. Raises `ConfigError` naming what is not what was written."""
    fat = FatFiles(image, partition)
    for name, data in files.items():
        if hashlib.sha256(fat.read(name)).digest() != hashlib.sha256(data).digest():
            raise ConfigError(f"{image}: {name} is not what was written", "the card is bad or a fake: throw it away")
        progress(len(data))
