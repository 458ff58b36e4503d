"""Settings are data from a plan: what is not understood is refused by name."""

import numpy as np
import pytest

from fl_protocol.compression import make_compressor
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.tensors import ModelLayout, TensorEntry

LAYOUT = ModelLayout((TensorEntry("w", (30, 20), "parameter"), TensorEntry("b", (20,), "parameter")))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "''"),
        ({"name": "zip"}, "'zip'"),
        ({"name": "none", "step": "1"}, "'step'"),
        ({"name": "uq", "stepp": "1"}, "'stepp'"),
        ({"name": "uq", "step": "0.4"}, "'0.4'"),
        ({"name": "uq", "step": "8.1"}, "'8.1'"),
        ({"name": "uq", "step": "nan"}, "'nan'"),
        ({"name": "uq", "step": "1e0"}, "'1e0'"),
        ({"name": "uq", "step": "-1"}, "'-1'"),
        ({"name": "uq", "step": "1_0"}, "'1_0'"),
        ({"name": "uq", "step": " 1"}, "' 1'"),
        ({"name": "uq", "step": ""}, "''"),
        ({"name": "uq", "fine": "0.9"}, "'0.9'"),
        ({"name": "uq", "bits": "0"}, "'0'"),
        ({"name": "uq", "coder": "packed"}, "'packed'"),
        ({"name": "uq", "coder": "zstd"}, "'zstd'"),
        ({"name": "qsgd", "bits": "9"}, "'9'"),
        ({"name": "qsgd", "bits": "4.0"}, "'4.0'"),
        ({"name": "qsgd", "rounding": "up"}, "'up'"),
        ({"name": "topk", "share": "0"}, "'0'"),
        ({"name": "topk", "share": "1.1"}, "'1.1'"),
        ({"name": "topk", "values": "1"}, "'1'"),
        ({"name": "threshold", "share": "0.1"}, "'share'"),
        ({"name": "randomk", "gain": "most"}, "'most'"),
        ({"name": "eden", "bits": "3"}, "'3'"),
        ({"name": "powersgd", "rank": "5"}, "'5'"),
        ({"name": "sign", "bits": "1"}, "'bits'"),
    ],
)
def test_settings_that_are_not_understood_are_refused_by_name(settings: dict[str, str], named: str) -> None:
    """A plan of a later software, or a mistyped one: E_SCHEMA, and what it is about."""
    with pytest.raises(ProtocolError, match=named) as caught:
        make_compressor(settings, LAYOUT)
    assert caught.value.code is Code.SCHEMA


def test_the_default_step_is_the_plans() -> None:
    """A plan that names only the codec means the same as the default plan."""
    rng = np.random.default_rng(0)
    vector = rng.standard_normal(LAYOUT.num_parameters).astype(np.float32)
    plain, named = (make_compressor(s, LAYOUT) for s in ({"name": "uq"}, {"name": "uq", "step": "1.0"}))
    assert plain.compress(vector, rng) == named.compress(vector, rng)
