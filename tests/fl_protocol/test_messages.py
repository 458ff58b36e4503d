"""The wire: golden messages are read for ever, every damage is a ProtocolError, nothing unknown is lost."""

import contextlib
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol import messages as m
from fl_protocol.codec import MAX_JSON_BYTES, MESSAGE_OF, decode, decode_as, encode, parse_json, unpack
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.signing import unseal, unseal_update
from fl_protocol.topics import Kind
from tests.support import wire

WIRE = Path(__file__).parents[1] / "wire"
GOLDEN = WIRE / "messages"
EARLIER = sorted((WIRE / "earlier").iterdir())  # written by software of before; see `codec.SHORT`
FILES = sorted(path.name for path in GOLDEN.iterdir())


def read(name: str, data: bytes) -> m.Message:
    """Read a golden file's bytes as the receiver would."""
    stem = name.split(".")[0]
    if name == "update.envelope.bin":
        return unseal_update(decode_as(m.Envelope, data), wire.DEVICE_KEY.public, wire.FLEET, wire.UPDATE_TOPIC)
    if ".signed." in name:
        topic, message = wire.SIGNED[stem]
        return unseal(type(message), data, wire.FLEET_KEY.public, wire.FLEET, topic)
    return decode_as(type(wire.MESSAGES[stem]), data)


def expected(name: str) -> m.Message:
    """What a golden file says."""
    stem = name.split(".")[0]
    if stem == "update":
        return wire.UPDATE
    return wire.SIGNED[stem][1] if ".signed." in name else wire.MESSAGES[stem]


def test_every_message_has_a_golden_file():
    """What is said has an example that later versions must still read."""
    assert set(FILES) == set(wire.golden())


@pytest.mark.parametrize("name", FILES)
def test_golden_messages_are_read_back(name):
    """A golden file means today what it meant when it was written."""
    assert read(name, (GOLDEN / name).read_bytes()) == expected(name)


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.name)
def test_what_earlier_software_wrote_is_read_for_ever(path: Path) -> None:
    """Other bytes, the same meaning."""
    assert path.read_bytes() != (GOLDEN / path.name).read_bytes()
    assert read(path.name, path.read_bytes()) == expected(path.name)


@pytest.mark.parametrize("name", FILES)
def test_golden_messages_are_still_written_the_same(name):
    """Encoding is deterministic: the bytes that are signed and hashed do not drift."""
    assert wire.golden()[name] == (GOLDEN / name).read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_a_protocol_error(name):
    """A message cut at any length is the peer's fault, never a crash and never a message."""
    data = (GOLDEN / name).read_bytes()
    for length in range(len(data)):
        with pytest.raises(ProtocolError):
            read(name, data[:length])


@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), byte=st.integers(1, 255))
@settings(max_examples=400, deadline=None)
def test_a_changed_byte_is_refused_or_read(name, where, byte):
    """Damage never raises anything but ProtocolError; in signed messages it is always noticed."""
    data = bytearray((GOLDEN / name).read_bytes())
    data[int(where * len(data))] ^= byte
    try:
        message = read(name, bytes(data))
    except ProtocolError:
        return
    assert (".signed." not in name and ".envelope." not in name) or message == expected(name)


@given(data=st.binary(max_size=300), kind=st.sampled_from(sorted(MESSAGE_OF)))
@settings(max_examples=300, deadline=None)
def test_noise_is_a_protocol_error(data, kind):
    """Any bytes on any topic decode, or raise ProtocolError."""
    with contextlib.suppress(ProtocolError):
        decode(Kind(kind), data)


def test_unknown_fields_are_kept():
    """An old reader passes on what a newer one wrote."""
    for message in (wire.MESSAGES["state"], wire.MESSAGES["offer"]):
        newer = replace(message, extra={"from_the_future": {"a": [1, 2]}})
        again = decode_as(type(message), encode(newer))
        assert again.extra == {"from_the_future": {"a": [1, 2]}}
        assert encode(again) == encode(newer)


def test_an_unknown_field_of_a_signed_message_is_signed_too():
    """Nobody can add a field on the way."""
    data = (GOLDEN / "manifest.signed.bin").read_bytes()
    topic, _ = wire.SIGNED["manifest"]
    with pytest.raises(ProtocolError) as refused:
        unseal(m.Manifest, data[:-1] + b',"x":1}', wire.FLEET_KEY.public, wire.FLEET, topic)
    assert refused.value.code == Code.SIG


def test_a_later_schema_is_refused_by_its_number():
    """E_VERSION names what this software reads."""
    with pytest.raises(ProtocolError, match=r"E_VERSION.*schema 2"):
        decode(Kind.STATE, b'{"v":2,"state":"ready","boot":1,"bseq":1}')


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (b'{"state":"ready","boot":-1,"bseq":1}', "boot"),
        (b'{"state":"asleep","boot":1,"bseq":1}', "state"),
        (b'{"state":"ready","boot":1}', "bseq"),
        (b'{"state":"ready","boot":1,"bseq":1,"task":"../etc"}', "task"),
        (b'{"state":"ready","boot":true,"bseq":1}', "boot"),
    ],
)
def test_an_error_names_the_field(payload, field):
    """The peer's author can mend what the message names."""
    with pytest.raises(ProtocolError, match=field) as refused:
        decode(Kind.STATE, payload)
    assert refused.value.code == Code.SCHEMA


def test_sizes_are_refused_before_they_are_parsed():
    """Nothing is allocated for what is too large."""
    with pytest.raises(ProtocolError, match="E_SIZE"):
        parse_json(b'"' + b"x" * MAX_JSON_BYTES + b'"')
    with pytest.raises(ProtocolError, match="E_SIZE"):
        unpack(b"\xc0" * 100, limit=99)


@pytest.mark.parametrize(
    "bomb", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 5000]
)
def test_msgpack_bombs_are_refused(bomb):
    """A header that promises four billion elements, and nesting without end."""
    with pytest.raises(ProtocolError, match="E_SCHEMA"):
        unpack(bomb)


def test_deeply_nested_json_is_refused():
    """Nesting is bounded by the parser, and the refusal is ours."""
    with pytest.raises(ProtocolError):
        decode(Kind.STATE, b'{"a":' * 2000 + b"1" + b"}" * 2000)


def test_binary_messages_are_maps_of_names():
    """msgpack with names, so that rule 2 of the constitution holds for it as well."""
    plain = msgpack.unpackb(encode(wire.MESSAGES["grant"]))
    assert plain["answer"] == "go"
    assert plain["window"] == 4
