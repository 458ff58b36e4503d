"""Every secret of a virtual fleet: one certificate authority, a certificate each, signing keys, and who may do what.

Until devices enrol with a ticket this stands in for enrolment, and is the only module that knows how a member of the
fleet comes by what it proves itself with. What is made lies in the fleet's folder, mode 0600, and is made once.
"""

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError
from fl_protocol.keyfile import load_or_create_key

SERVICES = ("aggregator", "operator", "monitor")
BROKER_NAMES = ("broker", "localhost")
YEARS = dt.timedelta(days=3650)  # a virtual fleet is thrown away long before
SKEW = dt.timedelta(hours=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, as PEM."""

    certificate: bytes
    key: bytes


class Credentials:
    """What lies in `folder`; whatever is asked for is made if it is not there. All raise `ConfigError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = self._load_authority()

    @property
    def ca(self) -> bytes:
        """The authority's certificate, as PEM."""
        return self._authority.certificate

    @property
    def fleet_seed(self) -> bytes:
        """The file of the fleet's signing key."""
        return self._signing_key("fleet")[0]

    @property
    def fleet_key(self) -> str:
        """The fleet's public key in hex."""
        return self._signing_key("fleet")[1]

    def server(self) -> Pair:
        """The broker's."""
        return self._pair("server", BROKER_NAMES)

    def service(self, name: str) -> Pair:
        """One of `SERVICES`."""
        return self._pair(f"services/{name}")

    def device(self, device: str) -> Pair:
        """A device's; the common name is its id."""
        return self._pair(f"devices/{device}")

    def device_seed(self, device: str) -> tuple[bytes, str]:
        """The file of a device's signing key, and the public key in hex."""
        return self._signing_key(f"devices/{device}.signing")

    def crl(self) -> bytes:
        """An empty list of revoked certificates, as PEM: the broker wants to see one."""
        ca, key = _certificate(self._authority), _key(self._authority)
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(ca.subject)
        signed = builder.last_update(now - SKEW).next_update(now + YEARS).sign(key, hashes.SHA256())
        return self._kept("crl.pem", signed.public_bytes(serialization.Encoding.PEM))

    def _signing_key(self, name: str) -> tuple[bytes, str]:
        path = self._folder / f"{name}.key"
        public = load_or_create_key(path).public
        return path.read_bytes(), public

    def _load_authority(self) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name("Anabranch virtual fleet")
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = _builder(subject, subject, key.public_key()).add_extension(usage, critical=True)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        return self._kept_pair("ca", Pair(_pem(builder.sign(key, hashes.SHA256())), _key_pem(key)))

    def _pair(self, name: str, names: Sequence[str] = ()) -> Pair:
        """A certificate of this authority, for a server where it has `names`, else for a client."""
        ca = _certificate(self._authority)
        key = ec.generate_private_key(ec.SECP256R1())
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if names else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = _builder(_name(Path(name).name), ca.subject, key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        if names:
            local: x509.GeneralName = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([*map(x509.DNSName, names), local]), False)
        return self._kept_pair(name, Pair(_pem(builder.sign(_key(self._authority), hashes.SHA256())), _key_pem(key)))

    def _kept_pair(self, name: str, made: Pair) -> Pair:
        """What lies there, or `made`: the key is written first, so a certificate without its key is never left."""
        if not (self._folder / f"{name}.pem").exists():
            (self._folder / f"{name}.key").unlink(missing_ok=True)
        key = self._kept(f"{name}.key", made.key)
        return Pair(self._kept(f"{name}.pem", made.certificate), key)

    def _kept(self, name: str, made: bytes) -> bytes:
        path = self._folder / name
        try:
            if not path.exists():
                write_durably(path, made, mode=0o600)
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot keep {path}: {error.strerror}", "name another --folder") from None


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    serial = x509.random_serial_number()
    return builder.serial_number(serial).not_valid_before(now - SKEW).not_valid_after(now + YEARS)


def _certificate(pair: Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate)


def _key(pair: Pair) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pair.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
