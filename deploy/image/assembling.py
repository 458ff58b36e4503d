"""The disk: a GPT with an EFI system partition (systemd-boot, kernel, initrd) and the root, made without mounting."""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.errors import ConfigError

from ..flash.fat import FatFiles
from ..flash.partitions import boot_partition
from ..flash.seed import IMAGE_MARK
from ..flash.tools import run_tool
from .filling import BOOT_LABEL, ROOT_LABEL
from .system import System

MIB = 1 << 20
_START, BOOT_MIB, _END = 1, 192, 1  # the boot partition has room for a wheelhouse; GPT's second copy is at the end
_ESP, _ROOT_ARM64 = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"
ROOM_MIB = 256  # what has to stay free: until the first boot has grown the root, the journal and the data are there
_LOADER = "usr/lib/systemd/boot/efi/systemd-bootaa64.efi"
_ENTRY = f"""\
title Anabranch
linux /vmlinuz
initrd /initrd.img
options root=LABEL={ROOT_LABEL} ro quiet systemd.show_status=yes
"""


@dataclass(frozen=True)
class Image:
    """Bytes of the whole, of the files in the root, and of kernel and initrd."""

    path: Path
    size: int
    root_used: int
    boot_used: int


def assemble(out: Path, system: System, initrd: bytes, size_mib: int, facts: dict[str, str]) -> Image:
    """Write the image, sparse, under its name when it is whole. Raises `ConfigError`."""
    loader = system.root / _LOADER
    if not loader.is_file():
        raise ConfigError(f"--system: it has no {_LOADER}", "remove the tar: it is made again")
    kernel = (system.root / "boot" / f"vmlinuz-{system.kernel}").read_bytes()
    files = {
        "EFI/BOOT/BOOTAA64.EFI": loader.read_bytes(),
        "loader/loader.conf": b"timeout 0\neditor no\n",
        "vmlinuz": kernel,
        "initrd.img": initrd,
        "loader/entries/anabranch.conf": _ENTRY.encode(),
        # Not this image's own: `deploy flash` sees by them that the system asks cloud-init.
        "meta-data": b"instance-id: anabranch-blank\n",
        "user-data": b"#cloud-config\n{}\n",
        IMAGE_MARK: (json.dumps(facts, indent=2) + "\n").encode(),
    }
    used = int(run_tool("du", "-sxB1", str(system.root)).split()[0])
    least = (used + used // 16) // MIB + ROOM_MIB + BOOT_MIB + _START + _END
    if size_mib < least:
        raise ConfigError(f"--size: {size_mib} MiB is too small", f"the files need {least} at least")
    new = out.with_name(f".{out.name}.new")
    try:
        _partition(new, size_mib)
        _make_root(new, system.root, size_mib - _START - BOOT_MIB - _END)
        _make_boot(new, files)
        new.replace(out)
    finally:
        new.unlink(missing_ok=True)
    return Image(out, size_mib * MIB, used, sum(map(len, files.values())))


def _partition(path: Path, size_mib: int) -> None:
    with path.open("wb") as file:
        file.truncate(size_mib * MIB)
    root_mib = size_mib - _START - BOOT_MIB - _END
    lines = [
        "label: gpt",
        f"start={_START}MiB, size={BOOT_MIB}MiB, type={_ESP}, name=boot",
        f"start={_START + BOOT_MIB}MiB, size={root_mib}MiB, type={_ROOT_ARM64}, name=root",
    ]
    run_tool("sfdisk", "--quiet", str(path), data="\n".join(lines).encode())


def _make_root(path: Path, tree: Path, size_mib: int) -> None:
    offset = (_START + BOOT_MIB) * MIB
    run_tool(
        *("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", ROOT_LABEL, "-m", "1", "-U", str(uuid.uuid4())),
        *("-E", f"offset={offset},root_owner=0:0,lazy_itable_init=1", "-d", str(tree), str(path), f"{size_mib}M"),
    )


def _make_boot(path: Path, files: dict[str, bytes]) -> None:
    run_tool(
        *("mkfs.vfat", "-F", "32", "-s", "4", "-n", BOOT_LABEL, "--offset", str(_START * MIB // 512)),
        *(str(path), str(BOOT_MIB * MIB // 1024)),
    )
    fat = FatFiles(path, boot_partition(path))
    for name, data in files.items():
        fat.write(name, data)
