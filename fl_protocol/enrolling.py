"""How a device that nobody knows proves that it holds a ticket, and how a known one asks for its next certificate.

A claim's secret is the key of an HMAC over all that the request says, and over the claim's own topic; it never travels,
and the gateway keeps none: it makes each again from the fleet's key. (RFC 2104; Ed25519 signatures are deterministic,
RFC 8032, and nobody else can make this one.)
"""

import hashlib
import hmac
from dataclasses import replace

from fl_protocol.codec import to_wire
from fl_protocol.messages import Enroll, Renew
from fl_protocol.signing import SigningKey, canonical, verify
from fl_protocol.topics import Kind, build

NOTHING = "0" * 64


def claim_secret(key: SigningKey, fleet: str, claim: str) -> str:
    """The secret of one claim, hex; `key` is the fleet's."""
    return hashlib.sha256(key.sign(f"anabranch/1|claim|{fleet}|{claim}|".encode())).hexdigest()


def _proof(request: Enroll, secret: str, fleet: str, claim: str) -> str:
    plain = to_wire(replace(request, proof=NOTHING, ts=0))
    said = f"anabranch/1|Enroll|{build(Kind.ENROLL, fleet, claim=claim)}|".encode() + canonical(plain)
    return hmac.new(bytes.fromhex(secret), said, hashlib.sha256).hexdigest()


def prove(request: Enroll, secret: str, fleet: str, claim: str) -> Enroll:
    """The request with its proof; its time is not a part of it."""
    return replace(request, proof=_proof(request, secret, fleet, claim))


def is_proven(request: Enroll, secret: str, fleet: str, claim: str) -> bool:
    """Whether whoever made this request holds the claim's secret."""
    return hmac.compare_digest(_proof(request, secret, fleet, claim), request.proof)


def _renewal(csr: str, fleet: str, device: str) -> bytes:
    return f"anabranch/1|Renew|{build(Kind.RENEW, fleet, device=device)}|".encode() + csr.encode()


def sign_renewal(csr: str, key: SigningKey, fleet: str, device: str) -> Renew:
    """A request for the next certificate."""
    return Renew(csr=csr, signature=key.sign(_renewal(csr, fleet, device)).hex())


def verify_renewal(request: Renew, public_key: str, fleet: str, device: str) -> None:
    """Raises `ProtocolError(E_SIG)` unless the device of `public_key` made it."""
    verify(public_key, bytes.fromhex(request.signature), _renewal(request.csr, fleet, device))
