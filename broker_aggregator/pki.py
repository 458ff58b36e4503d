"""The authority's files on the gateway: made once, mended where something is lacking, never half-written.

`ca.pem`, `ca.key`, `crl.pem`, `server.pem`, `server.key`, and under `services/` a pair for each program of the
gateway's own that speaks to the broker. Keys have mode 0600; who runs the broker must be given `server.key` to read.
"""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from broker_aggregator.authority import Authority, read_request
from broker_aggregator.fleet import Certificate
from fl_protocol.certificates import fingerprint, key_pem, load_key, make_key, read_certificate, renew_at
from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError

SERVICES = ("aggregator", "operator", "monitor")
SERVICE_DAYS = SERVER_DAYS = 825  # what strict clients take of a server


class Pki:
    """An authority with its folder. Raises `ConfigError` where it is not there, or cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.authority = Authority.load((folder / "ca.key").read_bytes(), (folder / "ca.pem").read_bytes())
        except FileNotFoundError as error:
            raise ConfigError(
                f"there is no certificate authority: {error.filename}", "`python -m deploy gateway up` makes one"
            ) from None
        except OSError as error:
            raise ConfigError(f"the certificate authority cannot be read: {error}", "see who owns its folder") from None

    def key_of(self, csr: str) -> str:
        """See `enrollment.Issuer`."""
        return fingerprint(read_request(csr))

    def issue(self, device: str, csr: str, now_ms: int, days: int) -> Certificate:
        """See `enrollment.Issuer`."""
        key = read_request(csr)
        made = self.authority.certify_client(device, key, _utc(now_ms), days)
        expires_ms = round(made.not_valid_after_utc.timestamp() * 1000)
        return Certificate(f"{made.serial_number:x}", device, fingerprint(key), _pem(made).decode(), expires_ms)

    def revoke(self, revoked: Sequence[Certificate], now_ms: int) -> None:
        """Write the list of all certificates that are none any more; the broker has to be told to read it again."""
        rows = [(int(c.serial, 16), _utc(c.revoked_ms)) for c in revoked]
        made = self.authority.revocation_list(rows, len(rows) + 1, _utc(now_ms))
        write_durably(self.folder / "crl.pem", made, mode=0o644)


def make_pki(folder: Path, fleet: str, names: Sequence[str], now: dt.datetime) -> list[str]:
    """Make what is lacking, and what two thirds of its life are over of; the files that were made.

    `names` are those under which devices reach the broker. Raises `ConfigError` for another fleet's authority.
    """
    made: list[str] = []

    def write(name: str, data: bytes, mode: int) -> None:
        write_durably(folder / name, data, mode=mode)
        made.append(name)

    (folder / "services").mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    if not (folder / "ca.pem").exists():  # the key first: without its certificate it is nobody's
        if (folder / "server.pem").exists():
            raise ConfigError(f"{folder} has lost its ca.pem", "restore it from a backup: every device knows it")
        authority = Authority.create(fleet, now)
        write("ca.key", authority.key_pem, 0o600)
        write("ca.pem", authority.certificate_pem, 0o644)
    authority = Pki(folder).authority
    if authority.fleet != fleet:
        raise ConfigError(
            f"{folder} is the authority of the fleet {authority.fleet}, not {fleet}", "name another folder"
        )
    if not (folder / "crl.pem").exists():
        write("crl.pem", authority.revocation_list((), 1, now), 0o644)

    def pair(stem: str) -> tuple[x509.Certificate | None, bytes]:
        key = folder / f"{stem}.key"
        if not key.exists():
            write(f"{stem}.key", key_pem(make_key()), 0o600)
        pem, certificate = key.read_bytes(), folder / f"{stem}.pem"
        found = read_certificate(certificate.read_bytes(), certificate.name) if certificate.exists() else None
        if found and (
            found.public_key() != load_key(pem).public_key() or now >= renew_at(found) or not authority.made(found)
        ):
            found = None
        return found, pem

    found, key = pair("server")
    if found is None or _names_of(found) != set(names):
        issued = authority.certify_server(names, load_key(key).public_key(), now, SERVER_DAYS)
        write("server.pem", _pem(issued), 0o644)
    for service in SERVICES:
        found, key = pair(f"services/{service}")
        if found is None:
            issued = authority.certify_client(service, load_key(key).public_key(), now, SERVICE_DAYS)
            write(f"services/{service}.pem", _pem(issued), 0o644)
    return made


def _utc(ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _names_of(certificate: x509.Certificate) -> set[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}
