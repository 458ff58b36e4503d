"""Every secret of a virtual fleet: the gateway's authority, a certificate for each device, signing keys.

Until devices enrol with a ticket this stands in for enrolment, and is the only module that knows how a member of the
fleet comes by what it proves itself with. What is made lies in the fleet's folder, keys with mode 0600, and stays.
"""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from broker_aggregator.pki import SERVICES, Pki, make_pki
from fl_protocol.certificates import key_pem, load_key, make_key, read_certificate, renew_at
from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError
from fl_protocol.keyfile import load_or_create_key

BROKER_NAMES = ("broker", "localhost", "127.0.0.1")
DEVICE_DAYS = 825


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, as PEM."""

    certificate: bytes
    key: bytes


class Credentials:
    """What lies in `folder`; whatever is asked for is made if it is not there. All raise `ConfigError`."""

    def __init__(self, folder: Path, fleet: str) -> None:
        self._folder, self._now = folder, dt.datetime.now(dt.UTC)
        try:
            make_pki(folder, fleet, BROKER_NAMES, self._now)
        except OSError as error:
            raise _unusable(folder, error) from None
        self._pki = Pki(folder)

    @property
    def ca(self) -> bytes:
        """The authority's certificate."""
        return self._read("ca.pem")

    @property
    def crl(self) -> bytes:
        """The list of revoked certificates; the broker wants to see one, though it is empty."""
        return self._read("crl.pem")

    @property
    def fleet_seed(self) -> bytes:
        """The file of the fleet's signing key."""
        return self._signing_key("fleet")[0]

    @property
    def fleet_key(self) -> str:
        """The fleet's public key in hex."""
        return self._signing_key("fleet")[1]

    @property
    def server(self) -> Pair:
        """The broker's."""
        return Pair(self._read("server.pem"), self._read("server.key"))

    @property
    def services(self) -> dict[str, Pair]:
        """Those of the gateway's programs and people, by name."""
        return {name: Pair(self._read(f"services/{name}.pem"), self._read(f"services/{name}.key")) for name in SERVICES}

    def device(self, device: str) -> Pair:
        """A device's, made again when two thirds of its life are over; the common name is the device's id."""
        key = self._folder / "devices" / f"{device}.key"
        certificate = key.with_suffix(".pem")
        try:
            if not key.exists():
                certificate.unlink(missing_ok=True)
                write_durably(key, key_pem(make_key()), mode=0o600)
            if not certificate.exists() or self._now >= renew_at(
                read_certificate(certificate.read_bytes(), str(certificate))
            ):
                public = load_key(key.read_bytes()).public_key()
                issued = self._pki.authority.certify_client(device, public, self._now, DEVICE_DAYS)
                write_durably(certificate, issued.public_bytes(serialization.Encoding.PEM))
            return Pair(certificate.read_bytes(), key.read_bytes())
        except OSError as error:
            raise _unusable(self._folder, error) from None

    def device_seed(self, device: str) -> tuple[bytes, str]:
        """The file of a device's signing key, and the public key in hex."""
        return self._signing_key(f"devices/{device}.signing")

    def _signing_key(self, name: str) -> tuple[bytes, str]:
        path = self._folder / f"{name}.key"
        public = load_or_create_key(path).public
        return path.read_bytes(), public

    def _read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise _unusable(self._folder, error) from None


def _unusable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot keep secrets in {folder}: {error.strerror}", "name another --folder")
