"""Build and parse every topic, both ways. The only place with slashes."""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache

from fl_protocol.errors import Code, ProtocolError

ROOT = "fl/1"
_ID = re.compile(r"[a-z0-9-]{1,64}")
_VERSION = re.compile(r"[0-9]{1,16}")
_FIELD = re.compile(r"\{(\w+)\}")
MAX_TOPIC = 512


class Kind(StrEnum):
    """What a topic is for; the value is its pattern below `fl/1/{fleet}/`."""

    STATE = "dev/{device}/state"
    INFO = "dev/{device}/info"
    HEALTH = "dev/{device}/health"
    EVENT = "dev/{device}/event"
    PREDICTION = "dev/{device}/prediction"
    DESIRED = "dev/{device}/twin/desired"
    REPORTED = "dev/{device}/twin/reported"
    DEVICE_COMMAND = "dev/{device}/cmd/{name}/{cid}"
    UPDATE = "dev/{device}/up/update"
    OFFER = "dev/{device}/up/offer"
    CHUNK_UP = "dev/{device}/up/chunk"
    GET = "dev/{device}/up/get"
    WANT = "dev/{device}/up/want"
    SLOT_ANSWER = "dev/{device}/up/slot"
    RENEW = "dev/{device}/up/renew"
    GRANT = "dev/{device}/dn/grant"
    CHUNK_DOWN = "dev/{device}/dn/chunk"
    DELTA = "dev/{device}/dn/delta"
    SLOT = "dev/{device}/dn/slot"
    RESULT = "dev/{device}/dn/result"
    CERTIFICATE = "dev/{device}/dn/cert"
    PLAN = "task/{task}/plan"
    MANIFEST = "task/{task}/manifest/{channel}"
    STATUS = "task/{task}/status"
    METRICS = "task/{task}/metrics"
    BROADCAST = "task/{task}/chunk/{version}"
    GATEWAY = "gw/state"
    SYNC = "gw/sync"
    KEYS = "gw/key"
    COMMAND = "op/cmd/{name}/{cid}"
    ENROLL = "enroll/{claim}/req"
    ENROLLED = "enroll/{claim}/resp"


@dataclass(frozen=True)
class Topic:
    """A topic's kind, its fleet, and the ids in it; those that the kind does not have are empty."""

    kind: Kind
    fleet: str
    device: str = ""
    task: str = ""
    channel: str = ""
    version: str = ""
    name: str = ""
    cid: str = ""
    claim: str = ""

    def __str__(self) -> str:
        return build(self.kind, self.fleet, **{f: getattr(self, f) for f in _fields(self.kind)})


@cache
def _fields(kind: Kind) -> tuple[str, ...]:
    return tuple(_FIELD.findall(kind.value))


def build(kind: Kind, fleet: str, **ids: str) -> str:
    """The topic of `kind`; ids are `[a-z0-9-]{1,64}`, or `+` for a subscription's wildcard.

    Raises `ProtocolError(E_SCHEMA)` for an id that could reach another topic.
    """
    for name, value in {"fleet": fleet, **ids}.items():
        if value != "+" and not _ID.fullmatch(value):
            raise ProtocolError(Code.SCHEMA, f"{name} {value!r:.80} is not 1..64 of a-z, 0-9 and -")
    return f"{ROOT}/{fleet}/{kind.value.format(**ids)}"


@cache
def _pattern(kind: Kind) -> re.Pattern[str]:
    body = _FIELD.sub(lambda m: f"(?P<{m[1]}>{(_VERSION if m[1] == 'version' else _ID).pattern})", kind.value)
    return re.compile(rf"{ROOT}/(?P<fleet>{_ID.pattern})/{body}")


@lru_cache(maxsize=4096)
def parse(topic: str) -> Topic:
    """The inverse of `build`. Raises `ProtocolError(E_SCHEMA)` for anything that `build` would not make."""
    if len(topic) <= MAX_TOPIC:
        for kind in Kind:
            match = _pattern(kind).fullmatch(topic)
            if match:
                return Topic(kind, **match.groupdict())
    raise ProtocolError(Code.SCHEMA, f"{topic!r:.120} is no topic of ours")


def below(fleet: str, *levels: str) -> str:
    """A subscription to everything under the levels, e.g. `below(fleet, "dev", "+", "up")`."""
    return "/".join([build(Kind.GATEWAY, fleet).rsplit("/", 2)[0], *levels, "#"])
