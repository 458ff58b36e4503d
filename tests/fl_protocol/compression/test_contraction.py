"""Codecs for error feedback bring every vector nearer: nothing stays in the residual for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.compression import make_compressor
from fl_protocol.tensors import ModelLayout
from tests.support.codecs import LAYOUTS, MIXED, VARIANTS, gaussian, heavy, through

layouts = pytest.mark.parametrize("layout", list(LAYOUTS.values()), ids=list(LAYOUTS))

CONTRACTING = [
    name for name in VARIANTS if name not in ("qsgd-1", "qsgd-2", "qsgd-4", "qsgd-8", "randomk-unbiased", "eden-2")
]


@pytest.mark.parametrize("codec", CONTRACTING)
@layouts
@settings(max_examples=30, deadline=None)
@given(law=st.sampled_from(["gaussian", "heavy", "equal", "one"]), seed=st.integers(0, 2**32))
def test_biased_codecs_contract(codec: str, layout: ModelLayout, law: str, seed: int) -> None:
    """|a - q|^2 <= |a|^2, whatever the vector, which is what error feedback rests on; half precision aside."""
    rng = np.random.default_rng(seed)
    vector = {
        "gaussian": gaussian(layout, seed, 1.0),
        "heavy": heavy(layout, seed),
        "equal": rng.choice([-0.01, 0.01], layout.num_parameters).astype(np.float32),
        "one": np.eye(1, layout.num_parameters, seed % layout.num_parameters, dtype=np.float32)[0],
    }[law]
    lost = np.sum((through(make_compressor(VARIANTS[codec], layout), vector).astype(np.float64) - vector) ** 2)
    assert lost <= np.sum(vector.astype(np.float64) ** 2) * 1.001


@pytest.mark.parametrize("codec", CONTRACTING)
def test_something_arrives_in_time(codec: str) -> None:
    """With error feedback the residual of a steady delta stays bounded: after 60 updates below 60 norms by far."""
    compressor, rng = make_compressor(VARIANTS[codec], MIXED), np.random.default_rng(1)
    delta, residual = gaussian(MIXED), np.zeros(MIXED.num_parameters, np.float32)
    for _ in range(60):
        wanted = delta + residual
        residual = wanted - compressor.decompress(compressor.compress(wanted, rng))
    assert np.linalg.norm(residual) < 40 * np.linalg.norm(delta)
