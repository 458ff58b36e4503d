"""The fleet's own certificate authority: X.509 for the broker's TLS, and nothing else.

Pure but for randomness: who keeps the files is `pki.py`'s. Serial numbers are random; the names in a device's
certificate are the gateway's, whatever its request says.
"""

import datetime as dt
import ipaddress
from collections.abc import Iterable
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_protocol.certificates import PublicKey, key_pem, make_key, public_bytes
from fl_protocol.errors import Code, ConfigError, ProtocolError

AUTHORITY_DAYS = 20 * 365
REVOCATIONS_DAYS = 20 * 365  # OpenSSL refuses everyone once a list is out of date
EARLY = dt.timedelta(days=1)  # valid from then on: clocks differ
MIN_RSA_BITS = 2048
_PEM = serialization.Encoding.PEM


def _name(common_name: str, organisation: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def read_request(pem: str) -> PublicKey:
    """The public key that a certificate signing request is for.

    Raises `ProtocolError(E_SCHEMA)` for what is no request, is not signed by its own key, or has a weak one.
    """
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        valid, key = request.is_signature_valid, request.public_key()
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise ProtocolError(Code.SCHEMA, f"not a certificate signing request: {error}"[:200]) from None
    if not valid:
        raise ProtocolError(Code.SCHEMA, "the certificate signing request is not signed by the key that it names")
    match key:
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
            return key
        case ed25519.Ed25519PublicKey():
            return key
        case rsa.RSAPublicKey() if key.key_size >= MIN_RSA_BITS:
            return key
    raise ProtocolError(Code.SCHEMA, "keys are P-256, P-384, Ed25519, or RSA of 2,048 bits and more")


class Authority:
    """A key and a certificate that sign others. `now` is UTC everywhere."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key, self.certificate = key, certificate
        [organisation] = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        self.fleet = str(organisation.value)

    @classmethod
    def create(cls, fleet: str, now: dt.datetime) -> Self:
        """A new one for a fleet."""
        key = make_key()
        name = _name(f"anabranch {fleet}", fleet)
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        builder = (
            _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(key, builder.sign(key, hashes.SHA256()))

    @classmethod
    def load(cls, key: bytes, certificate: bytes) -> Self:
        """From PEM. Raises `ConfigError` for what is no such pair."""
        try:
            private = serialization.load_pem_private_key(key, None)
            issued = x509.load_pem_x509_certificate(certificate)
            if not isinstance(private, ec.EllipticCurvePrivateKey):
                raise ValueError("the key is not an elliptic curve's")
            if public_bytes(private.public_key()) != public_bytes(issued.public_key()):  # type: ignore[arg-type]
                raise ValueError("the certificate is another key's")
            return cls(private, issued)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(
                f"the certificate authority cannot be used: {error}", "restore ca.key and ca.pem from one backup"
            ) from None

    @property
    def key_pem(self) -> bytes:
        """The private key, unencrypted."""
        return key_pem(self._key)

    @property
    def certificate_pem(self) -> bytes:
        """What everyone has to know."""
        return self.certificate.public_bytes(_PEM)

    def made(self, certificate: x509.Certificate) -> bool:
        """Whether it is one of this authority's."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def certify_server(self, names: Iterable[str], key: PublicKey, now: dt.datetime, days: int) -> x509.Certificate:
        """For a broker that is reached under `names`: host names and addresses."""
        names = list(names)
        known = [_address(name) or x509.DNSName(name) for name in names]
        builder = self._issued(names[0], key, now, days, ExtendedKeyUsageOID.SERVER_AUTH)
        return self._signed(builder.add_extension(x509.SubjectAlternativeName(known), critical=False))

    def certify_client(self, name: str, key: PublicKey, now: dt.datetime, days: int) -> x509.Certificate:
        """For a device, or a service of the gateway: the broker takes `name` for its user name."""
        return self._signed(self._issued(name, key, now, days, ExtendedKeyUsageOID.CLIENT_AUTH))

    def revocation_list(self, revoked: Iterable[tuple[int, dt.datetime]], number: int, now: dt.datetime) -> bytes:
        """The list of `revoked`, (serial number, when), as PEM; `number` only grows."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - EARLY)
            .next_update(now + dt.timedelta(days=REVOCATIONS_DAYS))
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(self._identifier, critical=False)
        )
        for serial, at in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(_PEM)

    @property
    def _identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())

    def _issued(
        self, name: str, key: PublicKey, now: dt.datetime, days: int, usage: x509.ObjectIdentifier
    ) -> x509.CertificateBuilder:
        days = min(days, (self.certificate.not_valid_after_utc - now).days)
        return (
            _builder(_name(name, self.fleet), self.certificate.subject, key, now, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(self._identifier, critical=False)
        )

    def _signed(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        return builder.sign(self._key, hashes.SHA256())


def _address(name: str) -> x509.IPAddress | None:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return None


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(now + dt.timedelta(days=days))
    )
