"""A payload decoded without its zeros is the payload decoded with them."""

import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.compression import make_compressor
from fl_protocol.compression.sparse import dense
from fl_protocol.errors import ProtocolError
from fl_protocol.tensors import ModelLayout, SparseVector, Vector
from tests.support.codecs import LAYOUTS, MIXED, VARIANTS, gaussian, heavy, layout_of

GOLDEN = Path(__file__).parents[2] / "wire" / "compression"

codecs = pytest.mark.parametrize("codec", list(VARIANTS))


def same_bits(sparse: SparseVector, vector: Vector) -> bool:
    return dense(sparse).tobytes() == vector.tobytes()


def in_order(sparse: SparseVector) -> bool:
    indices = sparse.indices
    return bool((np.diff(indices) > 0).all() and (indices >= 0).all() and (indices < sparse.size).all())


@codecs
@pytest.mark.parametrize("layout", list(LAYOUTS.values()), ids=list(LAYOUTS))
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), tails=st.booleans(), share=st.sampled_from([0.0, 0.01, 0.2, 1.0]))
def test_made_dense_it_is_what_decompress_returns(
    codec: str, layout: ModelLayout, seed: int, tails: bool, share: float
) -> None:
    """Bit for bit, whatever the vector, with indices that grow; or there is no shorter form."""
    rng = np.random.default_rng(seed)
    vector = (heavy if tails else gaussian)(layout, seed) * (rng.random(layout.num_parameters) <= share)
    compressor = make_compressor(VARIANTS[codec], layout)
    payload = compressor.compress(vector.astype(np.float32), rng)
    sparse = compressor.decompress_sparse(payload)
    if sparse is not None:
        assert sparse.size == layout.num_parameters
        assert sparse.values.dtype == np.float32
        assert in_order(sparse)
        assert same_bits(sparse, compressor.decompress(payload))


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "topk", "share": "0.01"},
        {"name": "topk", "share": "0.01", "values": "16", "coder": "range"},
        {"name": "threshold", "level": "4"},
        {"name": "ternary", "share": "0.01", "coder": "deflate"},
        {"name": "randomk", "share": "0.01"},
        {"name": "uq", "step": "3"},
        {"name": "uq", "bits": "0.1"},
    ],
    ids=str,
)
def test_what_is_mostly_zeros_has_a_shorter_form(settings: dict[str, str]) -> None:
    """In a layout of large and small tensors that take turns."""
    layout = layout_of((80, 100), (100,), (100, 100), (5,), (2000,))
    compressor = make_compressor(settings, layout)
    payload = compressor.compress(heavy(layout), np.random.default_rng(0))
    sparse = compressor.decompress_sparse(payload)
    assert sparse is not None
    assert 0 < len(sparse.indices) < 0.25 * layout.num_parameters
    assert in_order(sparse)
    assert same_bits(sparse, compressor.decompress(payload))


@pytest.mark.parametrize("settings", [{"name": "topk", "share": "0.5"}, {"name": "uq", "step": "0.5"}], ids=str)
def test_what_is_not_mostly_zeros_has_none(settings: dict[str, str]) -> None:
    """Positions and values take 12 bytes, a value alone 4."""
    compressor = make_compressor(settings, MIXED)
    assert compressor.decompress_sparse(compressor.compress(gaussian(MIXED), np.random.default_rng(0))) is None


@codecs
@settings(max_examples=120, deadline=None)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    cut=st.floats(0, 1),
)
def test_a_damaged_payload_is_read_as_decompress_reads_it_or_refused(
    codec: str, changes: list[tuple[float, int]], cut: float
) -> None:
    """Never one thing dense and another sparse; nothing but a `ProtocolError` is raised, warnings included."""
    payload = bytearray((GOLDEN / f"{codec}.payload").read_bytes())
    for where, value in changes:
        payload[int(where * len(payload))] = value
    damaged = bytes(payload[: len(payload) if cut > 0.5 else int(2 * cut * len(payload))])
    compressor = make_compressor(VARIANTS[codec], MIXED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            sparse = compressor.decompress_sparse(damaged)
        except ProtocolError:
            with pytest.raises(ProtocolError):
                compressor.decompress(damaged)
            return
        if sparse is not None:
            assert np.isfinite(sparse.values).all()
            assert same_bits(sparse, compressor.decompress(damaged))


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "topk", "share": "0.01"},
        {"name": "threshold", "level": "8"},
        {"name": "ternary", "share": "0.01"},
        {"name": "uq", "step": "8"},
    ],
    ids=str,
)
def test_memory_is_that_of_what_is_not_zero(settings: dict[str, str]) -> None:
    """1 % of 1M elements, or fewer: less than a quarter of the dense vector's 4 MB, all steps of decoding together."""
    layout = layout_of((1000, 1000))
    compressor = make_compressor(settings, layout)
    payload = compressor.compress(heavy(layout), np.random.default_rng(0))
    tracemalloc.start()
    try:
        sparse = compressor.decompress_sparse(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sparse is not None
    assert peak < 1_000_000


def test_where_a_third_is_not_zero_the_rule_changes_sides() -> None:
    """By hand: of 12 elements 3 are worth it, 4 take as much as all."""
    layout = layout_of((12,))
    compressor = make_compressor({"name": "topk", "share": "1"}, layout)
    for count, expected in ((3, True), (4, False)):
        vector = np.zeros(12, np.float32)
        vector[:count] = 1
        payload = compressor.compress(vector, np.random.default_rng(0))
        assert (compressor.decompress_sparse(payload) is not None) is expected
