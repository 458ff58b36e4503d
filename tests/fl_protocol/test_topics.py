"""Topics are built and parsed in one place; an id can never reach another topic."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.errors import ProtocolError
from fl_protocol.topics import Kind, Topic, below, build, parse

ids = st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True)
FIELDS = {"device", "task", "channel", "version", "name", "cid", "claim"}


def fields_of(kind: Kind) -> set[str]:
    return {field for field in FIELDS if "{" + field + "}" in kind.value}


@given(kind=st.sampled_from(list(Kind)), fleet=ids, data=st.data())
def test_parse_is_the_inverse_of_build(kind, fleet, data):
    """For every kind and all ids."""
    values = {f: data.draw(st.integers(0, 10**15).map(str) if f == "version" else ids) for f in sorted(fields_of(kind))}
    topic = Topic(kind, fleet, **values)
    assert parse(str(topic)) == topic
    assert str(topic).count("/") <= 7


@given(st.text(max_size=80))
def test_what_build_would_not_make_is_refused(text):
    """Any text parses into a topic that builds that text, or is refused."""
    with contextlib.suppress(ProtocolError):
        assert str(parse(text)) == text


@pytest.mark.parametrize("bad", ["", "a/b", "../x", "A", "#", "a b", "x" * 65, "fan_20", "fän"])
def test_ids_that_could_reach_elsewhere_are_refused(bad):
    """No slash, no wildcard, no upper case, no more than 64."""
    with pytest.raises(ProtocolError, match="device"):
        build(Kind.STATE, "demo", device=bad)


def test_subscriptions_use_wildcards():
    """`+` stands for one id."""
    assert build(Kind.STATE, "demo", device="+") == "fl/1/demo/dev/+/state"
    assert below("demo", "dev", "+", "up") == "fl/1/demo/dev/+/up/#"


@pytest.mark.parametrize(
    "other", ["fl/2/demo/gw/state", "fl/1/demo/gw/state/x", "fl/1/demo/dev/a/up", "", "fl/1//gw/state"]
)
def test_other_topics_are_not_ours(other):
    """Another protocol version, arity or name."""
    with pytest.raises(ProtocolError, match="E_SCHEMA"):
        parse(other)
