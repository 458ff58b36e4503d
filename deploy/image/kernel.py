"""The initrd: busybox, the modules that lead to a disk, and a script that mounts the root by its label.

Made here rather than by mkinitramfs, which runs in the root file system: under emulation that takes most of an hour.
"""

import gzip
import shutil
import tempfile
from pathlib import Path

from fl_protocol.errors import ConfigError

from ..flash.tools import run_tool
from .system import System

# What UEFI machines with 64-bit ARM have their disk on: virtual, NVMe, SATA, SCSI, USB, SD and eMMC.
DISK_MODULES = (
    *("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_scsi", "nvme", "ahci", "ahci_platform", "sd_mod"),
    *("xhci_pci", "xhci_plat_hcd", "ehci_pci", "ehci_platform", "usb_storage", "uas"),
    *("mmc_block", "sdhci_acpi", "sdhci_pci", "ext4", "crc32c_generic"),
)
# Loaded whatever the hardware says: no hardware asks for them.
_ALWAYS = ("ext4", "crc32c_generic", "sd_mod", "mmc_block")

_INIT = """\
#!/bin/busybox sh
# Load what the hardware asks for until the root is there, mount it, and go on with its init.
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
export PATH=/bin
root="" init=/sbin/init tries=0
for word in $(busybox cat /proc/cmdline); do
  case "$word" in
    root=*) root="${word#root=}" ;;
    init=*) init="${word#init=}" ;;
  esac
done
for module in $always; do busybox modprobe -q "$module"; done
while :; do
  busybox find /sys/devices -name modalias -exec busybox cat '{}' + 2> /dev/null | busybox sort -u |
    while read -r alias; do busybox modprobe -q -b "$alias"; done
  device=$(busybox findfs "$root" 2> /dev/null) && break
  [ -b "$root" ] && device="$root" && break
  tries=$((tries + 1))
  [ "$tries" -ne 100 ] || echo "initrd: still no $root; disks: $(busybox ls /sys/class/block)" > /dev/kmsg
  busybox usleep 200000
done
# Its journal is replayed by the mount; systemd checks it, and makes it writable.
until busybox mount -t ext4 -o ro "$device" /root; do
  echo "initrd: cannot mount $device" > /dev/kmsg
  busybox sleep 5
done
busybox umount /sys /proc
busybox mount --move /dev /root/dev
exec busybox switch_root /root "$init"
"""


def pack_initrd(system: System) -> bytes:
    """Raises `ConfigError` for a kernel that could not mount its root."""
    busybox = system.root / "usr/bin/busybox"
    if not busybox.is_file():
        raise ConfigError("--system: it has no busybox", "remove the tar: it is made again")
    modules = system.root / "usr/lib/modules" / system.kernel
    wanted = _with_dependencies(modules)
    with tempfile.TemporaryDirectory(prefix="anabranch-initrd-") as folder:
        top = Path(folder) / "top"
        (top / "bin").mkdir(parents=True)
        shutil.copy(busybox, top / "bin/busybox")
        target = top / "lib/modules" / system.kernel
        for name in wanted:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(modules / name, target / name)
        for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            shutil.copy(modules / name, target / name)
        run_tool("depmod", "-b", str(top), system.kernel)
        (top / "init").write_text(_INIT.replace("$always", " ".join(_ALWAYS)))
        for path in (top / "init", top / "bin/busybox"):
            path.chmod(0o755)
        names = [str(path.relative_to(top)) for path in sorted(top.rglob("*"))]
        archive = run_tool(
            *("cpio", "--quiet", "--create", "--format=newc", "--owner=0:0", "--null", "--directory", str(top)),
            data="\0".join(names).encode(),
        )
    return gzip.compress(archive, 6)


def _with_dependencies(modules: Path) -> list[str]:
    """Files below `modules`, relative to it, of what is no part of the kernel itself. Raises `ConfigError`."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        name, _, others = line.partition(":")
        needs[name] = others.split()
    by_name = {_plain(name): name for name in needs}
    built_in = {_plain(name) for name in (modules / "modules.builtin").read_text().splitlines()}
    missing = {"ext4", "virtio_blk"} - by_name.keys() - built_in
    if missing:
        raise ConfigError(f"--kernel: it has no {' and no '.join(sorted(missing))}", "take linux-image-arm64")
    wanted = {by_name[name] for name in DISK_MODULES if name in by_name}
    return sorted(wanted | {other for name in wanted for other in needs[name]})


def _plain(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")
