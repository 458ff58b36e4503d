"""Statistics travel as half-precision values, checked on arrival."""

import numpy as np
import pytest

from fl_protocol.compression import decode_statistics, encode_statistics
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.tensors import ModelLayout, TensorEntry

LAYOUT = ModelLayout((TensorEntry("w", (9,), "parameter"), TensorEntry("range", (2, 2), "statistic")))
NONE = ModelLayout((TensorEntry("w", (9,), "parameter"),))


def test_statistics_read_back_to_eleven_bits() -> None:
    """Two bytes a value; what float16 cannot hold becomes its largest."""
    payload = encode_statistics(np.array([0.0, -1.5, 0.1, 1e9], np.float32))
    assert len(payload) == 8
    assert decode_statistics(payload, LAYOUT).tolist() == [0.0, -1.5, float(np.float16(0.1)), 65504.0]


def test_a_layout_without_statistics_has_empty_ones() -> None:
    """No bytes for no values."""
    assert encode_statistics(np.zeros(0, np.float32)) == b""
    assert decode_statistics(b"", NONE).shape == (0,)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", Code.SIZE),
        (bytes(7), Code.SIZE),
        (bytes(9), Code.SIZE),
        (np.array([0, 1, np.nan, 0], "<f2").tobytes(), Code.NAN),
        (np.array([0, 1, -np.inf, 0], "<f2").tobytes(), Code.NAN),
    ],
)
def test_other_lengths_and_values_are_refused(payload: bytes, code: Code) -> None:
    """They come from the peer."""
    with pytest.raises(ProtocolError) as caught:
        decode_statistics(payload, LAYOUT)
    assert caught.value.code is code


def test_statistics_that_are_not_finite_are_never_sent() -> None:
    """A fault of training, found at home."""
    with pytest.raises(ValueError, match="NaN or infinity"):
        encode_statistics(np.array([np.nan], np.float32))
