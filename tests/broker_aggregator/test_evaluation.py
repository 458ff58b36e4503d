"""What the gateway measures by: examples that fit the model, or a sentence about what does not."""

from pathlib import Path

import numpy as np
import pytest

from anabranch.datasets.fan_vibration import load_all
from broker_aggregator.evaluation import Evaluator, Examples, open_session
from broker_aggregator.export import float_model, int8_model
from fl_protocol.bundle import Bundle
from fl_protocol.errors import ConfigError
from tests.edge_agent.small import HEAD, read_small

BUNDLE = Bundle.read((Path(__file__).parents[2] / "anabranch" / "data" / "fan_vibration.bundle").read_bytes())
X, Y = load_all((20, 60)).validation


def write(path: Path, **arrays) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_a_version_is_measured_as_a_device_would(tmp_path):
    """Loss and accuracy of the initial version, against the int8 model that it becomes."""
    examples = Examples(write(tmp_path / "e.npz", x=X, y=Y), BUNDLE)
    loss, accuracy = Evaluator(BUNDLE, examples).measure(BUNDLE.initial)
    assert 0.5 < loss < 5
    (logits,) = open_session(int8_model(BUNDLE, BUNDLE.initial)).run(["logits"], {"x": X})
    assert abs((logits.argmax(1) == Y).mean() - accuracy) <= 0.05
    (floats,) = open_session(float_model(BUNDLE, BUNDLE.initial)).run(["logits"], {"x": X})
    assert floats.shape == (len(X), 3)


def test_personal_entries_are_measured_where_the_bundle_starts_them(tmp_path):
    """The gateway is no device: it has no values of its own. logits = x @ w.T + head, their largest counted."""
    bundle = read_small()
    examples = Examples(write(tmp_path / "e.npz", x=np.zeros((4, 2), np.float32), y=np.zeros(4, np.int64)), bundle)
    assert Evaluator(bundle, examples).measure(bundle.initial) == (HEAD.sum(), HEAD.max() / 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": np.full_like(X, np.nan)}, "not finite"),
        ({"x": X.astype(np.float64) * 1e300}, "not finite"),
        ({"y": Y + 7}, "labels outside 0..2"),
        ({"y": Y - 1}, "labels outside 0..2"),
        ({"x": X[:, :5]}, "are not examples of fan_vibration"),
        ({"y": Y[:-1]}, "are not examples"),
        ({"x": X[:0], "y": Y[:0]}, "are not examples"),
        ({"y": None}, "holds no examples"),
    ],
)
def test_examples_that_would_measure_nonsense_are_refused(tmp_path, change, said):
    """NaN everywhere once gave an accuracy of 1.0."""
    arrays = {k: v for k, v in {"x": X, "y": Y, **change}.items() if v is not None}
    with pytest.raises(ConfigError, match=said):
        Examples(write(tmp_path / "e.npz", **arrays), BUNDLE)


def test_a_damaged_file_is_a_sentence(tmp_path):
    """Cut, or with a byte changed in its compressed data."""
    data = bytearray(write(tmp_path / "e.npz", x=X, y=Y).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "bad.npz").write_bytes(data)
    (tmp_path / "cut.npz").write_bytes(data[:100])
    for name in ("bad.npz", "cut.npz", "missing.npz"):
        with pytest.raises(ConfigError, match="holds no examples"):
            Examples(tmp_path / name, BUNDLE)
