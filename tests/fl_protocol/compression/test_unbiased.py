"""Codecs that say they are unbiased are, by a z-test of every element's mean.

4,000 draws with fixed seeds. |mean - a| beyond 6 standard errors has, for an unbiased codec, a probability of 2e-9 an
element and 2e-7 for the vector; a bias of a tenth of one draw's standard deviation is found.
"""

import numpy as np
import pytest

from fl_protocol.compression import make_compressor
from fl_protocol.tensors import ModelLayout, TensorEntry

LAYOUT = ModelLayout((TensorEntry("w", (9, 8), "parameter"), TensorEntry("b", (20,), "parameter")))
P = LAYOUT.num_parameters
DRAWS = 4000
Z = 6.0


def vector() -> np.ndarray:
    return np.random.default_rng(3).standard_t(3, P).astype(np.float32)


def largest_z(settings: dict[str, str]) -> float:
    """Of all elements: how many standard errors the mean of what arrived is away from what was sent."""
    codec, rng, sent = make_compressor(settings, LAYOUT), np.random.default_rng(11), vector()
    arrived = np.stack([codec.decompress(codec.compress(sent, rng)) for _ in range(DRAWS)]).astype(np.float64)
    error = np.abs(arrived.mean(axis=0) - sent)
    rounding = 2e-6 * np.abs(sent).max()  # an element on the grid has no spread
    return float(np.max((error - rounding) / (arrived.std(axis=0) / np.sqrt(DRAWS) + 1e-12)))


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "qsgd", "bits": "1"},
        {"name": "qsgd", "bits": "2"},
        {"name": "qsgd", "bits": "4", "coder": "rice"},
        {"name": "qsgd", "bits": "8"},
        {"name": "randomk", "share": "0.1", "gain": "unbiased", "values": "4"},
        {"name": "randomk", "share": "0.5", "gain": "unbiased", "values": "8"},
    ],
)
def test_the_mean_of_what_arrives_is_what_was_sent(settings: dict[str, str]) -> None:
    """Element by element."""
    assert largest_z(settings) < Z


@pytest.mark.parametrize("settings", [{"name": "randomk", "share": "0.1", "values": "4"}])
def test_a_biased_codec_is_found_out(settings: dict[str, str]) -> None:
    """The test above can fail."""
    assert largest_z(settings) > Z


@pytest.mark.parametrize("bits", ["1", "2"])
def test_eden_keeps_the_length_along_the_vector_and_nearly_its_direction(bits: str) -> None:
    """<q, a> = |a|^2 each time; over 4,000 rotations the mean is within 3 % of |a|, 1.2 % standard error in it."""
    layout = ModelLayout((TensorEntry("w", (1024,), "parameter"),))
    codec = make_compressor({"name": "eden", "bits": bits, "gain": "unbiased"}, layout)
    rng = np.random.default_rng(5)
    sent = rng.standard_t(3, 1024).astype(np.float32)
    square = float(np.sum(sent.astype(np.float64) ** 2))
    mean = np.zeros(1024)
    for _ in range(DRAWS):
        arrived = codec.decompress(codec.compress(sent, rng)).astype(np.float64)
        assert float(arrived @ sent) == pytest.approx(square, rel=1e-5)
        mean += arrived / DRAWS
    assert np.linalg.norm(mean - sent) < 0.03 * np.sqrt(square)
