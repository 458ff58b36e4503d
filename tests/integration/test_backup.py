"""A gateway is backed up while it runs, dies, and goes on elsewhere: real mosquitto, aggregator and agent."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gatehouse import Gatehouse
from tests.support.learning import TASK, learning_house, status, wait_version
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)


def deploy(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy", *map(str, words)], capture_output=True, text=True, timeout=120
    )


class Elsewhere(Gatehouse):
    """The same gateway on another machine: what `restore` put there, and the ports of before."""

    def __init__(self, before: Gatehouse, root: Path) -> None:
        self.folder, self.config = root, root / "etc/anabranch-gateway/gateway.toml"
        self.pki = root / "var/lib/anabranch-gateway/pki"
        self.port, self.enroll_port, self.service_port = before.port, before.enroll_port, before.service_port
        for name in ("devices", "claims", "services"):
            (root / f"{name}.acl").write_text((before.folder / f"{name}.acl").read_text())
        self.processes = {}
        self.start_broker()
        self.start_aggregator()


def test_the_same_device_goes_on_with_a_restored_gateway(tmp_path: Path) -> None:
    """Backed up while running; more versions are made; kill -9 and wipe; nothing that follows is a downgrade."""
    (tmp_path / "old").mkdir()
    house, _ = learning_house(tmp_path / "old")
    again = None
    try:
        phrase = tmp_path / "phrase"
        phrase.write_text("correct horse battery staple\n")
        kept = tmp_path / "gateway.backup"
        done = deploy("backup", kept, "--config", house.config, "--passphrase-file", phrase, "--json")
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        assert (made["tasks"], made["devices"], made["bundles"]) == (1, 1, 1)
        assert kept.stat().st_mode & 0o777 == 0o600
        assert b"PRIVATE KEY" not in kept.read_bytes()
        unused = house.ticket("fan-02")  # unknown to the backup
        seen = status(house)["version"] + 3
        wait_version(house, seen)
        house.kill("aggregator")
        house.kill("broker")

        root = tmp_path / "new"
        done = deploy("restore", kept, "--to", root, "--passphrase-file", phrase, "--json")
        assert done.returncode == 0, done.stderr
        restored = json.loads(done.stdout)["versions"][TASK]
        assert restored > seen + 900
        refused = deploy("restore", kept, "--to", root, "--passphrase-file", phrase)
        assert refused.returncode == 2
        assert "is there already" in refused.stderr
        up = deploy("gateway", "up", "--root", root, "--fleet", "farm", "--name", "127.0.0.1", "--dry-run", "--json")
        assert up.returncode == 0, up.stderr  # it finds the authority and the configuration, and makes no other
        changes = {change["path"]: change["what"] for change in json.loads(up.stdout)["changes"]}
        assert str(root / "var/lib/anabranch-gateway/pki/ca.pem") not in changes
        assert changes[str(root / "etc/anabranch-gateway/gateway.toml")] == "changed"
        again = Elsewhere(house, root)
        log = len((house.folder / "card.log").read_text())
        wait_version(again, restored + 2, 90)
        after = (house.folder / "card.log").read_text()[log:]
        assert "E_DOWNGRADE" not in (house.folder / "card.log").read_text()
        assert "accepted" in after
        replayed = again.command("replay", TASK, "--json")
        assert json.loads(replayed.stdout)["differ"] == [], replayed.stderr
        updates = status(again)["updates"]
        assert updates["accepted"] >= 2
        again.boot(again.device("late", unused))  # its claim is not in the backup
        wait_until(lambda: "E_CLAIM" in again.log("late"), 30, "a ticket that the backup does not know is refused")
        again.kill("late")
        again.boot(again.device("new", again.ticket("fan-03")))
        wait_until(lambda: "fan-03 has enrolled" in again.log("aggregator"), 30, "a new device gets in")
    finally:
        house.close()
        if again is not None:
            again.close()
