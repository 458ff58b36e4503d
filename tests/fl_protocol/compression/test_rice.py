"""Sparse whole numbers become few bits, and bits that are none of ours are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.compression.rice import MAX_MAGNITUDE, decode, encode
from fl_protocol.errors import Code, ProtocolError

numbers = st.one_of(st.just(0), st.integers(-4, 4), st.integers(-MAX_MAGNITUDE, MAX_MAGNITUDE))


def refusal(stream: bytes, size: int) -> Code:
    with pytest.raises(ProtocolError) as caught:
        decode(stream, [size])
    return caught.value.code


@settings(max_examples=200, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=300))
def test_numbers_read_back(values: list[int]) -> None:
    """Any of them, in any place; and every truncation is refused."""
    symbols = np.array(values, np.int32)
    stream = encode([symbols])
    assert np.array_equal(decode(stream, [len(values)])[0], symbols)
    for length in {0, 1, len(stream) // 2, len(stream) - 1} - {len(stream)}:
        refusal(stream[:length], len(values))
    refusal(stream + b"\0", len(values))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(numbers, max_size=60), max_size=4))
def test_groups_read_back(values: list[list[int]]) -> None:
    """One after the other, each with its own law; a group without places costs nothing."""
    groups = [np.array(group, np.int32) for group in values]
    stream = encode(groups)
    assert stream == encode([group for group in groups if group.size])
    for group, back in zip(groups, decode(stream, [len(group) for group in groups]), strict=True):
        assert np.array_equal(group, back)


@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_nothing_takes_five_bytes(size: int) -> None:
    """Three counts and the ks, however many zeros there are."""
    assert encode([np.zeros(size, np.int32)]) == bytes(5)


def test_the_stream_is_what_the_docstring_says() -> None:
    """By hand: 0 -1 0 0 3 5 are gaps 1 2 0, then 1 0 among the three, 0 0 among those two, and 0 2 left over."""
    stream = encode([np.array([0, -1, 0, 0, 3, 5], np.int32)])
    assert stream[:3] == bytes([3, 2, 2])  # the counts of the levels
    ks = [stream[3] >> 4, stream[3] & 15, stream[4] >> 4, stream[4] & 15]
    assert ks == [0, 0, 0, 0]
    assert stream[5] == 0b100_00000  # the signs: minus, plus, plus
    unary = "010011" + "011" + "11" + "1001"
    assert stream[6:] == int(unary.ljust(16, "0"), 2).to_bytes(2, "big")


def test_a_rice_parameter_splits_a_value_into_unary_and_low_bits() -> None:
    """By hand: 100 zeros and a one are k = 6 (64 + 36): counts, ks, a sign, 36 in six bits, lowest first, then 01."""
    symbols = np.zeros(150, np.int32)
    symbols[100] = 1
    assert list(encode([symbols])) == [1, 0, 0, 6 << 4, 0, 0, 0b001001_00, 0b01_000000]


@pytest.mark.parametrize(("law", "bound"), [("gaussian", 1.02), ("student", 1.04)])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_it_stays_near_the_entropy(law: str, bound: float, step: int) -> None:
    """Of the symbols one by one, which no code without context beats: 2 % for Gaussian, 4 % for heavy-tailed ones."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal(40_000) if law == "gaussian" else rng.standard_t(2.2, 40_000)
    symbols = np.trunc(drawn / (step * np.sqrt(np.mean(drawn**2))) + np.copysign(0.33, drawn)).astype(np.int32)
    _, counts = np.unique(symbols, return_counts=True)
    entropy = -np.sum(counts * np.log2(counts / len(symbols))) / 8
    assert entropy < len(encode([symbols])) < bound * entropy


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (b"", Code.SIZE),
        (bytes([101]), Code.SCHEMA),  # more numbers than there are places
        (bytes([2, 3]), Code.SCHEMA),  # more of a level than of the one below
        (b"\xff" * 20, Code.SCHEMA),  # a count without an end
        (b"\x80" * 20, Code.SCHEMA),
        (bytes([1, 0, 0, 0, 0]), Code.SIZE),  # no sign
        (bytes([1, 0, 0, 0, 0, 0]), Code.SIZE),  # no position
        (bytes([1, 0, 0, 0xF0, 0, 0, 0]), Code.SIZE),  # not all of the low bits
        (bytes([1, 0, 0, 0, 0, 0, 0b11000000]), Code.SIZE),  # two positions
        (bytes([1, 0, 0, 0x70, 0, 0, 0b11111110, 0b01000000]), Code.SCHEMA),  # at 128 + 127 of 100
        (bytes([1, 1, 0, 0, 0, 0, 0b10100000]), Code.SCHEMA),  # level 2 outside of level 1
        (bytes([1, 1, 0, 0, 0, 0, 0b11000000, 0]), Code.SIZE),  # a byte too many
        (bytes([1, 1, 0, 0, 0, 0, 0b10000000]), Code.SIZE),  # a number too few
        (bytes([1, 1, 1, 0, 0x0F, 0, 0, 0, 0b1110_0000] + [0] * 64 + [1]), Code.SCHEMA),  # 2^24 and more
    ],
)
def test_what_encode_would_not_say_is_refused(stream: bytes, code: Code) -> None:
    """Each with its reason, of 100 symbols."""
    assert refusal(stream, 100) is code
