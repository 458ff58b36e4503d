"""The members' files: both programs read them, and the broker's TLS holds."""

import ssl
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from broker_aggregator.config import load_config as load_gateway
from broker_aggregator.config import load_task
from deploy.fleet.members import Members, Wanted, devices_of
from deploy.fleet.specs import Container
from edge_agent.config import load_config as load_agent
from fl_protocol.errors import ConfigError
from fl_protocol.keyfile import load_or_create_key

WANTED = Wanted(name="fans", agents=2, profile="pi-zero-2", versions=5, minutes=1, seed=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Container]]:
    folder = tmp_path_factory.mktemp("fleet")
    members = Members(folder, WANTED)
    members.prepare()
    return folder, members.containers()


def laid_out(root: Path, container: Container) -> Path:
    """A container's files as it sees them, below `root`."""
    for volume in container.volumes:
        for name, data in volume.files.items():
            path = root / volume.path.lstrip("/") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return root


def test_devices_are_a_spread_and_then_come_again() -> None:
    assert list(devices_of(3).values()) == [20, 60, 100]
    assert list(devices_of(1).values()) == [60]
    twenty = devices_of(20)
    assert len(twenty) == 20
    assert list(twenty)[16:] == ["fan-100", "fan-20-2", "fan-25-2", "fan-30-2"]
    assert twenty["fan-25-2"] == 25


@pytest.mark.parametrize("agents", [0, -1, 1001])
def test_a_number_that_cannot_be_is_named(agents: int) -> None:
    with pytest.raises(ConfigError, match=f"--agents {agents}"):
        devices_of(agents)


def test_the_broker_comes_first(made: tuple[Path, list[Container]]) -> None:
    assert [c.member for c in made[1]] == ["broker", "gateway", "fan-20", "fan-100"]


def test_an_agent_reads_its_files(made: tuple[Path, list[Container]], tmp_path: Path) -> None:
    agent = made[1][2]
    config = load_agent(laid_out(tmp_path, agent) / "etc/anabranch/agent.toml", {})
    assert (config.device.id, config.device.fleet) == ("fan-20", "fans")
    assert config.training.memory_mb == int(384 * 0.85)
    assert config.broker.address == ("broker", 8883)
    data = tmp_path / "var/lib/anabranch/data"
    assert sorted(path.name for path in data.iterdir()) == ["fan-20.npz", "validation-fan-20.npz"]


def test_the_gateway_reads_its_files_and_knows_the_devices_keys(
    made: tuple[Path, list[Container]], tmp_path: Path
) -> None:
    _, gateway, agent, _ = made[1]
    root = laid_out(tmp_path, gateway)
    config = load_gateway(root / "etc/anabranch-gateway/gateway.toml", {})
    laid_out(tmp_path, agent)
    assert config.devices["fan-20"] == load_or_create_key(root / "var/lib/anabranch/device.key").public
    agent_config = load_agent(root / "etc/anabranch/agent.toml", {})
    fleet_key = load_or_create_key(root / "var/lib/anabranch-gateway/fleet.key").public
    assert agent_config.gateway.public_key == fleet_key
    task = load_task(root / "var/lib/anabranch-gateway/task/task.toml")
    assert task.bundle.is_file()
    assert task.evaluation is not None
    assert task.evaluation.is_file()


def test_made_again_it_is_the_same(made: tuple[Path, list[Container]]) -> None:
    folder, containers = made
    again = Members(folder, WANTED).containers()
    assert [c.digest for c in again] == [c.digest for c in containers]
    assert [v.digest for c in again for v in c.volumes] == [v.digest for c in containers for v in c.volumes]


def test_keys_on_this_machine_are_for_their_owner_alone(made: tuple[Path, list[Container]]) -> None:
    keys = list((made[0] / "pki").rglob("*.key"))
    assert len(keys) == 1 + 1 + 1 + 3 + 2 + 2  # fleet, CA, broker, services, devices' TLS and signing
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


def test_another_fleets_folder_is_refused(made: tuple[Path, list[Container]]) -> None:
    other = Wanted(name="pumps", agents=2, profile="pi-4", versions=5, minutes=1, seed=0)
    with pytest.raises(ConfigError, match="holds the secrets of the fleet fans"):
        Members(made[0], other).prepare()


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """A TLS handshake in memory; the server's end, after it saw the client's certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = server.wrap_bio(to_server, to_client, server_side=True)
    here = client.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(6):
        for end in (here, there):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return there


def contexts(root: Path, broker: Mapping[str, bytes], agent: Mapping[str, bytes]) -> tuple[ssl.SSLContext, ...]:
    for name, data in (*broker.items(), *agent.items()):
        (root / name).write_bytes(data)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(root / "server.pem", root / "server.key")
    server.load_verify_locations(root / "ca.pem")
    server.load_verify_locations(root / "crl.pem")
    server.verify_mode, server.verify_flags = ssl.CERT_REQUIRED, ssl.VERIFY_CRL_CHECK_LEAF
    client = ssl.create_default_context(cafile=str(root / "ca.pem"))
    client.load_cert_chain(root / "device.pem", root / "device.key")
    return server, client


@pytest.mark.parametrize("name", ["broker", "localhost"])
def test_broker_and_device_believe_each_other(made: tuple[Path, list[Container]], tmp_path: Path, name: str) -> None:
    broker, _, agent, _ = made[1]
    server, client = contexts(tmp_path, broker.volumes[0].files, agent.volumes[0].files)
    peer = shake_hands(server, client, name).getpeercert()
    assert peer is not None
    assert (("commonName", "fan-20"),) in peer["subject"]


def test_a_broker_of_another_name_is_not_believed(made: tuple[Path, list[Container]], tmp_path: Path) -> None:
    broker, _, agent, _ = made[1]
    server, client = contexts(tmp_path, broker.volumes[0].files, agent.volumes[0].files)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(server, client, "gateway")
