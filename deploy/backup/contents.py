"""What makes a gateway: store, keys, authority, configuration, bundles, examples; and whether it all fits together."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from broker_aggregator.config import GatewayConfig
from broker_aggregator.keyring import CHAIN, load_chain
from broker_aggregator.store import SqliteStore
from broker_aggregator.store_reader import StoreReader
from fl_protocol.certificates import load_key, read_certificate
from fl_protocol.errors import ConfigError
from fl_protocol.file_source import sha256_of
from fl_protocol.keyfile import load_or_create_key

from .archive import CONFIG, FLEET_KEY, STORE, is_ours

Step = Callable[[str], None]
KEEP_ALL = 1 << 40  # releases
PAGES = 4096  # of the store between two words of progress


def copy_store(store: Path, to: Path, step: Step) -> None:
    """The store as it is at one moment, while a gateway writes it. Raises `ConfigError`, `sqlite3.Error`."""
    if not store.is_file():
        raise ConfigError(f"there is no store at {store}", "name the configuration of a gateway that has run")
    descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.close(descriptor)
    with closing(sqlite3.connect(f"{store.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as source:
        source.execute("BEGIN")  # one reader's view of the log: what is written meanwhile does not start it again
        source.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        with closing(sqlite3.connect(to)) as target:

            def progress(_: int, remaining: int, total: int) -> None:
                step(f"copying the store: {100 * (total - remaining) // max(1, total)} %")

            source.backup(target, pages=PAGES, progress=progress)
            target.execute("PRAGMA journal_mode=DELETE")  # one file, whole


def files_of(config: GatewayConfig, path: Path, store: Path) -> dict[str, Path]:
    """Archive name -> file; `path` is the configuration, `store` the copy. Raises `ConfigError` for what is missing."""
    files = {STORE: store, CONFIG: path, FLEET_KEY: config.key_path}
    if (chain := config.key_path.with_name(CHAIN)).exists():
        files[CHAIN] = chain
    if config.bundles.is_dir():
        files |= {f"bundles/{file.name}": file for file in sorted(config.bundles.iterdir()) if len(file.name) == 64}
    files |= {f"evaluation/{task}.npz": file for task, file in evaluations(store).items() if file.is_file()}
    pki = config.enrollment.pki
    if pki is not None:
        for folder in (pki, pki / "services"):
            names = [f for f in sorted(folder.iterdir()) if f.suffix in (".pem", ".key")] if folder.is_dir() else []
            files |= {f"pki/{file.relative_to(pki)}": file for file in names}
    broker = config.broker
    for name, file in (("ca", broker.ca), ("certificate", broker.certificate), ("key", broker.key)):
        if file is not None and not (pki and file.is_relative_to(pki)):
            files[f"broker/{name}.pem"] = file
    files = {name: file for name, file in files.items() if is_ours(name)}
    for name, file in files.items():
        if not file.is_file():
            raise ConfigError(f"{file} is not there ({name} of the backup)", "mend the configuration, or restore it")
    return files


def evaluations(store: Path) -> dict[str, Path]:
    """Task -> the file of its held-out examples, by a store."""
    with _reading(store) as reader:
        return {r["name"]: Path(r["evaluation"]) for r in reader.query("SELECT name, evaluation FROM task") if r[1]}


@contextmanager
def _reading(store: Path) -> Iterator[StoreReader]:
    reader = StoreReader(store)
    try:
        yield reader
    finally:
        reader.close()


@dataclass(frozen=True)
class Found:
    """What lies in an unpacked backup."""

    tasks: int
    devices: int
    bundles: int
    public_key: str
    without_examples: tuple[str, ...]  # tasks whose held-out examples were not there to be kept


def check(folder: Path, step: Step, *, migrate: bool = False) -> Found:
    """Whether an unpacked backup is a gateway: store sound, keys and certificates of each other, bundles unharmed.

    `migrate`: a store that older software wrote becomes this software's first. Raises `ConfigError` naming what is not.
    """
    step("checking the store")
    _check_store(folder / STORE)
    if migrate:
        SqliteStore(folder / STORE, keep_releases=KEEP_ALL).close()
    step("checking keys and certificates")
    public = load_existing_key(folder / FLEET_KEY)
    load_chain(folder / FLEET_KEY)
    if (folder / "pki").is_dir():
        check_pki(folder / "pki")
    bundles = sorted((folder / "bundles").iterdir()) if (folder / "bundles").is_dir() else []
    for number, bundle in enumerate(bundles):
        step(f"checking bundle {number + 1} of {len(bundles)}")
        if sha256_of(bundle) != bundle.name:
            raise ConfigError(
                f"bundle {bundle.name:.12} is damaged", "put it back into `bundles` from where it was made"
            )
    with _reading(folder / STORE) as reader:
        plans = [reader.plan(row["name"]) for row in reader.query("SELECT name FROM task")]
        devices = int(reader.query("SELECT count(*) FROM device")[0][0])
    lacking = {p.bundle_sha256 for p in plans} - {b.name for b in bundles}
    if lacking:
        raise ConfigError(f"bundle {min(lacking):.12} is not there, and a task has it", "`task change` names it again")
    named = evaluations(folder / STORE)
    without = tuple(sorted(task for task in named if not (folder / "evaluation" / f"{task}.npz").is_file()))
    return Found(len(plans), devices, len(bundles), public, without)


def _check_store(store: Path) -> None:
    try:
        with closing(sqlite3.connect(f"{store.absolute().as_uri()}?mode=ro", uri=True)) as db:
            answer = [row[0] for row in db.execute("PRAGMA integrity_check(1)")]
    except sqlite3.Error as error:
        raise ConfigError(f"the store is damaged: {error}", "use another backup") from None
    if answer != ["ok"]:
        raise ConfigError(f"the store is damaged: {answer[0]:.200}", "use another backup")


def load_existing_key(path: Path) -> str:
    """The public key, hex, of a signing key's file. Raises `ConfigError` where there is none."""
    if not path.is_file():
        raise ConfigError(f"there is no {path.name}", "use another backup")
    return load_or_create_key(path).public


def check_pki(folder: Path) -> None:
    """Each key is its certificate's, and each certificate the authority's. Raises `ConfigError`."""
    if not (folder / "ca.pem").is_file() or not (folder / "ca.key").is_file():
        raise ConfigError(f"{folder} has no ca.pem and ca.key", "name the authority's folder in [enrollment] pki")
    authority = read_certificate((folder / "ca.pem").read_bytes(), "ca.pem")
    for file in sorted(folder.rglob("*.key")):
        beside = file.with_suffix(".pem")
        if not beside.is_file():
            raise ConfigError(f"{file.name} has no {beside.name}", "`python -m deploy gateway up` makes it")
        certificate = read_certificate(beside.read_bytes(), beside.name)
        if load_key(file.read_bytes()).public_key() != certificate.public_key():
            raise ConfigError(f"{file.name} is not the key of {beside.name}", "`python -m deploy gateway up` mends it")
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            raise ConfigError(f"{beside.name} is not of the authority in ca.pem", "restore it from a backup") from None
    try:
        revoked = x509.load_pem_x509_crl((folder / "crl.pem").read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"crl.pem cannot be read: {error}", "`python -m deploy gateway up` makes it") from None
    if revoked.issuer != authority.subject:
        raise ConfigError("crl.pem is another authority's", "`python -m deploy gateway up` makes it")
