"""What makes the Debian ours: mounts, network, cloud-init's ways, accounts left empty, and the agent's environment."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError

from ..flash.tools import run_tool
from ..flash.wheelhouse import platforms, read_wheelhouse
from .system import PYTHON, System

ROOT_LABEL, BOOT_LABEL = "anabranch-root", "bootfs"  # FAT's one as Raspberry Pi OS calls it: `deploy flash` knows it
_VENV = "opt/anabranch/venv"
_FILES = {
    "etc/fstab": f"""\
LABEL={ROOT_LABEL} / ext4 errors=remount-ro 0 1
LABEL={BOOT_LABEL} /boot/firmware vfat umask=0077,flush,errors=remount-ro 0 2
""",
    "etc/hostname": "anabranch\n",
    "etc/machine-id": "",  # each device makes its own
    # As it is on Raspberry Pi OS. The network is networkd's, not cloud-init's, which would bind it to the first
    # device's MAC address; and of cloud-init's modules those run that `deploy flash` asks for.
    "etc/cloud/cloud.cfg.d/99_anabranch.cfg": """\
datasource_list: [ NoCloud, None ]
datasource:
  NoCloud:
    seedfrom: file:///boot/firmware/
network: {config: disabled}
ssh_deletekeys: true
ssh_genkeytypes: [ed25519]
cloud_init_modules: [bootcmd, write-files, growpart, resizefs, set_hostname, update_hostname, update_etc_hosts,
  users-groups, ssh]
cloud_config_modules: []
cloud_final_modules: []
""",
    "etc/systemd/network/80-wired.network": "[Match]\nName=e*\n\n[Network]\nDHCP=yes\n",
}
_SERVICES = {
    "enable": ("systemd-networkd.service", "systemd-resolved.service", "systemd-timesyncd.service"),
    # ssh: `deploy flash --ssh-key` enables it. The rest is cloud-init's end, with nothing to do here.
    "disable": ("ssh.service", "systemd-networkd-wait-online.service"),
    "mask": ("cloud-config.service", "cloud-final.service"),
}


def configure(system: System) -> None:
    """Everything but the agent. Raises `ConfigError`."""
    root = system.root
    for name, text in _FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "boot/firmware").mkdir(exist_ok=True)
    # What was made while the packages were installed, or is the building machine's own.
    strays = [*(root / "etc/ssh").glob("ssh_host_*"), *(root / "etc").glob(".resolv.conf.*")]
    for path in [*strays, root / "etc/resolv.conf", root / "var/lib/dbus/machine-id"]:
        path.unlink(missing_ok=True)
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    for verb, units in _SERVICES.items():
        run_tool("systemctl", f"--root={root}", "--quiet", verb, *units)


def install_agent(system: System, kit: Path) -> str:
    """Unpack the wheels into the environment, as the first boot would; the agent's version. Raises `ConfigError`."""
    facts = json.loads((kit / "wheelhouse.json").read_text("utf-8"))
    if (facts["arch"], facts["python"]) != ("arm64", PYTHON):
        raise ConfigError(
            f"--wheelhouse: its wheels are for {facts['arch']} with Python {facts['python']}, the image is arm64 "
            f"with {PYTHON}",
            f"`python -m deploy wheelhouse {kit} --arch arm64 --python {PYTHON}`",
        )
    sums = read_wheelhouse(kit)["SHA256SUMS"]
    venv = system.root / _VENV
    site = venv / f"lib/python{PYTHON}/site-packages"
    (venv / "bin").mkdir(parents=True)
    site.parent.mkdir(parents=True)
    (venv / "lib64").symlink_to("lib")
    for name, target in ((f"python{PYTHON}", f"/usr/bin/python{PYTHON}"), ("python3", f"python{PYTHON}")):
        (venv / "bin" / name).symlink_to(target)
    (venv / "bin/python").symlink_to("python3")
    (venv / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON}\nexecutable = /usr/bin/python3\n"
    )
    with tempfile.TemporaryDirectory(prefix="anabranch-venv-") as folder:
        _pip(kit / "wheels", Path(folder) / "all")
        shutil.move(Path(folder) / "all", site)
    for script in sorted((site / "bin").iterdir()):
        _, rest = script.read_text("utf-8").split("\n", 1)
        (venv / "bin" / script.name).write_text(f"#!/{_VENV}/bin/python\n{rest}")
        (venv / "bin" / script.name).chmod(0o755)
    shutil.rmtree(site / "bin")
    for record in site.glob("*.dist-info/RECORD"):  # where the scripts are now: pip replaces them when it updates
        text = record.read_text("utf-8")
        record.write_text(re.sub(r"(?m)^\.\./\.\./bin/([^,]+),.*$", r"../../../bin/\1,,", text), "utf-8")
    if f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHON:  # another Python's bytecode would be ignored
        compiling = [sys.executable, "-m", "compileall", "-q", "-j", "2", "-s", str(system.root), "-p", "/", str(site)]
        subprocess.run(compiling, check=False, capture_output=True)  # some packages carry tests that are no Python
    write_durably(venv / "installed", sums, mode=0o644)
    return next(site.glob("anabranch-*.dist-info")).stem.split("-")[1]


def _pip(wheels: Path, into: Path) -> None:
    """Raises `ConfigError` where the wheels are not enough."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-compile"]
    command += ["--no-index", "--find-links", str(wheels), "--target", str(into), "--only-binary=:all:"]
    command += [*platforms("arm64", PYTHON), "anabranch[agent]"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        words = result.stderr.strip().splitlines() or ["it does not say why"]
        raise ConfigError(f"pip install: {words[-1]}", f"make the wheelhouse again: {wheels.parent}")
