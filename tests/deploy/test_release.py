"""`python -m deploy release make`: deterministic, signed, and no more than changed."""

import hashlib
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.__main__ import app
from fl_protocol.agent_release import check_release
from fl_protocol.errors import ConfigError
from fl_protocol.keyfile import load_or_create_key

OURS, PIP, NUMPY = "anabranch-0.2.0-py3-none-any.whl", "pip-25.0-py3-none-any.whl", "numpy-2.0-cp313.whl"


def kit(folder: Path, arch: str = "arm64", python: str = "3.13", **wheels: bytes) -> Path:
    """A wheelhouse, as `deploy wheelhouse` leaves it."""
    files = {OURS: b"ours", PIP: b"pip", NUMPY: b"numpy", **{f"{n}.whl": data for n, data in wheels.items()}}
    (folder / "wheels").mkdir(parents=True)
    for name, data in files.items():
        (folder / "wheels" / name).write_bytes(data)
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    for name, text in (("SHA256SUMS", sums), ("arch", f"{arch}\n"), ("python", f"{python}\n")):
        (folder / "wheels" / name).write_text(text)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text('[gateway]\nfleet = "farm"\ndata_dir = "data"\n')
    load_or_create_key(tmp_path / "data/fleet.key")
    return path


def make(config: Path, *words: object) -> dict:
    result = CliRunner().invoke(app, ["release", "make", *map(str, words), "--config", str(config), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_same_kit_gives_the_same_bytes(tmp_path: Path, config: Path) -> None:
    """And the fleet's key vouches for them."""
    one, two = tmp_path / "one.tar", tmp_path / "two.tar"
    facts = make(config, kit(tmp_path / "kit"), "--out", one, "--number", 5)
    make(config, kit(tmp_path / "again"), "--out", two, "--number", 5)
    assert one.read_bytes() == two.read_bytes()
    assert facts["sha256"] == hashlib.sha256(one.read_bytes()).hexdigest()
    key = load_or_create_key(tmp_path / "data/fleet.key").public
    manifest = check_release(io.BytesIO(one.read_bytes()), key, "farm").manifest
    assert (manifest.counter, manifest.version, manifest.arch, manifest.python) == (5, "0.2.0", "arm64", "3.13")
    assert set(manifest.files) == {OURS, PIP, NUMPY}


def test_the_number_is_the_second_unless_told(tmp_path: Path, config: Path) -> None:
    """Later releases have higher ones."""
    assert make(config, kit(tmp_path / "kit"), "--out", tmp_path / "r.tar")["counter"] > 1_700_000_000


def test_what_the_devices_have_stays_out(tmp_path: Path, config: Path) -> None:
    """But our wheel and pip's, which root's side needs; a wheel of the same name and other bytes goes in."""
    base = kit(tmp_path / "base", scipy=b"one", attrs=b"same")
    new = kit(tmp_path / "new", scipy=b"two", attrs=b"same", more=b"more")
    facts = make(config, new, "--base", base, "--out", tmp_path / "r.tar")
    assert set(facts["files"]) == {OURS, PIP, "scipy.whl", "more.whl"}


@pytest.mark.parametrize("other", [{"arch": "amd64"}, {"python": "3.11"}])
def test_a_base_for_another_machine_is_refused(tmp_path: Path, config: Path, other: dict) -> None:
    with pytest.raises(ConfigError, match="--base"):
        make(config, kit(tmp_path / "new"), "--base", kit(tmp_path / "base", **other), "--out", tmp_path / "r.tar")
    assert not (tmp_path / "r.tar").exists()


def test_a_damaged_kit_is_refused(tmp_path: Path, config: Path) -> None:
    (kit(tmp_path / "kit") / "wheels" / NUMPY).write_bytes(b"other")
    with pytest.raises(ConfigError, match="is damaged"):
        make(config, tmp_path / "kit", "--out", tmp_path / "r.tar")


def test_without_the_fleets_key_nothing_is_signed(tmp_path: Path, config: Path) -> None:
    """And none is made."""
    (tmp_path / "data/fleet.key").unlink()
    with pytest.raises(ConfigError, match="no fleet's key"):
        make(config, kit(tmp_path / "kit"), "--out", tmp_path / "r.tar")
    assert not (tmp_path / "data/fleet.key").exists()
