"""A fleet's key hands over to the next one, by its signature; who believes one of them can follow to the newest.

Signature i is by keys[i], over `anabranch/1|FleetKeys|fleet|topic|n|` and the next key, n its number since the fleet's
first key: so that a link is worth nothing in another fleet, or at another place.
"""

from fl_protocol.codec import from_plain, parse_json
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import MAX_SUCCESSIONS, FleetKeys
from fl_protocol.signing import SigningKey, canonical, context, verify
from fl_protocol.topics import Kind, build


def _link(fleet: str, number: int, key: str) -> bytes:
    return context("FleetKeys", fleet, build(Kind.KEYS, fleet), number) + canonical({"key": key})


def hand_over(chain: FleetKeys | None, old: SigningKey, new: SigningKey, fleet: str) -> FleetKeys:
    """The chain with one link more; the oldest falls off beyond `MAX_SUCCESSIONS`."""
    chain = chain or FleetKeys(keys=(old.public,))
    if chain.keys[-1] != old.public:
        raise ValueError("the chain does not end with the key that is to hand over")
    signature = old.sign(_link(fleet, chain.first + len(chain.keys), new.public)).hex()
    keys, signatures = (*chain.keys, new.public), (*chain.signatures, signature)
    dropped = max(0, len(signatures) - MAX_SUCCESSIONS)
    return FleetKeys(first=chain.first + dropped, keys=keys[dropped:], signatures=signatures[dropped:])


def follow(chain: FleetKeys, believed: str, fleet: str) -> str:
    """The newest key that whoever believes in `believed` may believe in.

    Raises `ProtocolError`: E_SIG where the chain does not lead on from that key, E_SCHEMA for one with a gap. An older
    chain than one that was followed before is E_SIG too: the newest key is not in it.
    """
    if len(chain.keys) != len(chain.signatures) + 1:
        raise ProtocolError(Code.SCHEMA, f"{len(chain.keys)} keys and {len(chain.signatures)} signatures")
    if believed not in chain.keys:
        raise ProtocolError(Code.SIG, "the chain of fleet keys does not hold the one that is believed here")
    for i in range(chain.keys.index(believed), len(chain.signatures)):
        said = _link(fleet, chain.first + i + 1, chain.keys[i + 1])
        verify(chain.keys[i], bytes.fromhex(chain.signatures[i]), said)
    return chain.keys[-1]


def newest_key(payload: bytes, believed: str, fleet: str) -> str:
    """The key that a signed message is to be checked by: `believed`, or what the chain in its `keys` leads to from it.

    Raises `ProtocolError`: E_SCHEMA, E_SIZE, E_SIG as in `follow`.
    """
    plain = parse_json(payload)
    chain = plain.get("keys") if isinstance(plain, dict) else None
    return believed if chain is None else follow(from_plain(FleetKeys, chain), believed, fleet)
