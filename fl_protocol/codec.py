"""encode(message) -> bytes and decode(kind, bytes) -> message; every length bounded before allocation.

JSON for what a person may read, msgpack for what is heavy. `decode` raises `ProtocolError` and nothing else.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

import msgpack
import msgspec

from fl_protocol import messages as m
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.topics import Kind

M = TypeVar("M", bound=m.Message)

MAX_JSON_BYTES = 12 * 1024
MAX_PACKET_BYTES = 256 << 10  # a message that is larger goes in chunks, whatever the broker would carry
MAX_UNPACKED_BYTES = 256 << 20  # an update that came in chunks

MESSAGE_OF: Mapping[Kind, type[m.Message]] = {
    Kind.STATE: m.DeviceState,
    Kind.INFO: m.DeviceInfo,
    Kind.HEALTH: m.Health,
    Kind.EVENT: m.DeviceEvent,
    Kind.PREDICTION: m.Prediction,
    Kind.DESIRED: m.Desired,
    Kind.REPORTED: m.Reported,
    Kind.UPDATE: m.Envelope,
    Kind.OFFER: m.Offer,
    Kind.CHUNK_UP: m.Chunk,
    Kind.GET: m.Get,
    Kind.WANT: m.Want,
    Kind.SLOT_ANSWER: m.SlotAnswer,
    Kind.GRANT: m.Grant,
    Kind.CHUNK_DOWN: m.Chunk,
    Kind.DELTA: m.Delta,
    Kind.SLOT: m.Slot,
    Kind.RESULT: m.Result,
    Kind.PLAN: m.Plan,
    Kind.MANIFEST: m.Manifest,
    Kind.STATUS: m.TaskStatus,
    Kind.METRICS: m.ReleaseMetrics,
    Kind.BROADCAST: m.Chunk,
    Kind.GATEWAY: m.GatewayState,
    Kind.SYNC: m.Sync,
    Kind.KEYS: m.FleetKeys,
    Kind.ENROLL: m.Enroll,
    Kind.ENROLLED: m.Certified,
    Kind.RENEW: m.Renew,
    Kind.CERTIFICATE: m.Certified,
}
BINARY = frozenset({m.Update, m.Envelope, m.Offer, m.Grant, m.Chunk, m.Get, m.Want, m.Delta})


SHORT = frozenset(  # said often: without defaults
    {m.Update, m.Want, m.Delta, m.DeviceState, m.Result, m.Manifest, m.Slot, m.SlotAnswer}
)

_NAMES: dict[type[m.Message], tuple[str, ...]] = {}


def _names(cls: type[m.Message]) -> tuple[str, ...]:
    if cls not in _NAMES:
        _NAMES[cls] = tuple(sorted(f.name for f in fields(cls) if f.name != "extra"))
    return _NAMES[cls]


def to_plain(message: m.Message) -> dict[str, Any]:
    """The message as plain maps, lists, texts and numbers, fields of a later schema included."""
    plain: dict[str, Any] = {
        name: to_plain(value) if isinstance(value, m.Message) else value
        for name in _names(type(message))
        if (value := getattr(message, name)) is not None
    }
    return {**message.extra, **plain}


def from_plain(cls: type[M], plain: object) -> M:
    """The inverse of `to_plain`. Raises `ProtocolError(E_SCHEMA | E_VERSION)` naming the field."""
    if not isinstance(plain, dict):
        raise ProtocolError(Code.SCHEMA, f"{cls.__name__} is a map, not {type(plain).__name__}")
    version = plain.get("v", 1)
    if type(version) is int and version > 1:
        raise ProtocolError(Code.VERSION, f"{cls.__name__} has schema {version}; this software reads 1")
    names = _names(cls)
    known = {k: v for k, v in plain.items() if k in names}
    known["extra"] = {k: v for k, v in plain.items() if k not in names}
    try:
        return msgspec.convert(known, cls)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise ProtocolError(Code.SCHEMA, f"{cls.__name__}: {error}"[:400]) from None


def to_wire(message: m.Message) -> dict[str, Any]:
    """`to_plain` as it travels: what is said often leaves out the fields that have their default."""
    plain = to_plain(message)
    if type(message) in SHORT:
        for f in fields(message):
            default = f.default if f.default_factory is MISSING else f.default_factory()
            if f.name in plain and default is not MISSING and plain[f.name] == default:
                del plain[f.name]
    return plain


def encode(message: m.Message) -> bytes:
    """The message's bytes: deterministic, keys sorted."""
    plain = to_wire(message)
    if type(message) in BINARY:
        return bytes(msgpack.packb(plain))
    return msgspec.json.encode(plain, order="sorted")


def decode_as(cls: type[M], payload: bytes) -> M:
    """Read one message of a known class, however it came. Raises `ProtocolError(E_SIZE | E_SCHEMA | E_VERSION)`."""
    return from_plain(cls, unpack(payload) if cls in BINARY else parse_json(payload))


def decode(kind: Kind, payload: bytes) -> m.Message:
    """Read one packet of a topic of `kind`. Raises `ProtocolError(E_SIZE | E_SCHEMA | E_VERSION)`."""
    if kind not in MESSAGE_OF:
        raise ProtocolError(Code.SCHEMA, f"{kind} carries no single kind of message")
    if len(payload) > MAX_PACKET_BYTES:
        raise ProtocolError(Code.SIZE, f"{len(payload)} bytes in one message; above {MAX_PACKET_BYTES} go in chunks")
    return decode_as(MESSAGE_OF[kind], payload)


def parse_json(payload: bytes, limit: int = MAX_JSON_BYTES) -> object:
    """Strict JSON: no NaN, nothing after the end. Raises `ProtocolError(E_SIZE | E_SCHEMA)`."""
    if len(payload) > limit:
        raise ProtocolError(Code.SIZE, f"{len(payload)} bytes of JSON; at most {limit} are read")
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(Code.SCHEMA, f"not JSON: {error}"[:400]) from None


def unpack(payload: bytes, limit: int = MAX_UNPACKED_BYTES) -> object:
    """Bounded msgpack. Raises `ProtocolError(E_SIZE | E_SCHEMA)`."""
    if len(payload) > limit:
        raise ProtocolError(Code.SIZE, f"{len(payload)} bytes of msgpack; at most {limit} are read")
    try:
        return msgpack.unpackb(
            payload,
            max_str_len=4096,
            max_bin_len=len(payload),
            max_array_len=4096,
            max_map_len=4096,
            max_ext_len=0,
            strict_map_key=True,
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError, OverflowError) as error:
        raise ProtocolError(Code.SCHEMA, f"not msgpack: {type(error).__name__} {error}"[:400]) from None
