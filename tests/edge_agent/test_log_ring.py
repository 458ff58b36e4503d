"""What `collect-logs` brings: marked lines alone, scrubbed, and never more than a small packet."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.logs import HIDDEN, LEAVES, MAX_LOG_BYTES, LogRing, scrubbed


def ring_of(*lines: str, **extra: object) -> LogRing:
    """A ring that heard these lines."""
    ring = LogRing()
    for line in lines:
        record = logging.makeLogRecord({"msg": line, "levelname": "INFO", **extra})
        ring.handle(record)
    return ring


def test_only_lines_that_were_marked_are_kept() -> None:
    """What nobody thought of stays inside: a line may quote an example."""
    assert ring_of("row 3: 0.5, 0.25, 0.125").newest(10) == ()
    assert ring_of("connected", **LEAVES).newest(10)[0].endswith("INFO connected")


def test_a_traceback_stays_inside() -> None:
    """It may quote anything."""
    try:
        raise ValueError("0.5, 0.25")
    except ValueError as error:
        ring = ring_of("failed", exc_info=(ValueError, error, error.__traceback__), **LEAVES)
    assert "0.25" not in "".join(ring.newest(10))


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("cannot read /home/alice/data/a.csv", "alice"),
        ("cannot read /Users/bob/x", "bob"),
        ("password=hunter2 refused", "hunter2"),
        ('{"token": "abc123"}', "abc123"),
        ("user: carol", "carol"),
        ("api_key = 'zz top'", "zz top"),
        ("mqtt://dave:pw@host:1883", "dave:pw"),
        ("Authorization: Bearer xyz.abc", "xyz.abc"),
        ("key " + "5f" * 32, "5f" * 32),
        ("jwt eyJhbGciOi.eyJzdWIiOi.sig-nature", "eyJzdWIiOi"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEvQ\n-----END PRIVATE KEY-----", "MIIEvQ"),
        ("mail erin@example.org", "erin"),
    ],
)
def test_secrets_are_hidden(text: str, secret: str) -> None:
    """Users of paths, passwords, tokens, keys, addresses."""
    assert secret not in scrubbed(text)
    assert HIDDEN in scrubbed(text)


def test_ordinary_lines_are_left_alone() -> None:
    """Else nobody could read them."""
    line = "fan: trained from version 41, 17 steps on 543 examples in 1.5 s; 2344 bytes to send, as float32 28988"
    assert scrubbed(line) == line


@given(st.lists(st.text(max_size=600), max_size=60), st.integers(1, 200))
def test_an_answer_is_small(lines: list[str], asked: int) -> None:
    """As JSON, whatever is in the lines; the newest are kept."""
    newest = ring_of(*lines, **LEAVES).newest(asked)
    assert len(json.dumps(newest)) <= MAX_LOG_BYTES + 2 * len(newest) + 2
    assert len(newest) <= asked
