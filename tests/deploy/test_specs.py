"""What a fleet consists of, as values."""

import io
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import docker
import pytest

from deploy.fleet.engine import Engine, natural
from deploy.fleet.looking import memory_mb, peak_mb
from deploy.fleet.profiles import PROFILES, profile_of
from deploy.fleet.specs import Volume, agent_container, create_options
from deploy.fleet.volumes import packed
from fl_protocol.errors import ConfigError

ZERO = PROFILES["pi-zero-2"]


def agent(profile: str = "pi-zero-2", config: bytes = b"a", state: bytes = b"b"):
    return agent_container("fans", "fan-20", PROFILES[profile], {"agent.toml": config}, {"device.key": state})


def test_profiles_grow_with_their_boards() -> None:
    assert list(PROFILES) == ["pi-zero-2", "pi-4", "pi-5", "jetson-orin-nano"]
    memory = [profile.memory_mb for profile in PROFILES.values()]
    assert memory == sorted(memory)
    assert all(0.5 * p.memory_mb < p.planned_mb < p.memory_mb for p in PROFILES.values())


@pytest.mark.parametrize(("name", "hint"), [("pi4", "did you mean pi-4"), ("toaster", "profiles: pi-zero-2, pi-4")])
def test_a_board_that_is_not_there_is_named(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        profile_of(name)
    assert hint in caught.value.hint


def test_a_container_has_the_limits_of_its_board_and_no_rights() -> None:
    options = create_options(agent(), cores=2)
    assert options["nano_cpus"] == int(ZERO.cpus * 1e9)
    assert options["mem_limit"] == options["memswap_limit"] == ZERO.memory_mb << 20
    assert options["read_only"] is True
    assert options["cap_drop"] == ["ALL"]
    assert options["user"] == "10001:10001"
    assert options["volumes"]["fans-fan-20-config"] == {"bind": "/etc/anabranch", "mode": "ro"}
    assert options["volumes"]["fans-fan-20-state"] == {"bind": "/var/lib/anabranch", "mode": "rw"}


def test_an_engine_with_fewer_cores_is_asked_for_no_more() -> None:
    assert create_options(replace(agent(), cpus=4.0), cores=2)["nano_cpus"] == 2_000_000_000


def test_labels_say_whose_it_is_and_what_it_was_made_of() -> None:
    labels = agent().labels
    assert labels["io.anabranch.fleet"] == "fans"
    assert labels["io.anabranch.member"] == "fan-20"
    assert labels["io.anabranch.role"] == "agent"
    assert labels["io.anabranch.digest"] == agent().digest


def test_the_digest_changes_with_what_makes_another_container_and_nothing_else() -> None:
    assert agent().digest == agent().digest
    assert agent(profile="pi-5").digest != agent().digest
    assert agent(config=b"other").digest != agent().digest
    assert agent(state=b"other").digest == agent().digest, "what is only laid into a new volume changes no container"


def test_the_digest_of_files_is_of_names_and_contents_apart() -> None:
    assert Volume("v", "/v", {"ab": b"c"}).digest != Volume("v", "/v", {"a": b"bc"}).digest
    assert Volume("v", "/v", {"a": b"1", "b": b"2"}).digest == Volume("v", "/v", {"b": b"2", "a": b"1"}).digest


def test_no_secret_is_shown_by_a_container() -> None:
    assert "topsecret" not in repr(agent(config=b"topsecret", state=b"topsecret"))


def test_files_are_packed_for_the_images_user_alone() -> None:
    with tarfile.open(fileobj=io.BytesIO(packed({"pki/services/a.key": b"k", "x": b"yz"}))) as tar:
        entries = {entry.name: entry for entry in tar}
        assert tar.extractfile("pki/services/a.key").read() == b"k"
    assert list(entries) == ["pki", "pki/services", "pki/services/a.key", "x"]
    assert {entry.uid for entry in entries.values()} == {entry.gid for entry in entries.values()} == {10001}
    assert {name: entry.mode for name, entry in entries.items()} == {
        "pki": 0o700,
        "pki/services": 0o700,
        "pki/services/a.key": 0o600,
        "x": 0o600,
    }


@pytest.mark.parametrize("name", ["total_inactive_file", "inactive_file"])
def test_memory_is_without_the_page_cache_in_both_control_groups(name: str) -> None:
    assert memory_mb({"memory_stats": {"usage": 100 << 20, "stats": {name: 30 << 20}}}) == 70.0
    assert memory_mb({"memory_stats": {}}) is None


def test_the_peak_is_the_kernels() -> None:
    assert peak_mb("Name:\tx\nVmHWM:\t  2048 kB\n") == 2.0
    assert peak_mb("") is None


def test_without_an_engine_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(ConfigError, match="no container engine answers") as caught:
        Engine("fans")
    assert "DOCKER_HOST" in caught.value.hint


def test_names_sort_as_people_count() -> None:
    assert sorted(["fan-100", "fan-20-2", "fan-20"], key=natural) == ["fan-20", "fan-20-2", "fan-100"]


class NoImages:
    """An engine that has nothing."""

    images = SimpleNamespace()
    containers = SimpleNamespace(list=lambda **_: [])

    def __init__(self) -> None:
        self.images.get = self._get

    def info(self) -> dict[str, int]:
        return {"NCPU": 2}

    def _get(self, name: str) -> None:
        raise docker.errors.ImageNotFound(name)


def test_an_image_that_is_missing_is_named_with_the_command_that_builds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "from_env", lambda **_: NoImages())
    with pytest.raises(ConfigError, match="no image anabranch-agent") as caught:
        Engine("fans").up([agent()])
    assert "docker build -f deploy/docker/agent.Dockerfile -t anabranch-agent ." in caught.value.hint
