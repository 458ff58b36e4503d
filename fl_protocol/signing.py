"""Ed25519 over canonical bytes: what the fleet's key vouches for, and what a device's key does.

A signature covers `anabranch/1|kind|fleet|topic|counter|` and then the message, so that it is worth nothing on another
topic, in another fleet or for another kind of message. JSON is signed as its RFC 8785 bytes without the field `sig`;
since signed objects hold no floats and only ASCII names, sorted keys and minimal separators are those bytes. Binary
messages carry the exact bytes that were signed (`Envelope.body`).
"""

from dataclasses import replace
from typing import Any, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fl_protocol.codec import decode_as, encode, from_plain, parse_json, to_wire
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import Envelope, Offer, Signed, Update

S = TypeVar("S", bound=Signed)


class SigningKey:
    """A private Ed25519 key, made of its 32 bytes of seed; `public` is the public key in hex."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw().hex()

    def sign(self, data: bytes) -> bytes:
        """The 64 bytes of signature."""
        return self._key.sign(data)


def verify(public_key: str, signature: bytes, data: bytes) -> None:
    """Raises `ProtocolError(E_SIG)` unless `signature` is `public_key`'s over `data`."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(signature, data)
    except (InvalidSignature, ValueError):
        raise ProtocolError(Code.SIG, "the signature is not this key's over this message") from None


def context(kind: str, fleet: str, topic: str, counter: int) -> bytes:
    """What stands before a message in what is signed."""
    return f"anabranch/1|{kind}|{fleet}|{topic}|{counter}|".encode()


def canonical(plain: dict[str, Any]) -> bytes:
    """RFC 8785 bytes of a JSON object. Raises `ProtocolError(E_SCHEMA)` for floats and names that are not ASCII."""
    _check_canonical(plain)
    return msgspec.json.encode(plain, order="sorted")


def _check_canonical(value: object) -> None:
    if isinstance(value, float):
        raise ProtocolError(Code.SCHEMA, "a signed message holds no floats; decimals travel as strings")
    if isinstance(value, int) and not -(2**53) < value < 2**53:
        raise ProtocolError(Code.SCHEMA, f"{value!r:.40} is beyond what JSON carries exactly")
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str) or not name.isascii():
                raise ProtocolError(Code.SCHEMA, "names in a signed message are ASCII text")
            _check_canonical(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_canonical(inner)


def seal(message: Signed, key: SigningKey, fleet: str, topic: str) -> bytes:
    """The signed message's bytes for `topic`."""
    plain = to_wire(message)
    body = canonical(plain)
    signature = key.sign(context(type(message).__name__, fleet, topic, message.counter) + body)
    return msgspec.json.encode({**plain, "sig": signature.hex()}, order="sorted")


def unseal(cls: type[S], payload: bytes, public_key: str, fleet: str, topic: str) -> S:
    """The inverse of `seal`. Raises `ProtocolError`: E_SIG unsigned or not by `public_key`, E_SCHEMA, E_SIZE.

    The caller compares `counter` with the last that it saw on this topic: a lower one is E_DOWNGRADE.
    """
    plain = parse_json(payload)
    if not isinstance(plain, dict):
        raise ProtocolError(Code.SCHEMA, f"{cls.__name__} is a map, not {type(plain).__name__}")
    signature, counter = plain.pop("sig", None), plain.get("counter", 0)
    if not isinstance(signature, str) or type(counter) is not int:
        raise ProtocolError(Code.SIG, f"{cls.__name__} is not signed")
    try:
        raw = bytes.fromhex(signature)
    except ValueError:
        raise ProtocolError(Code.SIG, "`sig` is not hexadecimal") from None
    verify(public_key, raw, context(cls.__name__, fleet, topic, counter) + canonical(plain))
    return from_plain(cls, plain)


def seal_update(update: Update, key: SigningKey, fleet: str, topic: str) -> bytes:
    """The update in its envelope. `topic` is `up/update`'s, also for one that travels in chunks."""
    body = encode(update)
    return encode(Envelope(body=body, signature=key.sign(context("Update", fleet, topic, update.seq) + body)))


def unseal_update(envelope: Envelope, public_key: str, fleet: str, topic: str) -> Update:
    """The inverse of `seal_update`. Raises `ProtocolError`: E_SIG, E_SCHEMA, E_SIZE."""
    update = decode_as(Update, envelope.body)
    verify(public_key, envelope.signature, context("Update", fleet, topic, update.seq) + envelope.body)
    return update


def sign_offer(offer: Offer, key: SigningKey, fleet: str, topic: str) -> Offer:
    """The offer with its device's signature, for `topic`."""
    body = encode(replace(offer, signature=None))
    return replace(offer, signature=key.sign(context("Offer", fleet, topic, offer.seq) + body))


def verify_offer(offer: Offer, public_key: str, fleet: str, topic: str) -> None:
    """Raises `ProtocolError(E_SIG)` unless the device of `public_key` made this offer."""
    if offer.signature is None:
        raise ProtocolError(Code.SIG, "the offer is not signed")
    body = encode(replace(offer, signature=None))
    verify(public_key, offer.signature, context("Offer", fleet, topic, offer.seq) + body)
