"""A device in a container: a real root file system with systemd and cloud-init, booted by systemd-nspawn."""

import os
import signal
import subprocess
from pathlib import Path

from tests.support.waiting import wait_until

PACKAGES = "systemd,systemd-sysv,dbus,cloud-init,python3,passwd,udev,iproute2,openssh-server,ca-certificates"
SUITE = "bookworm"  # Python 3.11
# As Raspberry Pi OS has it in /etc/cloud/cloud.cfg.d.
_DATASOURCE = """\
datasource_list: [ NoCloud, None ]
datasource:
  NoCloud:
    seedfrom: file:///boot/firmware/
"""


def base_system() -> Path:
    """A tar of a root file system with cloud-init, made once: it takes a minute or two."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "anabranch-tests"
    tar = cache / f"{SUITE}-cloud-init.tar"
    if not tar.exists():
        cache.mkdir(parents=True, exist_ok=True)
        new = tar.with_suffix(".new.tar")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={PACKAGES}", SUITE]
        subprocess.run([*command, str(new)], check=True, timeout=900)
        new.rename(tar)
    return tar


class Container:
    """One device's disk, and at most one boot of it at a time."""

    def __init__(self, folder: Path, name: str) -> None:
        self.root, self.console, self._name = folder / "root", folder / "console.log", name
        self.boot = self.root / "boot/firmware"
        self._process: subprocess.Popen[bytes] | None = None
        self.root.mkdir()
        subprocess.run(["tar", "-xf", str(base_system()), "-C", str(self.root)], check=True)
        (self.root / "etc/cloud/cloud.cfg.d/99_pi.cfg").write_text(_DATASOURCE)
        (self.root / "etc/machine-id").write_text("")
        self.boot.mkdir(parents=True)

    def start(self) -> None:
        """Power on. The network is the host's."""
        command = ["systemd-nspawn", "--quiet", f"--directory={self.root}", f"--machine={self._name}"]
        options = ["--register=no", "--keep-unit", "--boot", "--kill-signal=SIGRTMIN+3"]
        with self.console.open("ab") as console:
            self._process = subprocess.Popen(
                [*command, *options], stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
            )
        wait_until(lambda: self._leader, 20, "the container's first process")

    def run(self, *command: str) -> str:
        """What a command in it prints; empty while it is not up."""
        leader = self._leader
        if not leader:
            return ""
        enter = ["nsenter", "--target", leader, "--all", *command]
        return subprocess.run(enter, capture_output=True, text=True, check=False).stdout.strip()

    def inside(self, *command: str) -> str:
        """What a command says in the file system while the device is off, as when an image is made."""
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}
        change = ["chroot", str(self.root), *command]
        result = subprocess.run(change, capture_output=True, text=True, env=environ, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout.strip()

    def show(self, unit: str, field: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", field, unit)

    def journal(self, unit: str) -> str:
        """What a unit said, for a failing test."""
        return self.run("journalctl", "--no-pager", "--lines=40", "--unit", unit)

    def cut_power(self) -> None:
        """Every process of it ends at once; nothing is said goodbye to."""
        if self._process is not None:
            leader = self._leader
            if leader:
                os.kill(int(leader), signal.SIGKILL)  # the first process of a namespace takes all others with it
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def _leader(self) -> str:
        if self._process is None:
            return ""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        try:
            return (children.read_text().split() or [""])[0]
        except OSError:
            return ""
