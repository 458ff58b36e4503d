"""Other people's programs, by subprocess: what they say, or one sentence of why not."""

import os
import shutil
import subprocess

from fl_protocol.errors import ConfigError

PACKAGES = {
    "mcopy": "mtools",
    "mdir": "mtools",
    "mdel": "mtools",
    "mdeltree": "mtools",
    "mdu": "mtools",
    "mmd": "mtools",
    "sfdisk": "fdisk",
    "dpkg-deb": "dpkg",
    "xz": "xz-utils",
    "depmod": "kmod",
    "systemctl": "systemd",
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
}
_ADMIN = "/usr/sbin:/sbin:/usr/local/sbin"  # where Debian keeps sfdisk, and users do not look
# The user's own mtools.conf must not decide; a Pi's boot partition has a geometry that mtools would refuse.
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1", "MTOOLSRC": "/dev/null"}


def find_tool(name: str) -> str:
    """The program's path. Raises `ConfigError` naming the package that has it."""
    found = shutil.which(name) or shutil.which(name, path=_ADMIN)
    if found is None:
        raise ConfigError(f"there is no {name} here", f"`apt install {PACKAGES.get(name, name)}`")
    return found


def run_tool(*command: str, data: bytes = b"", check: bool = True) -> bytes:
    """What the program writes, given `data`. Raises `ConfigError` with its last words, unless told not to `check`."""
    result = subprocess.run(
        [find_tool(command[0]), *command[1:]],
        input=data,
        capture_output=True,
        env={**os.environ, **_ENVIRONMENT},
        check=False,
    )
    if check and result.returncode != 0:
        words = result.stderr.decode("utf-8", "replace").strip().splitlines() or [f"it ended with {result.returncode}"]
        raise ConfigError(f"{command[0]}: {words[-1]}", f"see what `{' '.join(command)}` says")
    return result.stdout
