"""The virtual fleet on a real engine: `make test-slow`. Needs DOCKER_HOST, or an engine at its usual place, and images.

Without an engine, or without an image, these fail: that is what they are there to notice.
"""

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.models.containers import Container as Running

from deploy.fleet.engine import Engine
from deploy.fleet.looking import fleet_status
from deploy.fleet.members import GATEWAY_CONFIG_FILE, Members, Wanted
from deploy.fleet.specs import FLEET_LABEL, GATEWAY, USER
from fl_protocol.errors import ConfigError
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
ENDLESS = 100_000  # versions: the training goes on while it is being hurt
PATIENCE_S = 180.0


def deploy(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "deploy", "fleet", *words], cwd=ROOT, text=True, capture_output=True)


@pytest.fixture(scope="module")
def name() -> str:
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def up(name: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("fleet")
    return ["up", "--name", name, "--agents", "4", "--folder", str(folder), "--versions", str(ENDLESS), "--json"]


@pytest.fixture(scope="module")
def engine(name: str, up: list[str]) -> Iterator[Engine]:
    """A fleet of four that trains."""
    made = Engine(name)
    try:
        done = deploy(*up)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["created"] == ["broker", "gateway", "fan-20", "fan-45", "fan-75", "fan-100"]
        wait_until(lambda: version(made) >= 2, PATIENCE_S, "the fleet's second version")
        yield made
    finally:
        made.down()


def task(engine: Engine) -> dict[str, Any]:
    _, out, _ = engine.run(GATEWAY, ["broker-aggregator", "status", "--config", GATEWAY_CONFIG_FILE, "--json"])
    return json.loads(out)[0]


def version(engine: Engine) -> int:
    return task(engine)["version"]


def device(engine: Engine, name: str) -> dict[str, Any]:
    return next(m for m in fleet_status(engine)["members"] if m["id"] == name)


def test_up_again_changes_nothing(engine: Engine, up: list[str]) -> None:
    before = {name: (c.id, c.attrs["State"]["StartedAt"]) for name, c in engine.members().items()}
    done = json.loads(deploy(*up).stdout)
    assert len(done["left"]) == 6
    assert [done[what] for what in ("created", "changed", "started", "removed")] == [[], [], [], []]
    assert done["task"] == "left"
    assert {name: (c.id, c.attrs["State"]["StartedAt"]) for name, c in engine.members().items()} == before


def test_a_member_has_no_rights_and_the_limits_of_its_board(engine: Engine) -> None:
    code, out, _ = engine.run("fan-20", ["cat", "/proc/1/status"])
    fields = dict(line.split(":\t", 1) for line in out.splitlines() if ":\t" in line)
    assert code == 0
    assert fields["Uid"].split() == [str(USER)] * 4
    assert {int(fields[cap], 16) for cap in ("CapPrm", "CapEff", "CapBnd")} == {0}
    assert fields["NoNewPrivs"] == "1"
    assert engine.run("fan-20", ["touch", "/opt/x"])[0] != 0, "the root file system is read-only"
    assert engine.run("fan-20", ["touch", "/etc/anabranch/x"])[0] != 0, "so is its configuration"
    host = engine.member("fan-20").attrs["HostConfig"]
    assert (host["Memory"], host["NanoCpus"]) == (1792 << 20, 300_000_000)
    assert engine.run("fan-20", ["python3", "-m", "pip", "--version"])[0] != 0, "there is no pip"


def test_secrets_are_for_the_agent_alone(engine: Engine) -> None:
    _, out, _ = engine.run(
        "fan-20", ["find", "/etc/anabranch", "/var/lib/anabranch", "-name", "*.key", "-printf", "%m\n"]
    )
    assert out.split() == ["600", "600"]


def test_health_looks_at_the_loop_and_its_broker(engine: Engine) -> None:
    for member in ("fan-20", GATEWAY):
        code, out, err = engine.run(member, ["anabranch-health", "--json"])
        assert (code, json.loads(out)["healthy"]) == (0, True), err


def test_a_device_cannot_write_anothers_topics_nor_read_them(engine: Engine) -> None:
    """With its own certificate: what the access list refuses, MQTT 5 says in the acknowledgement."""
    tls = ["--cafile", "/c/ca.pem", "--cert", "/c/device.pem", "--key", "/c/device.key"]

    def publish(topic: str) -> str:
        command = [
            "mosquitto_pub",
            "-V",
            "5",
            "-h",
            "broker",
            "-p",
            "8883",
            *tls,
            "-q",
            "1",
            "-t",
            topic,
            "-m",
            "{}",
            "-d",
        ]
        done = engine.client.containers.run(
            "anabranch-mosquitto",
            command[1:],
            entrypoint=command[0],
            network=f"{engine.fleet}-network",
            volumes={f"{engine.fleet}-fan-20-config": {"bind": "/c", "mode": "ro"}},
            remove=True,
            stderr=True,
        )
        return done.decode()

    assert "PUBACK" in publish(f"fl/1/{engine.fleet}/dev/fan-20/event")
    assert "Not authorized" in publish(f"fl/1/{engine.fleet}/dev/fan-45/event")
    assert "Not authorized" in publish(f"fl/1/{engine.fleet}/op/cmd/task-stop/1")


def test_training_goes_on_without_those_that_are_hurt_and_they_come_back(engine: Engine, name: str) -> None:
    for verb, member in (("kill", "fan-20"), ("pause", "fan-45"), ("partition", "fan-75")):
        done = deploy(verb, member, "--name", name, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["changed"] == {member: True}
    states = {m["id"]: m["state"] for m in fleet_status(engine)["members"]}
    assert states == {
        "broker": "running",
        GATEWAY: "running",
        "fan-20": "exited",
        "fan-45": "paused",
        "fan-75": "partitioned",
        "fan-100": "running",
    }
    hurt = version(engine)
    wait_until(lambda: version(engine) >= hurt + 2, PATIENCE_S, "two versions of the one that is left")
    assert "fan-20: nothing to do" in deploy("kill", "fan-20", "--name", name).stdout
    before = {member: device(engine, member)["updates"] for member in ("fan-20", "fan-45", "fan-75")}
    assert deploy("resume", "fan-20", "fan-45", "--name", name).returncode == 0
    assert deploy("heal", "fan-75", "--name", name).returncode == 0
    for member, updates in before.items():
        wait_until(lambda m=member, u=updates: device(engine, m)["updates"] > u, PATIENCE_S, f"an update of {member}")
    assert (
        engine.run(GATEWAY, ["broker-aggregator", "replay", task(engine)["task"], "--config", GATEWAY_CONFIG_FILE])[0]
        == 0
    )


def test_a_killed_gateway_goes_on_from_its_store(engine: Engine) -> None:
    before = version(engine)
    assert engine.kill(GATEWAY)
    assert "exited" in fleet_status(engine)["gateway_why"]
    assert engine.resume(GATEWAY)
    wait_until(lambda: version(engine) > before, PATIENCE_S, "a version after the gateway's death")


def test_another_profile_changes_the_agents_and_keeps_what_they_learnt(engine: Engine, up: list[str]) -> None:
    before = version(engine)
    done = json.loads(deploy(*up, "--profile", "pi-5").stdout)
    assert done["changed"] == ["fan-20", "fan-45", "fan-75", "fan-100"]
    assert done["left"] == ["broker", GATEWAY]
    assert engine.member("fan-20").attrs["HostConfig"]["Memory"] == 3840 << 20
    wait_until(lambda: version(engine) > before, PATIENCE_S, "a version of the changed fleet")


def test_a_member_that_is_not_there_is_named_and_nothing_happens(engine: Engine, name: str) -> None:
    done = deploy("pause", "fan-20", "fan-21", "--name", name)
    assert done.returncode == 2
    assert "fan-21 is no member" in done.stderr
    assert "members: broker, gateway, fan-20" in done.stderr
    assert device(engine, "fan-20")["state"] == "running"


def test_logs_are_the_members(engine: Engine, name: str) -> None:
    assert "connected to the broker at broker:8883" in deploy("logs", "fan-100", "--name", name).stdout


def test_up_mends_what_an_interrupted_up_left_half_filled(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off while the broker's certificates go into their volume."""
    cut = Engine(f"{engine.fleet}-cut")
    wanted = Wanted(name=cut.fleet, agents=1, profile="pi-4", versions=ENDLESS, minutes=5, seed=0)
    members = Members(tmp_path, wanted)
    members.prepare()
    try:
        monkeypatch.setattr(Running, "put_archive", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cut.up(members.containers())
        monkeypatch.undo()
        assert cut.up(members.containers())["created"] == ["broker", GATEWAY, "fan-60"]
        assert cut.run("broker", ["ls", "/etc/mosquitto"])[1].split() == [
            *("ca.pem", "crl.pem", "devices.acl", "local.acl", "mosquitto.conf"),
            *("server.key", "server.pem", "services.acl"),
        ]
        filters: dict[str, Any] = {"label": f"{FLEET_LABEL}={cut.fleet}"}
        assert len(cut.client.containers.list(all=True, filters=filters)) == 3
    finally:
        cut.down()


def test_a_name_that_is_taken_is_said_before_anything_changes(engine: Engine, tmp_path: Path) -> None:
    other = f"{engine.fleet}-other"
    blocker = engine.client.containers.create("anabranch-mosquitto", name=f"{other}-gateway")
    try:
        done = deploy("up", "--name", other, "--agents", "1", "--folder", str(tmp_path))
        assert done.returncode == 2
        assert f"the name {other}-gateway is taken" in done.stderr
        assert Engine(other).members() == {}
    finally:
        blocker.remove(v=True)


def test_down_finds_everything_by_label(engine: Engine, name: str) -> None:
    stray = engine.client.volumes.create(f"{name}-stray", labels={FLEET_LABEL: name})  # as a crash may leave one
    assert deploy("down", "--name", name).returncode == 0
    filters: dict[str, Any] = {"label": f"{FLEET_LABEL}={name}"}
    assert engine.client.containers.list(all=True, filters=filters) == []
    assert engine.client.networks.list(filters=filters) == []
    assert engine.client.volumes.list(filters=filters) == []
    assert stray.name not in {volume.name for volume in engine.client.volumes.list()}
    with pytest.raises(ConfigError, match="there is no fleet"):
        fleet_status(engine)
