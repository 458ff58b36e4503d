"""Slow: our own image in an emulated 64-bit ARM machine, from UEFI to a committed update; power cuts; copies.

The Debian below the agent is made once, under emulation (minutes), and kept in ~/.cache/anabranch-tests. Each step's
wall time is printed.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from anabranch.datasets.fan_vibration import load_all, write_training_folder
from broker_aggregator.store_reader import StoreReader
from deploy.flash.fat import FatFiles
from deploy.flash.partitions import boot_partition
from fl_protocol.codec import decode_as
from fl_protocol.messages import DeviceState
from tests.deploy.emulator import GATEWAY, KERNEL, Emulated, look, put_files, run, system_tar
from tests.deploy.rig import ROOT, Gateway, deploy, topic
from tests.support.forwarder import Forwarder
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
AGENT, FIRST = "anabranch-agent.service", "anabranch-first-boot.service"
ONE, TWO = "arm-1", "arm-2"
BOOT_S = 900  # from power on to anything that a boot ends with; 100 s on two free cores
WORK_S = 600
BUNDLE = ROOT / "anabranch/data/fan_vibration.bundle"
TASK = f"""\
task = "fan"
bundle = "{BUNDLE}"
evaluation = "validation.npz"
start = true

[plan]
buffer = 1
local_epochs = 20
stop = {{ versions = 1000 }}
"""


class Steps:
    """Wall times, told as they come, past pytest's capture."""

    def __init__(self, config: pytest.Config) -> None:
        self._capture = config.pluginmanager.getplugin("capturemanager")
        self._at = time.monotonic()

    def begin(self) -> None:
        self._at = time.monotonic()

    def took(self, what: str) -> None:
        """Since `begin` was called."""
        with self._capture.global_and_fixture_disabled():
            sys.stdout.write(f"\n  {time.monotonic() - self._at:6.1f} s  {what}")
            sys.stdout.flush()


class Watch:
    """All that devices say, and when: the state of each, and whether it fetches something."""

    def __init__(self, gateway: Gateway) -> None:
        self._probe = gateway.service("aggregator", client_id="watch")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def states(self, device: str) -> list[str]:
        """In their order, each as often as it was said."""
        said = [m.payload for m in list(self._probe.messages) if m.topic == topic(f"dev/{device}/state")]
        return [decode_as(DeviceState, payload).state for payload in said if payload]

    def fetches(self, device: str) -> int:
        """How often it has asked for chunks."""
        return sum(m.topic == topic(f"dev/{device}/up/get") for m in list(self._probe.messages))

    def close(self) -> None:
        self._over.set()
        self._thread.join(20)

    def _run(self) -> None:
        with self._probe as probe:
            for name in ("dev/+/state", "dev/+/up/get"):
                probe.subscribe(topic(name))
            probe.wait(self._over.is_set, 1e9)


@pytest.fixture(scope="module")
def steps(pytestconfig: pytest.Config) -> Steps:
    return Steps(pytestconfig)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arm64")


@pytest.fixture(scope="module")
def image(folder: Path, steps: Steps) -> Path:
    """No device's yet, from Debian's packages and our wheel."""
    steps.begin()
    made = folder / "fleet.img"
    new = "" if system_tar().exists() else ", with the Debian below it"
    done = deploy("image", made, "--system", system_tar(), "--kernel", KERNEL, "--json", timeout=3000)
    assert done.returncode == 0, done.stderr
    steps.took(f"the image is built{new}: {json.loads(done.stdout)['seconds']}")
    return made


@pytest.fixture(scope="module")
def gateway(folder: Path) -> Iterator[Gateway]:
    """As `gateway up` makes it, with a task that goes on for ever; guests reach it at 10.0.2.2."""
    gateway = Gateway(folder / "gw", name=GATEWAY)
    gateway.up()
    try:
        for program in ("broker", "enrollment", "aggregator"):
            gateway.start(program)
        x, y = load_all((40,)).validation
        np.savez(folder / "validation.npz", x=x, y=y)
        (folder / "task.toml").write_text(TASK)
        done = gateway.aggregator("task", "create", folder / "task.toml")
        assert done.returncode == 0, done.stderr
        yield gateway
    finally:
        gateway.stop()


@pytest.fixture
def watch(gateway: Gateway) -> Iterator[Watch]:
    watch = Watch(gateway)
    yield watch
    watch.close()


@pytest.fixture(scope="module")
def key(folder: Path) -> Path:
    """Who may log in at the devices."""
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key"))
    return folder / "key"


@pytest.fixture(scope="module")
def card(folder: Path, image: Path, gateway: Gateway, key: Path) -> Callable[[str], Path]:
    """The image with a device's ticket, and the examples that its sensors have written."""

    def make(name: str, port: int = 0) -> Path:
        made = folder / f"{name}.img"
        if made.exists():
            return made
        done = gateway.aggregator("device", "ticket", name, "--output", folder / "tickets")
        assert done.returncode == 0, done.stderr
        ticket = folder / "tickets" / f"{name}.toml"
        if port:  # the wire in between
            text = ticket.read_text()
            assert text.count(f"port = {gateway.port}\n") == 1
            ticket.write_text(text.replace(f"port = {gateway.port}\n", f"port = {port}\n"))
        run("cp", "--sparse=always", str(image), str(made))
        done = deploy("flash", made, "--ticket", ticket, "--ssh-key", key.with_suffix(".pub"), timeout=300)
        assert done.returncode == 0, done.stderr
        data = folder / "data"
        write_training_folder(40, data)
        put_files(made, "/var/lib/anabranch/data", sorted(data.iterdir()))
        return made

    return make


def counted(gateway: Gateway, device: str) -> int:
    """Updates of it that are in a version."""
    store = StoreReader(gateway.root / "var/lib/anabranch-gateway/store.sqlite")
    try:
        (row,) = store.query("SELECT count(*) AS n FROM ledger WHERE device = ? AND disposal = 'counted'", device)
        return int(row["n"])
    finally:
        store.close()


def boot_files(disk: Path) -> FatFiles:
    return FatFiles(disk, boot_partition(disk))


def test_the_image_is_no_device_yet(image: Path) -> None:
    """No identity, no host's key, no ticket, no login: what two devices must not share is not in it."""
    assert look(image, "cat /etc/machine-id") == ""
    assert "ssh_host" not in look(image, "ls -p /etc/ssh")
    assert "anabranch" not in look(image, "ls -p /var/lib")
    assert "/anabranch/" not in look(image, "ls -p /etc")
    locked = {line.split(":")[1][:1] for line in look(image, "cat /etc/shadow").splitlines()}
    assert locked <= {"*", "!"}
    assert {"EFI", "loader", "vmlinuz", "initrd.img", "user-data"} <= boot_files(image).names()
    assert "anabranch-ticket.toml" not in boot_files(image).names()


def test_from_an_image_to_a_committed_update(
    folder: Path, card: Callable[[str], Path], gateway: Gateway, key: Path, watch: Watch, steps: Steps
) -> None:
    """UEFI, systemd, first boot, enrolment by the claim, mutual TLS, bundle, training by onnxruntime, a new version."""
    steps.begin()
    device = Emulated(folder / ONE, card(ONE), key)
    steps.took(f"{ONE}: flashed with its ticket")
    steps.begin()
    device.start()
    try:
        wait_until(lambda: f"{ONE} has enrolled" in gateway.log("aggregator"), BOOT_S, f"it enrols: {device.said()}")
        steps.took("from power on to enrolled, connected over mutual TLS")
        wait_until(lambda: "training" in watch.states(ONE), WORK_S, f"it trains: {device.journal(AGENT)}")
        steps.took("... to the bundle received, training")
        wait_until(lambda: counted(gateway, ONE) >= 1, WORK_S, f"its update is counted: {device.journal(AGENT)}")
        steps.took("... to its update committed")
        wait_until(lambda: device.ssh("id -u") == "0", BOOT_S, "someone may log in")
        owner = device.ssh("id -u anabranch")
        assert device.ssh("stat -c %a:%u /etc/anabranch/ticket.toml") == f"600:{owner}"
        assert "anabranch-ticket.toml" not in device.ssh("ls /boot/firmware")
        assert device.ssh("systemctl --failed --plain --no-legend") == ""
        assert device.ssh("uname -m") == "aarch64"
        assert "onnxruntime" in device.ssh(f"cat /proc/$(systemctl show -P MainPID {AGENT})/maps")
        megabytes = int(device.ssh("df --output=size --block-size=1M / | tail -n 1"))
        assert megabytes > 3300, "the root has grown to its disk of 4096"
        (trained,) = [line for line in device.journal(AGENT).splitlines() if "trained from version 0" in line]
        steps.took(f"looked at; the agent says: {trained.split('INFO ')[-1]}")
        (folder / "machine-id").write_text(device.ssh("cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub"))
    finally:
        device.cut_power()


def test_power_cuts_and_the_second_ticket(
    folder: Path, card: Callable[..., Path], gateway: Gateway, key: Path, watch: Watch, steps: Steps
) -> None:
    """Cut in the middle of enrolment, of a download, of training: the next boot goes on, and it is one device."""
    wire = Forwarder(gateway.port)
    device = Emulated(folder / TWO, card(TWO, wire.port), key)

    def log() -> str:
        return gateway.log("aggregator")

    try:
        steps.begin()
        device.start()
        wait_until(lambda: f"{TWO}: certificate " in log(), BOOT_S, f"it asks for a certificate: {device.said()}")
        device.cut_power()
        assert f"{TWO} has enrolled" not in log(), "too late: nothing was cut"
        steps.took(f"{TWO}: power cut in its enrolment: a certificate was issued, and not used yet")

        steps.begin()
        wire.stall_after(BUNDLE.stat().st_size)  # with what is said besides, that is most of the bundle
        device.start()
        wait_until(lambda: f"{TWO} has enrolled" in log(), BOOT_S, f"it goes on with its enrolment: {device.said()}")
        steps.took("enrolled at the next boot, by itself")
        wait_until(lambda: wire.stalled, WORK_S, f"it fetches the bundle: {device.journal(AGENT)}")
        device.cut_power()
        assert watch.fetches(TWO) >= 1
        assert "training" not in watch.states(TWO), "too late: nothing was cut"
        steps.took("power cut in its download")
        wire.cut()
        wire.flow()

        steps.begin()
        device.start()
        wait_until(lambda: "training" in watch.states(TWO), BOOT_S + WORK_S, f"it fetches again: {device.said()}")
        device.cut_power()
        assert counted(gateway, TWO) == 0, "too late: nothing was cut"
        steps.took("the bundle received at the next boot, and power cut in its training")

        steps.begin()
        device.start()
        wait_until(lambda: counted(gateway, TWO) >= 1, BOOT_S + WORK_S, f"it trains again: {device.said()}")
        steps.took("its update committed at the next boot")
        wait_until(lambda: device.ssh("id -u") == "0", BOOT_S, "someone may log in")
        mine = device.ssh("cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub").splitlines()
        other = (folder / "machine-id").read_text().splitlines()
        assert len(mine) == len(other) == 2
        assert not set(mine) & set(other), "two devices of one image share nothing"
    finally:
        device.cut_power()
        wire.close()
    keys = {line.split()[-1] for line in log().splitlines() if f"{TWO}: certificate " in line}
    assert len(keys) == 1, "all of its requests were by one key"
    assert {ONE, TWO} <= {m.topic.split("/")[4] for m in watch._probe.messages}


def test_a_byte_copy_is_refused(
    folder: Path, card: Callable[[str], Path], gateway: Gateway, key: Path, steps: Steps
) -> None:
    """The same card again, ticket included: E_CLAIM on the device, and at the gateway."""
    thief = Emulated(folder / "copy", card(ONE), key)
    before = gateway.log("aggregator").count("E_CLAIM")
    steps.begin()
    thief.start()
    try:
        wait_until(lambda: gateway.log("aggregator").count("E_CLAIM") > before, BOOT_S, f"refused: {thief.said()}")
        steps.took("from power on to the copy refused, and told by the gateway")
        wait_until(lambda: "E_CLAIM" in thief.journal(AGENT), BOOT_S, "the device says so, too")
        assert thief.ssh("ls /var/lib/anabranch/identity/identity.toml") == ""
    finally:
        thief.cut_power()
