"""Slow: a real cloud-init in a booted system takes what `deploy flash` wrote, and the agent runs as installed."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from anabranch.datasets.fan_vibration import load_all, write_training_folder
from broker_aggregator.reading import status
from broker_aggregator.store_reader import StoreReader
from deploy.flash.tools import run_tool
from tests.deploy.containers import Container
from tests.deploy.images import TICKET, at, make_image
from tests.support.mosquitto import Mosquitto
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
AGENT, FIRST = "anabranch-agent.service", "anabranch-first-boot.service"
DONE = "var/lib/anabranch-first-boot/done"
REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = """\
[device]
id = "flashed"
fleet = "fans"

[gateway]
public_key = "{key}"

[broker]
host = "127.0.0.1"
port = {port}

[data]
path = "/var/lib/anabranch/data"
"""


def deploy(*arguments: str) -> str:
    """`python -m deploy`, as a person runs it."""
    return subprocess.run(
        [sys.executable, "-m", "deploy", *arguments], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels for this machine, from PyPI."""
    folder = tmp_path_factory.mktemp("kit") / "kit"
    deploy("wheelhouse", str(folder), "--arch", "amd64", "--python", "3.11")
    return folder


@pytest.fixture
def device(tmp_path: Path, kit: Path) -> Iterator[Container]:
    """A flashed device that was never on. Its boot partition is a folder: not every kernel here mounts FAT."""
    image, ticket, key = make_image(tmp_path / "card.img", boot_mb=120), tmp_path / "t.toml", tmp_path / "key"
    ticket.write_text(TICKET)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    deploy("flash", str(image), "--ticket", str(ticket), "--wheelhouse", str(kit), "--ssh-key", f"{key}.pub")
    container = Container(tmp_path, f"anabranch-{tmp_path.name[:40].replace('_', '-')}")
    run_tool("mcopy", "-s", "-n", "-i", at(image), "::/", str(container.boot))
    yield container
    container.cut_power()


def finished(device: Container) -> Callable[[], bool]:
    return lambda: (device.root / DONE).exists() and device.show(FIRST, "ActiveState") == "inactive"


def test_a_flashed_card_becomes_a_device_that_trains(device: Container, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """cloud-init runs, the ticket is moved, the agent is there with its unit, and trains inside the unit's sandbox."""
    device.start()
    wait_until(finished(device), 300, "the first boot is done")
    etc, boot = device.root / "etc/anabranch", device.boot
    owner = int(device.run("id", "-u", "anabranch"))
    ticket = etc / "ticket.toml"
    assert ticket.read_text() == TICKET
    assert (ticket.stat().st_mode & 0o777, ticket.stat().st_uid) == (0o600, owner)
    assert not (boot / "anabranch-ticket.toml").exists()
    secret = TICKET.split('secret = "')[1][:64]
    assert not [p for p in boot.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]
    assert device.run("/opt/anabranch/venv/bin/edge-agent", "--version").startswith("edge-agent")
    assert device.run("hostname") == "anabranch-c1ab2cd3ef45"
    assert "ssh-ed25519" in (device.root / "home/anabranch-admin/.ssh/authorized_keys").read_text()
    assert device.run("systemctl", "is-enabled", AGENT, FIRST).split() == ["enabled", "enabled"]
    wait_until(
        lambda: device.show(AGENT, "ExecMainStartTimestampMonotonic") not in ("", "0"), 60, "the unit was started"
    )

    gateway = Gateway(tmp_path / "gateway", mosquitto.port)
    try:
        _train(device, gateway, mosquitto.port)
    finally:
        gateway.stop()


def _train(device: Container, gateway: "Gateway", port: int) -> None:
    """With the identity given by hand: enrolment has its own tests."""
    write_training_folder(40, device.root / "var/lib/anabranch/data")
    device.run("chown", "-R", "anabranch:anabranch", "/var/lib/anabranch")
    (device.root / "etc/anabranch/agent.toml").write_text(TRAIN.format(key=gateway.key, port=port))
    drop = device.root / f"etc/systemd/system/{AGENT}.d"
    drop.mkdir()
    (drop / "short.conf").write_text("[Service]\nWatchdogSec=4\nRestartSec=1\n")
    device.run("systemctl", "daemon-reload")
    device.run("systemctl", "restart", AGENT)
    wait_until(
        lambda: "connected" in device.show(AGENT, "StatusText"), 60, f"READY and STATUS: {device.journal(AGENT)}"
    )
    assert device.show(AGENT, "ActiveState") == "active"
    identity = ["/opt/anabranch/venv/bin/edge-agent", "identity", "--config", "/etc/anabranch/agent.toml"]
    key = device.run("setpriv", "--reuid=anabranch", "--regid=anabranch", "--clear-groups", *identity).split()[-3]
    gateway.start_task(key)
    wait_until(lambda: gateway.version() >= 2, 180, f"two versions: {device.journal(AGENT)}")

    main = device.show(AGENT, "MainPID")
    device.run("kill", "-STOP", main)  # a loop that turns no more
    wait_until(
        lambda: device.show(AGENT, "MainPID") not in ("", "0", main) and device.show(AGENT, "ActiveState") == "active",
        60,
        "the watchdog starts it again",
    )
    assert "Watchdog timeout" in device.journal(AGENT)


@pytest.mark.parametrize(
    "moment", ["var/lib/cloud/instances", "etc/anabranch/ticket.toml", "opt/anabranch/venv/bin/python"]
)
def test_a_power_cut_in_the_first_boot_costs_a_boot(device: Container, moment: str) -> None:
    """Cut while cloud-init works, after the ticket was moved, in the middle of pip: the next boot ends it."""
    device.start()
    wait_until(lambda: (device.root / moment).exists(), 120, moment)
    device.cut_power()
    assert not (device.root / DONE).exists(), "too late: nothing was cut"
    device.start()
    wait_until(finished(device), 300, "the second boot is done")
    assert (device.root / "etc/anabranch/ticket.toml").read_text() == TICKET
    assert device.run("/opt/anabranch/venv/bin/edge-agent", "--version").startswith("edge-agent")
    assert device.show(AGENT, "UnitFileState") == "enabled"
    device.cut_power()
    before = (device.root / DONE).stat().st_mtime_ns
    device.start()
    wait_until(lambda: device.run("systemctl", "is-active", "cloud-init.target") == "active", 120, "a third boot")
    assert (device.root / DONE).stat().st_mtime_ns == before
    assert device.show(FIRST, "ConditionResult") == "no"


class Gateway:
    """A real one on this machine, with a task for one device."""

    def __init__(self, folder: Path, port: int) -> None:
        folder.mkdir()
        self._folder, self._config = folder, folder / "gateway.toml"
        self._config.write_text(
            f'[gateway]\nfleet = "fans"\ndata_dir = "data"\n\n[broker]\nhost = "127.0.0.1"\nport = {port}\n'
        )
        self.key = self._tell("identity").split()[-1]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "broker_aggregator", "run", "--config", str(self._config)],
                cwd=REPOSITORY,
                stderr=log,
            )

    def start_task(self, key: str) -> None:
        """Let the device in, and have it train the fans' model."""
        self._tell("device", "allow", "flashed", key)
        x, y = load_all((40,)).validation
        np.savez(self._folder / "validation.npz", x=x, y=y)
        (self._folder / "task.toml").write_text(
            f'task = "fan"\nbundle = "{REPOSITORY}/anabranch/data/fan_vibration.bundle"\n'
            'evaluation = "validation.npz"\nstart = true\n\n'
            "[plan]\nbuffer = 1\nlocal_epochs = 1\nstop = { versions = 3 }\n"
        )
        self._tell("task", "create", str(self._folder / "task.toml"))

    def version(self) -> int:
        """The newest."""
        return max(
            (int(task["version"]) for task in status(StoreReader(self._folder / "data/store.sqlite"))), default=0
        )

    def stop(self) -> None:
        """SIGTERM, as systemd would."""
        self._process.terminate()
        self._process.wait(20)

    def _tell(self, *words: str) -> str:
        command = [sys.executable, "-m", "broker_aggregator", *words, "--config", str(self._config)]
        return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=60).stdout


def test_a_debian_package_brings_its_own_python(tmp_path: Path, kit: Path) -> None:
    """Installed, started at boot, removed again; the configuration that an operator changed stays as it is."""
    deb = tmp_path / "agent.deb"
    deploy("deb", str(deb), "--wheelhouse", str(kit), "--with-python")
    device = Container(tmp_path, f"anabranch-deb-{tmp_path.name[-12:].replace('_', '-')}")
    shutil.copy(deb, device.root / "agent.deb")
    device.inside("dpkg", "--install", "/agent.deb")
    looked = "import onnxruntime, sqlite3, ssl, sys; print(sys.base_prefix)"
    assert device.inside("/opt/anabranch/venv/bin/python", "-c", looked) == "/opt/anabranch/python"
    assert device.inside("systemctl", "is-enabled", AGENT) == "enabled"
    config = device.root / "etc/anabranch/agent.toml"
    config.write_text("# mine\n")
    device.inside("dpkg", "--install", "/agent.deb")
    assert config.read_text() == "# mine\n"
    device.start()
    try:
        wait_until(
            lambda: device.show(AGENT, "ExecMainStartTimestampMonotonic") not in ("", "0"), 120, "it was started"
        )
        device.run("dpkg", "--remove", "anabranch-agent")
        assert not (device.root / "opt/anabranch").exists()
        assert config.exists()
        device.run("dpkg", "--purge", "anabranch-agent")
        assert not config.exists()
    finally:
        device.cut_power()
