"""A device that is not here: a 64-bit ARM machine with UEFI in qemu, with a disk that outlives its power cuts."""

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from deploy.flash.tools import find_tool, run_tool
from deploy.image.system import SUITE, recipe
from tests.support.mosquitto import free_port

FIRMWARE = Path("/usr/share/qemu-efi-aarch64/QEMU_EFI.fd")  # Debian's qemu-efi-aarch64
KERNEL = "linux-image-arm64"
GATEWAY = "10.0.2.2"  # where a guest finds this machine's own loopback
CPU = "cortex-a72"  # a Raspberry Pi 4's


class Emulated:
    """One machine: its disk is a copy of `image`, and it is off. Whoever has `key` may log in as anabranch-admin."""

    def __init__(self, folder: Path, image: Path, key: Path, disk_mib: int = 4096) -> None:
        folder.mkdir()
        self.disk, self.console = folder / "disk.img", folder / "console.log"
        run("cp", "--sparse=always", str(image), str(self.disk))
        os.truncate(self.disk, disk_mib << 20)  # a card is larger than the image on it
        self._key, self._known = key, folder / "known_hosts"
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0

    def start(self) -> None:
        """Power on."""
        assert self._process is None
        assert FIRMWARE.exists(), "apt install qemu-system-arm qemu-efi-aarch64"
        command = [find_tool("nice"), "-n", "5", find_tool("qemu-system-aarch64"), "-machine", "virt", "-cpu", CPU]
        command += ["-accel", "tcg,thread=multi", "-smp", "2", "-m", "1024", "-bios", str(FIRMWARE)]
        command += ["-display", "none", "-monitor", "none", "-serial", f"file:{self.console}", "-no-reboot"]
        command += ["-drive", f"if=none,id=disk,format=raw,file={self.disk}", "-device", "virtio-blk-pci,drive=disk"]
        command += ["-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self._port}-:22"]
        command += ["-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"]
        with self.console.with_name("qemu.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.started_at = time.monotonic()

    def cut_power(self) -> None:
        """`kill -9` of the emulator: what the guest had not flushed is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    @property
    def on(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def said(self) -> str:
        """All that was on its serial line since it was last switched on."""
        return self.console.read_text("utf-8", "replace") if self.console.exists() else ""

    def ssh(self, command: str, seconds: float = 120) -> str:
        """What a command says, as root; empty while nobody answers."""
        options = ["StrictHostKeyChecking=no", f"UserKnownHostsFile={self._known}", "BatchMode=yes", "LogLevel=ERROR"]
        options += ["ConnectTimeout=60", "ConnectionAttempts=1"]
        words = [word for option in options for word in ("-o", option)]
        ssh = ["ssh", "-i", str(self._key), "-p", str(self._port), *words, "anabranch-admin@127.0.0.1"]
        try:
            done = subprocess.run(
                [*ssh, f"sudo sh -c {quoted(command)}"], capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    def journal(self, unit: str, lines: int = 60) -> str:
        """What a unit said."""
        return self.ssh(f"journalctl --no-pager --lines={lines} --unit={unit}")


def quoted(text: str) -> str:
    """One word for a shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def root_offset(image: Path) -> int:
    """Where its root begins, in bytes."""
    table = json.loads(run_tool("sfdisk", "--json", str(image)))["partitiontable"]
    return int(table["partitions"][1]["start"]) * 512


def put_files(image: Path, folder: str, files: Iterable[Path]) -> None:
    """Into a new folder of its root, without mounting: what a device's sensors have written already."""
    parents = [str(path) for path in reversed(PurePosixPath(folder).parents) if path.name]
    lines = [f"mkdir {path}" for path in (*parents, folder)]  # it complains of those that are there, and goes on
    lines += [f"write {path} {folder}/{path.name}" for path in files]
    run_tool("debugfs", "-w", "-f", "-", f"{image}?offset={root_offset(image)}", data="\n".join(lines).encode())
    missing = {path.name for path in files} - set(look(image, f"ls -p {folder}").replace("/", " ").split())
    assert not missing, missing


def look(image: Path, command: str) -> str:
    """What debugfs says of a root."""
    return run_tool("debugfs", "-R", command, f"{image}?offset={root_offset(image)}").decode()


def run(*command: str, seconds: float = 600) -> str:
    """What a program says; it has to succeed."""
    done = subprocess.run(
        [shutil.which(command[0]) or command[0], *command[1:]],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


def system_tar() -> Path:
    """Where the Debian of this recipe is kept, whether it is there or not; making it takes minutes."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "anabranch-tests"
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256("\0".join(recipe("arm64", KERNEL)).encode()).hexdigest()
    return cache / f"{SUITE}-arm64-{digest[:12]}.tar"
