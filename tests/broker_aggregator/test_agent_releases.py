"""The shelf of releases: what is kept is what was checked, and devices get it in chunks."""

from pathlib import Path

import pytest

from anabranch.simulator.store_model import MemoryStore
from broker_aggregator.agent_releases import add_release, find_release, kept_releases
from broker_aggregator.config import GatewayConfig, GatewaySection
from broker_aggregator.events import SaveAttempt, SaveRollout
from broker_aggregator.objects import Objects
from broker_aggregator.release_cli import per_hour, seconds
from broker_aggregator.rollout import Attempt, Rollout
from broker_aggregator.service import Service
from broker_aggregator.store import SqliteStore
from fl_protocol.agent_release import pack_release
from fl_protocol.device_commands import MAX_RELEASE_BYTES
from fl_protocol.errors import ConfigError
from fl_protocol.signing import SigningKey
from fl_protocol.transfer import Fetch
from tests.support.releases import FLEET, KEY, manifest_of


def release(folder: Path, number: int = 7, key: SigningKey = KEY, **changes: object) -> Path:
    files = {"anabranch-2-py3-none-any.whl": b"ours" * 5000, "pip-1-py3-none-any.whl": b"pip"}
    path = folder / f"{number}.tar"
    path.write_bytes(pack_release(manifest_of(files, number, **changes), files, key, FLEET))
    return path


def add(folder: Path, path: Path):
    return add_release(folder / "shelf", path, KEY.public, FLEET)


def test_it_is_kept_under_its_hash_and_found(tmp_path: Path) -> None:
    """By number, version or the beginning of its hash; twice is once."""
    kept, later = add(tmp_path, release(tmp_path)), add(tmp_path, release(tmp_path, 8, version="3", arch="arm64"))
    assert add(tmp_path, release(tmp_path)) == kept
    assert (kept.number, kept.version, later.arch) == (7, "2", "arm64")
    assert sorted(path.name for path in (tmp_path / "shelf").iterdir()) == sorted([kept.sha256, later.sha256])
    assert kept_releases(tmp_path / "shelf", KEY.public, FLEET) == ([later, kept], {})
    for word in ("7", "2", kept.sha256, kept.sha256[:8]):
        assert find_release(tmp_path / "shelf", word, KEY.public, FLEET) == kept
    with pytest.raises(ConfigError, match="no release 9"):
        find_release(tmp_path / "shelf", "9", KEY.public, FLEET)
    again = release(tmp_path, 9, version="3")
    add(tmp_path, again)
    with pytest.raises(ConfigError, match="may be 2 releases"):
        find_release(tmp_path / "shelf", "3", KEY.public, FLEET)


def test_what_is_none_is_not_kept(tmp_path: Path) -> None:
    """Another key's, a cut one, no file, a folder, one that no device fetches."""
    cut = release(tmp_path, 5)
    cut.write_bytes(cut.read_bytes()[:-100])
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(MAX_RELEASE_BYTES + 1)
    for path, word in (
        (release(tmp_path, 6, SigningKey(bytes(32))), "E_SIG"),
        (cut, "E_SIZE"),
        (tmp_path / "none", "No such file"),
        (tmp_path, "directory"),
        (huge, "devices fetch"),
    ):
        with pytest.raises(ConfigError, match=word) as error:
            add(tmp_path, path)
        assert str(path) in error.value.message
    assert not list((tmp_path / "shelf").iterdir())


def test_what_has_rotted_is_told_and_not_sent(tmp_path: Path) -> None:
    kept = add(tmp_path, release(tmp_path))
    path = tmp_path / "shelf" / kept.sha256
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(bytes(data))
    sound, damaged = kept_releases(tmp_path / "shelf", KEY.public, FLEET)
    assert (sound, list(damaged)) == ([], [kept.sha256])
    with pytest.raises(ConfigError, match="no release for this fleet"):
        find_release(tmp_path / "shelf", kept.sha256, KEY.public, FLEET)
    objects = Objects(tmp_path / "bundles", MemoryStore(), releases=tmp_path / "shelf")
    assert not list(objects.chunks(kept.sha256, 4096, None, 4))


def test_a_device_fetches_it_as_any_object(tmp_path: Path) -> None:
    """In chunks, those that it misses."""
    path = release(tmp_path)
    kept = add(tmp_path, path)
    objects = Objects(tmp_path / "bundles", MemoryStore(), releases=tmp_path / "shelf")
    fetch = Fetch(kept.sha256, kept.size, 4096)
    while (get := fetch.next_get(0.0)) is not None:
        for chunk in objects.chunks(get.sha256, get.chunk_size, get.missing, get.window):
            fetch.add(chunk, 0.0)
    assert fetch.data() == path.read_bytes()


@pytest.mark.parametrize(("text", "value"), [("60/hour", 60), ("1/minute", 60), ("48/day", 2), ("all", 0)])
def test_a_rate_is_devices_an_hour(text: str, value: int) -> None:
    assert per_hour(text) == value


@pytest.mark.parametrize("text", ["60", "0/hour", "1/day", "x/hour", "60/week", "-1/hour", ""])
def test_another_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--rate"):
        per_hour(text)


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("30m", 1800), ("6h", 21600), ("7d", 604800)])
def test_a_deadline_is_a_span(text: str, value: int) -> None:
    assert seconds(text) == value
    with pytest.raises(ConfigError, match="--deadline"):
        seconds(text[:-1])


def test_a_roll_out_whose_release_is_gone_is_held(tmp_path: Path) -> None:
    """As after a restore: backups have no releases."""
    config = GatewayConfig(gateway=GatewaySection(fleet=FLEET, data_dir=tmp_path))
    kept = add_release(config.agent_releases, release(tmp_path), KEY.public, FLEET)
    store = SqliteStore(config.store_path)
    with store.transaction():
        store.apply(SaveRollout(Rollout("r1", kept, 1, 0, "10", 3600, 1)), 1)
        store.apply(SaveAttempt(Attempt("r1", "fan-0", 0, 0)), 1)
    states = []
    for gone in (False, True):
        if gone:
            (config.agent_releases / kept.sha256).unlink()
        states.append(Service(config, store, KEY).coordinator.rolling.rollouts["r1"].state)
    assert states == ["running", "paused"]
    assert "not on the shelf" in store.rollouts()["r1"].why
    store.close()
