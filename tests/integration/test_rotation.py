"""The fleet's key is rotated under real programs, with kill -9 on both sides."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_protocol.keyfile import load_or_create_key
from tests.support.gatehouse import Gatehouse
from tests.support.learning import give_examples, learning_house, status, wait_version
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Gatehouse]:
    house, _ = learning_house(tmp_path)
    yield house
    house.close()


def key(house: Gatehouse) -> str:
    return load_or_create_key(house.folder / "data/fleet.key").public


def goes_on(house: Gatehouse, name: str) -> None:
    """Two more versions, by a device that believes the newest key."""
    wait_until(lambda: f"the fleet's key is {key(house)}" in house.log(name), 60, f"{name} follows")
    wait_version(house, status(house)["version"] + 2, 120)


def test_devices_follow_and_tickets_stay_good(house: Gatehouse) -> None:
    """One that is there, one that slept through two rotations, one whose ticket names the first key of all."""
    ticket = house.ticket("fan-02")
    first = key(house)
    done = house.command("rotate-key", "--json")
    assert done.returncode == 0, done.stderr
    assert key(house) != first
    goes_on(house, "card")
    house.kill("card")
    assert house.command("rotate-key").returncode == 0
    house.boot(house.folder / "card")
    goes_on(house, "card")
    late = house.device("late", ticket)
    give_examples(late / "data")
    house.boot(late)
    wait_until(lambda: "fan-02: update" in house.log("late") or "accepted" in house.log("late"), 90, "it learns")
    assert key(house) in (late / "identity" / "identity.toml").read_text()
    assert house.command("rotate-key", "--void-tickets").returncode == 0
    goes_on(house, "late")


def test_killed_in_the_middle(house: Gatehouse) -> None:
    """The gateway when its new key is on the disk, the device when it has heard of it: both go on."""
    first, chain = key(house), house.folder / "data/fleet.chain"
    command = [sys.executable, "-m", "broker_aggregator", "rotate-key", "--timeout", "60", "--json"]
    asking = subprocess.Popen([*command, "--config", str(house.config)], stdout=subprocess.PIPE, text=True)
    wait_until(chain.exists, 60, "the rotation has begun")
    house.kill("aggregator")
    house.start_aggregator()
    said, _ = asking.communicate(timeout=120)  # the broker brings the command again, if nobody acknowledged it
    assert asking.returncode == 0
    assert json.loads(said)["before"] == first != key(house)
    wait_until(lambda: f"the fleet's key is {key(house)}" in house.log("card"), 60, "the device has heard")
    house.kill("card")
    house.boot(house.folder / "card")
    wait_version(house, status(house)["version"] + 2, 120)
