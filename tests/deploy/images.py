"""Images as stock ones are: a partition table, a FAT boot partition with cloud-init's files, a root."""

import json
import subprocess
from pathlib import Path

from deploy.flash.tools import find_tool, run_tool

START_MB = 4
ROOT_MB = 8
TICKET = """\
fleet = "fans"
claim = "c1ab2cd3ef45"
secret = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
public_key = "f0ef195228cfa410ac316833015256799c040b982495c60f15f90981b085f426"
issued = 1764000000
ca = '''
-----BEGIN CERTIFICATE-----
never read here
-----END CERTIFICATE-----
'''

[broker]
host = "gw.local"
port = 8883
enroll_port = 8884
"""
_TYPES = {
    "dos": ("c", "83"),
    "gpt": ("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "0FC63DAF-8483-4772-8E79-3D69D8477DE4"),
}


def make_image(
    path: Path, *, boot_mb: int = 40, label: str = "bootfs", table: str = "dos", seeded: bool = True, fat: int = 32
) -> Path:
    """Write one; `seeded` ones have the files by which cloud-init is known to be in them."""
    boot, root = _TYPES[table]
    with path.open("wb") as file:
        file.truncate((START_MB + boot_mb + ROOT_MB + 1) << 20)
    lines = f"label: {table}\nstart={START_MB}MiB,size={boot_mb}MiB,type={boot}\nsize={ROOT_MB}MiB,type={root}\n"
    run_tool("sfdisk", "--quiet", str(path), data=lines.encode())
    command = [find_tool("mkfs.vfat"), "-F", str(fat), "-n", label, "--offset", str(START_MB * 2048)]
    subprocess.run([*command, str(path), str(boot_mb * 1024)], check=True, capture_output=True)
    for name in ("meta-data", "user-data", "network-config") if seeded else ():
        run_tool("mcopy", "-i", at(path), "-", f"::/{name}", data=b"# the image's own\n")
    return path


def at(image: Path) -> str:
    """How mtools names its boot partition."""
    return f"{image}@@{START_MB << 20}"


def check_fat(image: Path, folder: Path) -> None:
    """fsck finds nothing wrong with the boot partition."""
    part = folder / "boot.fat"
    with image.open("rb") as file:
        file.seek(START_MB << 20)
        part.write_bytes(file.read(_sizes(image)[0]))
    result = subprocess.run([find_tool("fsck.vfat"), "-n", str(part)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def _sizes(image: Path) -> list[int]:
    table = json.loads(run_tool("sfdisk", "--json", str(image)))["partitiontable"]
    return [p["size"] * 512 for p in table["partitions"]]
