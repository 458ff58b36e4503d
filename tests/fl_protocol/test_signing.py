"""A signature is worth something for one key, kind, fleet, topic and counter, and for nothing else."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.codec import decode_as, encode
from fl_protocol.errors import Code, ConfigError, ProtocolError
from fl_protocol.keyfile import load_or_create_key
from fl_protocol.messages import Ask, Envelope, Manifest, Plan
from fl_protocol.signing import SigningKey, canonical, seal, unseal, unseal_update
from tests.support import wire

TOPIC, MANIFEST = wire.SIGNED["manifest"]
SEALED = seal(MANIFEST, wire.FLEET_KEY, wire.FLEET, TOPIC)


def refused(call) -> Code:
    with pytest.raises(ProtocolError) as error:
        call()
    return error.value.code


@pytest.mark.parametrize(
    ("cls", "key", "fleet", "topic"),
    [
        (Manifest, wire.DEVICE_KEY.public, wire.FLEET, TOPIC),
        (Manifest, wire.FLEET_KEY.public, "other", TOPIC),
        (Manifest, wire.FLEET_KEY.public, wire.FLEET, "fl/1/demo/task/other/manifest/stable"),
        (Plan, wire.FLEET_KEY.public, wire.FLEET, TOPIC),
    ],
)
def test_a_signature_holds_in_one_place_only(cls, key, fleet, topic):
    """Another key, fleet, topic or kind: E_SIG."""
    assert refused(lambda: unseal(cls, SEALED, key, fleet, topic)) == Code.SIG


def test_the_counter_is_signed():
    """An old message cannot be given a newer counter."""
    forged = SEALED.replace(b'"counter":42', b'"counter":43')
    assert forged != SEALED
    assert refused(lambda: unseal(Manifest, forged, wire.FLEET_KEY.public, wire.FLEET, TOPIC)) == Code.SIG


@pytest.mark.parametrize("sig", ['"sig":"zz"', '"sig":""', '"sig":7', '"other":""'])
def test_unsigned_is_refused(sig):
    """Without a signature, or with one that is none."""
    payload = encode(MANIFEST)[:-1] + b"," + sig.encode() + b"}"
    assert refused(lambda: unseal(Manifest, payload, wire.FLEET_KEY.public, wire.FLEET, TOPIC)) == Code.SIG


def test_the_order_of_fields_on_the_wire_does_not_matter():
    """The canonical bytes are signed, not what a middleman made of them."""
    import json

    shuffled = json.dumps(dict(reversed(json.loads(SEALED).items())), indent=1).encode()
    assert unseal(Manifest, shuffled, wire.FLEET_KEY.public, wire.FLEET, TOPIC) == MANIFEST


@given(st.floats())
def test_signed_messages_hold_no_floats(number):
    """Decimals travel as strings: their bytes are the same everywhere."""
    ask = Ask(name="x", arguments={"deep": [{"er": number}]})
    assert refused(lambda: seal(ask, wire.FLEET_KEY, wire.FLEET, "t")) == Code.SCHEMA


def test_canonical_bytes_are_those_of_rfc_8785():
    """Sorted names, no white space, shortest escapes (RFC 8785, section 3.2)."""
    plain = {"b": [1, True, None], "a": '\u20ac\n\u0007"', "C": {"z": -1, "y": ""}}
    assert canonical(plain) == '{"C":{"y":"","z":-1},"a":"€\\n\\u0007\\"","b":[1,true,null]}'.encode()


def test_an_update_is_its_devices_word():
    """Not under another key, topic or fleet; not with another body."""
    envelope = decode_as(Envelope, wire.golden()["update.envelope.bin"])
    key, topic = wire.DEVICE_KEY.public, wire.UPDATE_TOPIC
    assert unseal_update(envelope, key, wire.FLEET, topic) == wire.UPDATE
    assert refused(lambda: unseal_update(envelope, wire.FLEET_KEY.public, wire.FLEET, topic)) == Code.SIG
    assert refused(lambda: unseal_update(envelope, key, wire.FLEET, topic.replace("20", "25"))) == Code.SIG
    body = encode(replace(wire.UPDATE, num_examples=10**6))
    assert refused(lambda: unseal_update(replace(envelope, body=body), key, wire.FLEET, topic)) == Code.SIG


def test_a_key_file_is_made_once_and_private(tmp_path):
    """The same key again at the next start; nobody else may read it; rubbish is the operator's to mend."""
    path = tmp_path / "deep" / "fleet.key"
    first = load_or_create_key(path)
    assert load_or_create_key(path).public == first.public
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("not a key")
    with pytest.raises(ConfigError, match=r"fleet\.key is not"):
        load_or_create_key(path)


def test_signatures_verify_under_the_published_test_vector():
    """RFC 8032, section 7.1, test 1: seed -> public key and signature of the empty message."""
    key = SigningKey(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert key.public == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155")
