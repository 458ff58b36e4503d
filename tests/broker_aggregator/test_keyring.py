"""The fleet's key on disk: replaced at one moment, whatever is cut off around it."""

from pathlib import Path

import pytest

from broker_aggregator import keyring
from broker_aggregator.keyring import CHAIN, Keyring
from fl_protocol.errors import ConfigError
from fl_protocol.keyfile import load_or_create_key
from fl_protocol.succession import follow


def test_a_rotation_is_on_the_disk_and_leads_on(tmp_path: Path) -> None:
    path = tmp_path / "fleet.key"
    first = Keyring.load(path).key.public
    ring = Keyring.load(path)
    ring.rotate("farm")
    ring.rotate("farm")
    again = Keyring.load(path)
    assert (again.key.public, again.chain) == (ring.key.public, ring.chain)
    assert again.chain is not None
    assert follow(again.chain, first, "farm") == ring.key.public
    assert path.stat().st_mode & 0o777 == 0o600


class PowerError(Exception):
    """The moment of a cut."""


@pytest.mark.parametrize("rotations", [0, 1])
@pytest.mark.parametrize("cut_at", ["write_durably", "write_key"])
def test_a_cut_before_the_key_is_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_at: str, rotations: int
) -> None:
    """Nobody has heard of the new one by then; the next rotation begins anew."""
    path = tmp_path / "fleet.key"
    ring = Keyring.load(path)
    for _ in range(rotations):
        ring.rotate("farm")
    before = ring.key.public, ring.chain

    def cut(*_: object, **__: object) -> None:
        raise PowerError

    with monkeypatch.context() as patched:
        patched.setattr(keyring, cut_at, cut)
        with pytest.raises(PowerError):
            ring.rotate("farm")
    again = Keyring.load(path)
    assert (again.key.public, again.chain) == before
    again.rotate("farm")
    last = Keyring.load(path)
    assert last.chain is not None
    assert follow(last.chain, before[0], "farm") == last.key.public


def test_a_chain_to_another_key_is_the_operators(tmp_path: Path) -> None:
    path = tmp_path / "fleet.key"
    ring = Keyring.load(path)
    ring.rotate("farm")
    path.unlink()
    load_or_create_key(path)
    with pytest.raises(ConfigError, match="lead"):
        Keyring.load(path)
    (tmp_path / CHAIN).write_bytes(b"{")
    with pytest.raises(ConfigError, match="cannot read"):
        Keyring.load(path)
