"""A backup's file: what opens it, what it refuses, and that nothing is written where anything is wrong."""

import contextlib
import io
import json
import sqlite3
import tarfile
from pathlib import Path

import pytest

from broker_aggregator.config import GatewayConfig, load_config
from broker_aggregator.schema import SCHEMA_VERSION
from broker_aggregator.store import SqliteStore
from deploy.backup import archive
from deploy.backup.archive import About, read_archive, write_archive
from deploy.backup.making import make_backup
from deploy.backup.restoring import restore
from deploy.backup.sealing import BLOCK, OpeningReader, SealingWriter, check_passphrase
from fl_protocol.errors import ConfigError
from fl_protocol.keyfile import load_or_create_key

PHRASE = b"a passphrase of a test"
ABOUT = About(fleet="farm", made_ms=1, software="test")


def sealed(data: bytes) -> bytes:
    file = io.BytesIO()
    writer = SealingWriter(file, PHRASE, log_n=10)
    for start in range(0, len(data), 10_000):
        writer.write(data[start : start + 10_000])
    writer.close()
    return file.getvalue()


def read_all(data: bytes, phrase: bytes = PHRASE) -> bytes:
    reader = OpeningReader(io.BytesIO(data), phrase)
    return b"".join(iter(lambda: reader.read(7777), b""))


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_what_is_sealed_is_read_back(size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    assert read_all(sealed(data)) == data


def test_a_damaged_cut_or_shuffled_stream_does_not_open() -> None:
    whole = sealed(b"x" * (3 * BLOCK))
    step = BLOCK + 16
    blocks = [whole[34 + i * step : 34 + (i + 1) * step] for i in range(3)]
    assert whole == whole[:34] + b"".join(blocks)
    for bad in (
        whole[:-1],
        whole[: 34 + 2 * step],
        whole + b"more",
        whole[:34] + blocks[1] + blocks[0] + blocks[2],
        whole[:20] + bytes([whole[20] ^ 1]) + whole[21:],
        whole[:100] + bytes([whole[100] ^ 1]) + whole[101:],
    ):
        with pytest.raises(ConfigError, match="does not open"):
            read_all(bad)
    with pytest.raises(ConfigError, match="does not open"):
        read_all(whole, b"another passphrase")


def test_a_file_that_asks_for_all_memory_is_refused() -> None:
    whole = bytearray(sealed(b"x"))
    whole[17] = 40
    with pytest.raises(ConfigError, match="scrypt 2"):
        read_all(bytes(whole))
    with pytest.raises(ConfigError, match="passphrase of 5 bytes"):
        check_passphrase(b"short\n")


def tar_of(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        about = tarfile.TarInfo(archive.ABOUT)
        said = json.dumps({"fleet": "farm", "made_ms": 1, "software": "x", "format": 1}).encode()
        about.size = len(said)
        tar.addfile(about, io.BytesIO(said))
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, "/etc/passwd"
            tar.addfile(info, io.BytesIO(data))
    file.seek(0)
    return file


@pytest.mark.parametrize(
    "names", [["../../etc/cron.d/x"], ["/etc/passwd"], ["pki/../../x.pem"], ["bundles/x"], ["fleet.key", "fleet.key"]]
)
def test_names_that_are_not_ours_are_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ConfigError, match="no file of ours"):
        read_archive(tar_of(*((name, b"x") for name in names)), tmp_path / "into")
    assert not (tmp_path / "etc").exists()
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] in ([], ["fleet.key"])


def test_links_sizes_and_sums_are_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file of ours"):
        read_archive(tar_of(("fleet.key", b""), kind=tarfile.SYMTYPE), tmp_path)
    with pytest.raises(ConfigError, match="no file of ours"):
        read_archive(tar_of(("fleet.key", b"x" * (archive.SMALL + 1))), tmp_path / "a")
    with pytest.raises(ConfigError, match="sums"):
        read_archive(tar_of(("fleet.key", b"x"), (archive.SUMS, b'{"fleet.key": "00"}')), tmp_path / "b")
    with pytest.raises(ConfigError, match="too early"):
        read_archive(tar_of(("fleet.key", b"x")), tmp_path / "c")


@pytest.fixture
def gateway(tmp_path: Path) -> tuple[Path, GatewayConfig]:
    """A gateway that was never asked anything: no authority, an empty store."""
    path = tmp_path / "gateway" / "gateway.toml"
    path.parent.mkdir()
    path.write_text('# mine\n[gateway]\nfleet = "farm"\ndata_dir = "data"\n[broker]\nport = 1883\n')
    config = load_config(path, {})
    load_or_create_key(config.key_path)
    SqliteStore(config.store_path).close()
    return path, config


def nothing(_: str) -> None:
    """No progress."""


def test_backup_and_restore_without_an_authority(tmp_path: Path, gateway: tuple[Path, GatewayConfig]) -> None:
    path, config = gateway
    made = make_backup(tmp_path / "b", path, config, None, nothing)
    assert made.found.public_key == load_or_create_key(config.key_path).public
    with pytest.raises(ConfigError, match="there already"):
        make_backup(tmp_path / "b", path, config, None, nothing)
    done = restore(tmp_path / "b", tmp_path / "root", None, nothing)
    again = load_config(done.config, {})
    assert load_or_create_key(again.key_path).public == made.found.public_key
    assert done.config.read_text().startswith("# mine\n")
    assert again.key_path.stat().st_mode & 0o777 == 0o600
    store = SqliteStore(again.store_path)
    assert store.load(0.0).counters["topic/"] == done.advanced.counter > 1 << 50
    store.close()
    with pytest.raises(ConfigError, match="there already"):
        restore(tmp_path / "b", tmp_path / "root", None, nothing)


def test_a_backup_of_older_software_is_migrated(tmp_path: Path, gateway: tuple[Path, GatewayConfig]) -> None:
    """As version 4 of the store had it: without claims and certificates."""
    path, config = gateway
    with contextlib.closing(sqlite3.connect(config.store_path)) as db:
        db.executescript("DROP TABLE claim; DROP TABLE certificate; PRAGMA user_version = 4;")
    with (tmp_path / "old").open("wb") as file:
        write_archive(
            file, ABOUT, {"store.sqlite": config.store_path, "gateway.toml": path, "fleet.key": config.key_path}
        )
    done = restore(tmp_path / "old", tmp_path / "root", None, nothing)
    with contextlib.closing(sqlite3.connect(done.data / "store.sqlite")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_a_damaged_gateway_makes_no_backup(tmp_path: Path, gateway: tuple[Path, GatewayConfig]) -> None:
    """It is found when the backup is made, not when it is needed."""
    path, config = gateway
    config.bundles.mkdir()
    (config.bundles / ("0" * 64)).write_bytes(b"rotten")
    with pytest.raises(ConfigError, match="is damaged"):
        make_backup(tmp_path / "b", path, config, PHRASE, nothing)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gateway"]


def test_a_damaged_backup_leaves_nothing(tmp_path: Path, gateway: tuple[Path, GatewayConfig]) -> None:
    path, config = gateway
    make_backup(tmp_path / "b", path, config, PHRASE, nothing)
    data = bytearray((tmp_path / "b").read_bytes())
    data[-20] ^= 1
    (tmp_path / "bad").write_bytes(data)
    for name, phrase in (("bad", PHRASE), ("b", None), ("b", b"another passphrase"), ("none", None)):
        with pytest.raises(ConfigError):
            restore(tmp_path / name, tmp_path / "root", phrase, nothing)
        assert not (tmp_path / "root").exists()


def test_write_archive_notices_a_file_that_shrinks(tmp_path: Path) -> None:
    file = tmp_path / "grows"
    file.write_bytes(b"x" * 10)
    out = io.BytesIO()
    write_archive(out, ABOUT, {"fleet.key": file})
    about, sizes = read_archive(io.BytesIO(out.getvalue()), None)
    assert (about, sizes) == (ABOUT, {"fleet.key": 10})
