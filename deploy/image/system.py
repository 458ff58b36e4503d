"""The Debian below the agent: made by mmdebstrap from Debian's packages, kept as a tar, unpacked into a folder."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.errors import ConfigError

from ..flash.tools import find_tool, run_tool

SUITE, PYTHON = "bookworm", "3.11"
PACKAGES = (
    *("systemd", "systemd-sysv", "systemd-resolved", "systemd-timesyncd", "systemd-boot-efi", "udev", "dbus", "kmod"),
    *("cloud-init", "cloud-guest-utils", "fdisk", "e2fsprogs", "openssh-server", "sudo", "iproute2", "procps"),
    *("ca-certificates", "python3", "busybox-static"),
)
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")

# The kernel is unpacked and not installed: its postinst would run mkinitramfs under emulation, and `kernel.py` packs a
# smaller initrd in a second. `$1` is the root; apt is the machine's own, as mmdebstrap has set it up for the root.
_KERNEL = """\
set -eu
kernel=$(APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-cache depends --important {package} |
  sed -n 's/^ *Depends: \\(linux-image-[^ ]*\\)$/\\1/p')
[ -n "$kernel" ] || kernel={package}
mkdir "$1/tmp/kernel" "$1/tmp/kernel/files"
cd "$1/tmp/kernel"
APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --quiet=2 -o APT::Sandbox::User=root download "$kernel"
dpkg-deb --extract ./*.deb files
mkdir -p "$1/usr/lib/modules"
cp -a files/lib/modules/. "$1/usr/lib/modules/"
cp -a files/boot/vmlinuz-* "$1/boot/"
for version in files/lib/modules/*; do depmod -b "$1" "${{version##*/}}"; done
cd / && rm -rf "$1/tmp/kernel"
"""


@dataclass(frozen=True)
class System:
    """An unpacked root file system; `kernel` is the version of the one kernel in it."""

    root: Path
    kernel: str


def recipe(arch: str, kernel: str) -> list[str]:
    """mmdebstrap's arguments, but for the file that it writes: what this says is what the tar is."""
    words = ["--variant=minbase", f"--architectures={arch}", f"--include={','.join(PACKAGES)}"]
    words += ["--aptopt=Acquire::Languages none", "--aptopt=APT::Install-Recommends false"]
    words += [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT]
    words += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
    return [*words, f"--customize-hook={_KERNEL.format(package=kernel)}", SUITE]


def build_system(tar: Path, arch: str, kernel: str, tell: Callable[[str], None]) -> None:
    """Write a root file system with a kernel to `tar`; ten minutes under emulation. Raises `ConfigError`."""
    find_tool("depmod")
    new = tar.with_name(f".{tar.name}.new.tar")
    try:
        _watch([find_tool("mmdebstrap"), *recipe(arch, kernel), str(new)], tell)
        new.replace(tar)
    finally:
        new.unlink(missing_ok=True)


def unpack_system(tar: Path, root: Path) -> System:
    """The tar's files below `root`, owners and all: only root can. Raises `ConfigError`."""
    root.mkdir()
    run_tool("tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", str(tar), "-C", str(root))
    kernels = sorted(path.name.removeprefix("vmlinuz-") for path in (root / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1 or not (root / "usr/lib/modules" / kernels[0]).is_dir():
        raise ConfigError(f"--system: {tar} has {len(kernels)} kernels, not one", "remove it: it is made again")
    return System(root, kernels[0])


def _watch(command: list[str], tell: Callable[[str], None]) -> None:
    """Run it, telling its steps (`I: ...`) as they come. Raises `ConfigError` with its last complaint."""
    last = "it does not say why"
    environment = {**os.environ, "LC_ALL": "C"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            kind, _, words = line.strip().partition(": ")
            if kind == "I":
                tell(words)
            elif words and kind in ("E", "W"):
                last = words
    if process.returncode != 0:
        raise ConfigError(
            f"mmdebstrap: {last}",
            "foreign packages need `apt install qemu-user-static binfmt-support`, and Debian's mirror within reach",
        )
