"""Slow: from `deploy flash` to a committed update by a ticket alone, in a booted system; and a copy of the card."""

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from anabranch.datasets.fan_vibration import load_all, write_training_folder
from broker_aggregator.reading import status
from broker_aggregator.store_reader import StoreReader
from deploy.flash.tools import run_tool
from tests.deploy.containers import Container
from tests.deploy.images import at, make_image
from tests.deploy.rig import ROOT, Gateway, deploy
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
AGENT = "anabranch-agent.service"
FAN, COPY = "fan-40", "fan-40-copy"
LIMIT_S = 300  # what a person with a card waits for


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """As `gateway up` makes it, devices reach it at this machine's own address."""
    gateway = Gateway(tmp_path / "gw", name="127.0.0.1")
    gateway.up()
    try:
        for program in ("broker", "enrollment", "aggregator"):
            gateway.start(program)
        yield gateway
    finally:
        gateway.stop()


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """The wheels for this machine, from PyPI."""
    folder = tmp_path / "kit"
    done = deploy("wheelhouse", folder, "--arch", "amd64", "--python", f"3.{sys.version_info.minor}", timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


def create_task(gateway: Gateway, folder: Path) -> None:
    """One device's updates make a version."""
    x, y = load_all((40,)).validation
    np.savez(folder / "validation.npz", x=x, y=y)
    (folder / "task.toml").write_text(
        f'task = "fan"\nbundle = "{ROOT}/anabranch/data/fan_vibration.bundle"\n'
        'evaluation = "validation.npz"\nstart = true\n\n'
        "[plan]\nbuffer = 1\nlocal_epochs = 1\nstop = { versions = 3 }\n"
    )
    done = gateway.aggregator("task", "create", folder / "task.toml")
    assert done.returncode == 0, done.stderr


def version(gateway: Gateway) -> int:
    """The newest."""
    store = StoreReader(gateway.root / "var/lib/anabranch-gateway/store.sqlite")
    return max((int(task["version"]) for task in status(store)), default=0)


def flashed(folder: Path, name: str, image: Path) -> Container:
    """A device with that card in it. Its boot partition is a folder: not every kernel here mounts FAT."""
    (folder / name).mkdir()
    device = Container(folder / name, f"anabranch-{name}")
    run_tool("mcopy", "-s", "-n", "-i", at(image), "::/", str(device.boot))
    data = device.root / "var/lib/anabranch/data"  # what its sensors have written already
    write_training_folder(40, data)
    return device


def test_from_a_card_to_a_committed_update(gateway: Gateway, kit: Path, tmp_path: Path) -> None:
    """No key is typed or copied by hand; the byte copy of the card, ticket included, is E_CLAIM on both sides."""
    create_task(gateway, tmp_path)
    began = time.monotonic()
    made = gateway.aggregator("device", "ticket", FAN, "--output", tmp_path / "tickets")
    assert made.returncode == 0, made.stderr
    image = make_image(tmp_path / "card.img", boot_mb=120)
    done = deploy("flash", image, "--ticket", tmp_path / "tickets" / f"{FAN}.toml", "--wheelhouse", kit, timeout=300)
    assert done.returncode == 0, done.stderr
    copy = shutil.copy(image, tmp_path / "copy.img")

    device = flashed(tmp_path, FAN, image)
    try:
        device.start()
        wait_until(lambda: f"{FAN} has enrolled" in gateway.log("aggregator"), LIMIT_S, "the device enrols")
        wait_until(lambda: version(gateway) >= 1, LIMIT_S, "its update is counted")
        took = time.monotonic() - began
        sys.stdout.write(f"\nfrom the ticket to the first committed update: {took:.0f} s\n")
        assert took < LIMIT_S
        assert gateway.aggregator("device", "tickets", "--json").stdout.strip() == "[]"

        thief = flashed(tmp_path, COPY, Path(copy))
        try:
            thief.start()
            wait_until(lambda: "E_CLAIM" in thief.journal(AGENT), LIMIT_S, "the copy is refused")
        finally:
            thief.cut_power()
        assert "E_CLAIM" in gateway.log("aggregator")

        before = version(gateway)
        device.cut_power()
        device.start()
        wait_until(lambda: "connected" in device.show(AGENT, "StatusText"), LIMIT_S, "it is back by itself")
        assert version(gateway) >= before
    finally:
        device.cut_power()
