"""What both sides know of X.509: a device's key, its request, and whether a certificate is what it says."""

import datetime as dt
import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from fl_protocol.errors import Code, ConfigError, ProtocolError

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def public_bytes(key: PublicKey) -> bytes:
    """The key's SubjectPublicKeyInfo, DER."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: PublicKey) -> str:
    """SHA-256 of the public key, hex: the name by which people compare it."""
    return hashlib.sha256(public_bytes(key)).hexdigest()


def make_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: PrivateKey) -> bytes:
    """The private key as PKCS #8, unencrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes) -> PrivateKey:
    """The inverse of `key_pem`. Raises `ConfigError` for what is no such key."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"not a private key: {error}", "delete it to make a new one, and enrol again") from None
    if not isinstance(key, PrivateKey):
        raise ConfigError("a private key of an unknown kind", "delete it to make a new one, and enrol again")
    return key


def make_request(key: PrivateKey, name: str) -> str:
    """A certificate signing request, PEM. `name` is a wish: the gateway gives the name."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


def check_issued(pem: str, authority: bytes, key: PublicKey, name: str) -> x509.Certificate:
    """The certificate, if the fleet's authority issued it to this key under this name; dates are not looked at.

    Raises `ProtocolError(E_AUTH)`: whoever sent another one is not the gateway.
    """
    try:
        issued = x509.load_pem_x509_certificate(pem.encode())
        issued.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
        theirs, names = issued.public_key(), issued.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise ProtocolError(Code.AUTH, f"not a certificate of the fleet's authority: {error}"[:200]) from None
    if not isinstance(theirs, PublicKey) or public_bytes(theirs) != public_bytes(key):
        raise ProtocolError(Code.AUTH, "the certificate is for another key")
    if [n.value for n in names] != [name]:
        raise ProtocolError(Code.AUTH, f"the certificate names another device than {name}")
    return issued


def renew_at(certificate: x509.Certificate) -> dt.datetime:
    """When two thirds of a certificate's life are over, UTC."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begins + (ends - begins) * 2 / 3


def read_certificate(pem: bytes, name: str) -> x509.Certificate:
    """The first certificate in `pem`; `name` is the file's, for people. Raises `ConfigError`."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigError(f"{name} holds no certificate: {error}", "name a PEM file") from None
