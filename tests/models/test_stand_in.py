"""The stand-in of the simulator: a bundle as real as any other, and small."""

from pathlib import Path

import numpy as np
import pytest

from fl_protocol.bundle import Bundle
from models.gates import run_gates
from models.spec import load

SHIPPED = Path(__file__).parents[2] / "anabranch" / "data" / "stand_in.bundle"
ONE_CHUNK = 48 << 10  # bytes of an object that MQTT 5 carries in one message


@pytest.fixture(scope="module")
def bundle():
    return Bundle.read(SHIPPED.read_bytes())


def test_it_passes_every_gate_like_a_real_model(bundle):
    assert [gate for gate in run_gates(bundle, load("stand_in")) if not gate.passed] == []


def test_a_device_fetches_it_in_one_chunk(bundle):
    assert SHIPPED.stat().st_size <= ONE_CHUNK
    assert bundle.layout.num_parameters == 40 * 8 + 8 + 8 * 3 + 3


def test_its_examples_are_the_same_at_every_call_and_have_every_class():
    once, again = (load("stand_in").examples() for _ in range(2))
    for (x, y), (x_again, y_again) in zip(once, again, strict=True):
        np.testing.assert_array_equal(x, x_again)
        np.testing.assert_array_equal(y, y_again)
        assert (x.shape, x.dtype, y.dtype) == ((len(y), 40), np.float32, np.int64)
        assert set(y) == {0, 1, 2}
