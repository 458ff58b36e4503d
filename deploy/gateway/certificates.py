"""The fleet's authority on this machine, and one certificate more than `make_pki` makes: the enrolment broker's."""

import datetime as dt
import shutil
import stat
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from broker_aggregator.pki import SERVICE_DAYS, SERVICES, Pki, make_pki
from fl_protocol.certificates import key_pem, load_key, make_key, read_certificate, renew_at
from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError

from .plan import Accounts, Plan
from .writing import Wanted

BRIDGE = "services/enrollment"


def make_certificates(plan: Plan, now: dt.datetime, *, dry_run: bool = False) -> list[str]:
    """Make what is lacking or due; the names of the files. Raises `ConfigError` for another fleet's authority."""
    if not dry_run:
        return _make(plan.pki, plan, now)
    with tempfile.TemporaryDirectory() as folder:  # of mode 0700, and gone in a moment
        copy = Path(folder) / "pki"
        if plan.pki.is_dir():
            shutil.copytree(plan.pki, copy)
        return _make(copy, plan, now)


def _make(folder: Path, plan: Plan, now: dt.datetime) -> list[str]:
    mode = stat.S_IMODE(folder.stat().st_mode) if folder.is_dir() else None
    made = make_pki(folder, plan.fleet, plan.server_names, now)
    if mode is not None:
        folder.chmod(mode)  # `make_pki` gives it its own
    return made + _bridge(folder, now)


def _bridge(folder: Path, now: dt.datetime) -> list[str]:
    key, certificate, authority = folder / f"{BRIDGE}.key", folder / f"{BRIDGE}.pem", Pki(folder).authority
    made = []
    if not key.exists():
        write_durably(key, key_pem(make_key()), mode=0o600)
        made.append(f"{BRIDGE}.key")
    public = load_key(key.read_bytes()).public_key()
    found = read_certificate(certificate.read_bytes(), certificate.name) if certificate.exists() else None
    if found and found.public_key() == public and now < renew_at(found) and authority.made(found):
        return made
    issued = authority.certify_client("enrollment", public, now, SERVICE_DAYS)
    write_durably(certificate, issued.public_bytes(serialization.Encoding.PEM), mode=0o644)
    return [*made, f"{BRIDGE}.pem"]


def ownership(folder: Path, accounts: Accounts | None) -> list[Wanted]:
    """Who may read what; `accounts` None: whoever runs this owns all of it.

    The gateway's account writes the folder, and alone reads the authority's key and its own; the broker's reads its
    two. What the gateway writes there later belongs to the broker's group, which is how the broker reads `crl.pem`.
    """
    gateway = accounts.gateway if accounts else None
    broker = accounts.broker if accounts else None
    root = "root" if accounts else None
    public = [folder / "ca.pem", folder / "server.pem", folder / "crl.pem"]
    public += [folder / f"services/{name}.pem" for name in (*SERVICES, "enrollment")]
    found = [
        Wanted(folder, mode=0o2755 if accounts else 0o755, owner=gateway, group=broker),
        Wanted(folder / "services", mode=0o755, owner=root, group=root),
        Wanted(folder / "ca.key", mode=0o600, owner=gateway, group=gateway),
        Wanted(folder / "services/aggregator.key", mode=0o600, owner=gateway, group=gateway),
        Wanted(folder / "server.key", mode=0o640 if accounts else 0o600, owner=gateway, group=broker),
        Wanted(folder / f"{BRIDGE}.key", mode=0o640 if accounts else 0o600, owner=gateway, group=broker),
    ]
    found += [Wanted(folder / f"services/{name}.key", mode=0o600, owner=root, group=root) for name in SERVICES[1:]]
    # The list is written by the gateway, whose umask takes the world's bit away: the broker reads it by its group.
    modes = {folder / "crl.pem": 0o640} if accounts else {}
    return found + [Wanted(path, mode=modes.get(path, 0o644), owner=gateway, group=broker) for path in public]


def read_names(certificate: Path) -> tuple[str, ...]:
    """Under which names the broker is reached, by its certificate. Raises `ConfigError`."""
    try:
        pem = certificate.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read {certificate}: {error.strerror}", "run `python -m deploy gateway up` again"
        ) from None
    names = (
        read_certificate(pem, certificate.name).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    )
    return tuple(str(name.value) for name in names)
