"""The boot partition of an image or a card: where it begins, found by sfdisk and its own first sector. Reads only."""

import json
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.errors import ConfigError

from .tools import run_tool

BOOT_LABELS = ("bootfs", "system-boot", "boot", "CIDATA")  # Raspberry Pi OS, Ubuntu, older Pi images, NoCloud's own
_FAT_SECTOR_SIZES = (512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Partition:
    """A FAT partition: bytes, not sectors; `cluster` is what the smallest file takes."""

    number: int
    offset: int
    size: int
    cluster: int
    label: str


def boot_partition(path: Path) -> Partition:
    """The FAT partition that the device's cloud-init reads. Raises `ConfigError`."""
    found = []
    for number, (offset, size) in enumerate(_table(path), 1):
        fat = _fat(path, number, offset, size)
        if fat is not None:
            found.append(fat)
    for label in BOOT_LABELS:
        for fat in found:
            if fat.label.casefold() == label.casefold():
                return fat
    seen = ", ".join(f"{p.number}: {p.label or 'no label'}" for p in found) or "none"
    raise ConfigError(
        f"{path} has no boot partition that is called {' or '.join(BOOT_LABELS)}; its FAT partitions: {seen}",
        "take a stock image of Raspberry Pi OS or Ubuntu Server for the Raspberry Pi, unpacked (.img, not .img.xz)",
    )


def _table(path: Path) -> list[tuple[int, int]]:
    """Offset and size of each, in bytes. Raises `ConfigError` where there is no MBR and no GPT."""
    try:
        answer = json.loads(run_tool("sfdisk", "--json", str(path)))
        table = answer["partitiontable"]
        sector = int(table.get("sectorsize", 512))
        return [(p["start"] * sector, p["size"] * sector) for p in table.get("partitions", [])]
    except (ConfigError, ValueError, KeyError) as error:
        words = error.message if isinstance(error, ConfigError) else "no partition table"
        raise ConfigError(
            f"{path} is no disk image: {words}", "name an unpacked .img file, or a card that an image was written to"
        ) from None


def _fat(path: Path, number: int, offset: int, size: int) -> Partition | None:
    """The partition if its first sector is FAT's, whatever type the table gives it."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            head = file.read(512)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", "run this as root, or as a member of `disk`"
        ) from None
    if len(head) < 512 or head[510:] != b"\x55\xaa":
        return None
    sector, per_cluster = int.from_bytes(head[11:13], "little"), head[13]
    fat32 = head[82:87] == b"FAT32"
    if sector not in _FAT_SECTOR_SIZES or per_cluster == 0 or not (fat32 or head[54:57] == b"FAT"):
        return None
    label = head[71:82] if fat32 else head[43:54]
    return Partition(number, offset, size, sector * per_cluster, label.decode("ascii", "replace").strip())
