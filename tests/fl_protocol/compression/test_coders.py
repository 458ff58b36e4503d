"""Every coder reads what it wrote, refuses what it did not, and none is far from what it is for."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.compression.coders import NAMES, Coder
from fl_protocol.compression.rice import MAX_MAGNITUDE
from fl_protocol.errors import ProtocolError

coders = pytest.mark.parametrize("name", NAMES)


@coders
@settings(max_examples=100, deadline=None)
@given(most=st.sampled_from([1, 7, 127]), data=st.data())
def test_symbols_read_back(name: str, most: int, data: st.DataObject) -> None:
    """Any in the range, in groups; and no truncation or extension is read."""
    one = st.one_of(st.just(0), st.integers(-most, most))
    values = data.draw(st.lists(st.lists(one, max_size=80), min_size=1, max_size=3).filter(any))
    groups = [np.array(group, np.int32) for group in values]
    sizes = [len(group) for group in values]
    coder = Coder(name, -most, most)
    stream = coder.encode(groups)
    for group, back in zip(groups, coder.decode(stream, sizes), strict=True):
        assert np.array_equal(group, back)
        assert back.dtype == np.int32
    for wrong in (stream[:-1], stream[: len(stream) // 2], stream + b"\0"):
        with pytest.raises(ProtocolError):
            coder.decode(wrong, sizes)


@pytest.mark.parametrize("name", ["rice", "range", "deflate"])
def test_large_numbers_read_back(name: str) -> None:
    """What an outlier says is said in full: up to 2^24."""
    symbols = np.zeros(10_000, np.int32)
    symbols[:6] = [MAX_MAGNITUDE, -MAX_MAGNITUDE, 127, -127, 128, -128]
    coder = Coder(name, -MAX_MAGNITUDE, MAX_MAGNITUDE)
    assert np.array_equal(coder.decode(coder.encode([symbols]), [10_000])[0], symbols)


@pytest.mark.parametrize("name", ["rice", "range", "deflate"])
def test_a_symbol_outside_of_the_range_is_refused(name: str) -> None:
    """A reader that multiplies by them relies on it."""
    stream = Coder(name, -127, 127).encode([np.full(20, 9, np.int32)])
    with pytest.raises(ProtocolError, match="symbol outside"):
        Coder(name, -8, 8).decode(stream, [20])


def entropy_bytes(symbols: np.ndarray) -> float:
    _, counts = np.unique(symbols, return_counts=True)
    return float(-np.sum(counts * np.log2(counts / symbols.size)) / 8)


def test_each_coder_is_best_at_what_it_is_for() -> None:
    """Rice for sparse symbols, within 2 % of their entropy; rANS for dense ones; packed takes what it says."""
    rng = np.random.default_rng(0)
    sparse = np.trunc(rng.standard_t(3, 200_000) / 5).astype(np.int32)
    dense = np.clip(np.rint(rng.standard_normal(200_000) * 40), -127, 127).astype(np.int32)
    size = {
        (name, kind): len(Coder(name, -127, 127).encode([symbols]))
        for name in NAMES
        for kind, symbols in (("sparse", np.clip(sparse, -127, 127)), ("dense", dense))
    }
    assert size["rice", "sparse"] == min(size[name, "sparse"] for name in NAMES)
    assert size["rice", "sparse"] < 1.02 * entropy_bytes(sparse)
    assert size["range", "dense"] == min(size[name, "dense"] for name in NAMES)
    assert size["range", "dense"] < 1.01 * entropy_bytes(dense)
    assert size["packed", "dense"] == 200_000


@coders
def test_a_long_hostile_stream_is_refused_before_it_costs_memory(name: str) -> None:
    """A deflate bomb of 20 MB among them: less than a megabyte for 10,000 symbols."""
    import zlib

    bomb = b"\1" + zlib.compress(bytes(20_000_000), 9)
    for stream in (bomb, b"\xff" * 3_000_000, bytes(20_000), b"\x55" * 20_000):
        tracemalloc.start()
        with pytest.raises(ProtocolError):
            Coder(name, -127, 127).decode(stream, [10_000])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000
