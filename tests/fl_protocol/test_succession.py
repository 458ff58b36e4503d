"""A chain of fleet keys leads whoever believes one of them to the newest, and nobody else anywhere."""

from dataclasses import replace
from itertools import pairwise

import pytest

from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import MAX_SUCCESSIONS, FleetKeys
from fl_protocol.signing import SigningKey
from fl_protocol.succession import follow, hand_over

KEYS = [SigningKey(bytes([n]) * 32) for n in range(MAX_SUCCESSIONS + 4)]


def chain_of(count: int, fleet: str = "farm") -> FleetKeys:
    """The chain after so many rotations."""
    chain = None
    for old, new in pairwise(KEYS[: count + 1]):
        chain = hand_over(chain, old, new, fleet)
    assert chain is not None
    return chain


def test_every_key_of_the_chain_leads_to_the_newest() -> None:
    chain = chain_of(5)
    assert {follow(chain, key.public, "farm") for key in KEYS[:6]} == {KEYS[5].public}


def test_a_long_chain_forgets_its_oldest_keys() -> None:
    chain = chain_of(MAX_SUCCESSIONS + 3)
    assert (chain.first, len(chain.signatures)) == (3, MAX_SUCCESSIONS)
    assert follow(chain, KEYS[3].public, "farm") == KEYS[MAX_SUCCESSIONS + 3].public
    with pytest.raises(ProtocolError, match="E_SIG"):
        follow(chain, KEYS[2].public, "farm")


@pytest.mark.parametrize("known", [1, 2])
def test_an_older_chain_takes_nobody_back(known: int) -> None:
    """A retained message of before, played again: it leads no further, and to no key of before."""
    assert follow(chain_of(known), KEYS[known].public, "farm") == KEYS[known].public
    with pytest.raises(ProtocolError, match="E_SIG"):
        follow(chain_of(known), KEYS[known + 1].public, "farm")


def test_forged_links_are_refused() -> None:
    """Another fleet's, another place's, another key's, a gap."""
    chain, thief = chain_of(2), SigningKey(b"t" * 32)
    forged = hand_over(FleetKeys(keys=(thief.public,)), thief, thief, "farm").signatures[0]
    for bad in (
        replace(chain, keys=(*chain.keys[:2], thief.public)),
        replace(chain, signatures=(chain.signatures[0], forged), keys=(*chain.keys[:2], thief.public)),
        replace(chain, first=1),
        replace(chain, keys=(chain.keys[0], chain.keys[2]), signatures=chain.signatures[:1]),
    ):
        with pytest.raises(ProtocolError) as caught:
            follow(bad, KEYS[0].public, "farm")
        assert caught.value.code == Code.SIG
    with pytest.raises(ProtocolError, match="E_SIG"):
        follow(chain, KEYS[0].public, "city")
    with pytest.raises(ProtocolError, match="E_SCHEMA"):
        follow(replace(chain, signatures=chain.signatures[:1]), KEYS[0].public, "farm")
