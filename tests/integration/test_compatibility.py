"""Yesterday's agent with today's gateway, today's agent with yesterday's gateway, and the store that it leaves behind.

Yesterday is a commit of this repository: its tree, in a folder of its own, run as it was.
"""

import io
import os
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from broker_aggregator.schema import SCHEMA_VERSION
from fl_protocol.keyfile import load_or_create_key
from tests.support.learning import give_examples, write_task
from tests.support.mosquitto import Mosquitto
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(400)
TODAY = Path(__file__).resolve().parents[2]
BEFORE = "046b95f"  # the release before this one, as long as there are no tags
FLEET, SLOW_S = "farm", 120.0


@pytest.fixture(scope="module")
def yesterday(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the release before."""
    there = subprocess.run(["git", "cat-file", "-e", f"{BEFORE}^{{commit}}"], cwd=TODAY, capture_output=True)
    assert there.returncode == 0, f"commit {BEFORE} is not here: this needs a full clone (`git fetch --unshallow`)"
    packed = subprocess.run(["git", "archive", BEFORE], cwd=TODAY, capture_output=True, check=True).stdout
    into = tmp_path_factory.mktemp("yesterday")
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        tar.extractall(into, filter="data")
    return into


class Farm:
    """A broker without TLS, a gateway and a device, each of the tree that a test says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.broker = folder, Mosquitto(folder / "broker")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        key, device = load_or_create_key(folder / "data/fleet.key"), load_or_create_key(folder / "state/device.key")
        reach = f'[broker]\nhost = "127.0.0.1"\nport = {self.broker.port}\nreconnect_max_s = 1\n'
        gateway = f'[gateway]\nfleet = "{FLEET}"\ndata_dir = "data"\n[devices]\nfan-01 = "{device.public}"\n'
        agent = f'[device]\nid = "fan-01"\nfleet = "{FLEET}"\nstate_dir = "state"\n[data]\npath = "examples"\n'
        (folder / "gateway.toml").write_text(gateway + reach)
        (folder / "agent.toml").write_text(f'{agent}[gateway]\npublic_key = "{key.public}"\n{reach}')
        give_examples(folder / "examples")
        self.task = write_task(folder)

    def start(self, program: str, tree: Path) -> None:
        """`gateway` or `agent`, of a tree."""
        module = {"gateway": "broker_aggregator", "agent": "edge_agent"}[program]
        with (self.folder / f"{program}.log").open("ab") as log:
            command = [sys.executable, "-m", module, "run", "--config", str(self.folder / f"{program}.toml")]
            self.processes[program] = subprocess.Popen(command, cwd=tree, env=of(tree), stdout=log, stderr=log)

    def create_task(self, tree: Path) -> None:
        """By the operator's command of that tree."""
        command = ["-m", "broker_aggregator", "task", "--timeout", "60", "create", str(self.task)]
        command += ["--config", str(self.folder / "gateway.toml")]
        done = subprocess.run([sys.executable, *command], cwd=tree, env=of(tree), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def end(self, program: str) -> None:
        """kill -9."""
        process = self.processes.pop(program)
        process.kill()
        process.wait(10)

    def log(self, program: str) -> str:
        return (self.folder / f"{program}.log").read_text()

    def ask(self, sql: str) -> int:
        """A number of the gateway's store, whatever its schema."""
        with closing(sqlite3.connect(f"file:{self.folder / 'data/store.sqlite'}?mode=ro", uri=True)) as db:
            return int(db.execute(sql).fetchone()[0])

    @property
    def counted(self) -> int:
        """Updates that made a version."""
        return self.ask("SELECT count(*) FROM ledger WHERE disposal = 'counted'")

    def learns(self, more: int = 2) -> None:
        """Until so many more updates were accepted and counted."""
        before = self.counted
        wait_until(lambda: self.counted >= before + more, SLOW_S, "updates are accepted and counted")

    def close(self) -> None:
        for program in list(self.processes):
            self.end(program)
        self.broker.kill()


def of(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree)}


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    farm = Farm(tmp_path)
    yield farm
    farm.close()


def test_the_agent_before_with_this_gateway(farm: Farm, yesterday: Path) -> None:
    farm.start("gateway", TODAY)
    farm.create_task(TODAY)
    farm.start("agent", yesterday)
    farm.learns()
    assert "E_" not in farm.log("gateway") + farm.log("agent")


def test_this_agent_with_the_gateway_before_and_then_with_this_one_on_its_store(farm: Farm, yesterday: Path) -> None:
    """The gateway is replaced under the agent: its store is migrated, and the agent goes on."""
    farm.start("gateway", yesterday)
    farm.create_task(yesterday)
    farm.start("agent", TODAY)
    farm.learns()
    assert "E_" not in farm.log("gateway") + farm.log("agent")
    assert farm.ask("PRAGMA user_version") == 4
    farm.end("gateway")
    before = farm.counted
    farm.start("gateway", TODAY)
    wait_until(lambda: farm.ask("PRAGMA user_version") == SCHEMA_VERSION, SLOW_S, "the store is migrated")
    assert farm.counted >= before
    farm.learns()
    assert "E_DOWNGRADE" not in farm.log("agent")
