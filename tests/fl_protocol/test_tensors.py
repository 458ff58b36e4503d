"""A layout says what a vector means; two that mean the same have one fingerprint."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.errors import ProtocolError
from fl_protocol.tensors import ModelLayout, TensorEntry

LAYOUT = ModelLayout(
    (
        TensorEntry("w", (2, 3), "parameter"),
        TensorEntry("range", (2,), "statistic"),
        TensorEntry("momentum.w", (2, 3), "optimizer"),
        TensorEntry("b", (3,), "parameter"),
        TensorEntry("head", (4,), "personal"),
    )
)


def test_a_version_is_parameters_then_statistics():
    """Personal and optimizer tensors never leave the device."""
    assert (LAYOUT.num_parameters, LAYOUT.num_statistics, LAYOUT.size) == (9, 2, 11)
    tensors = LAYOUT.split(np.arange(11, dtype=np.float32))
    assert list(tensors) == ["w", "b", "range"]
    np.testing.assert_array_equal(tensors["w"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(tensors["range"], [9, 10])


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=11, max_size=11))
def test_join_is_the_inverse_of_split(values):
    """Bit for bit."""
    vector = np.array(values, np.float32)
    assert LAYOUT.join(LAYOUT.split(vector)).tobytes() == vector.tobytes()


def test_rows_carry_the_whole_layout():
    """What a bundle's manifest holds builds the same layout."""
    again = ModelLayout.from_rows(LAYOUT.to_rows())
    assert again == LAYOUT
    assert again.fingerprint == LAYOUT.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[0].update(name="v"),
        lambda rows: rows[0].update(shape=[3, 2]),
        lambda rows: rows[1].update(role="parameter"),
        lambda rows: rows.reverse(),
    ],
)
def test_another_meaning_is_another_fingerprint(change):
    """Name, shape, role and order all count."""
    rows = LAYOUT.to_rows()
    change(rows)
    assert ModelLayout.from_rows(rows).fingerprint != LAYOUT.fingerprint


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "entries"),
        ([{"name": "w", "shape": [1], "role": "parameter"}] * 2, "twice"),
        ([{"name": "w", "shape": [1], "role": "weights"}], "role"),
        ([{"name": "w", "shape": [0], "role": "parameter"}], "shape"),
        ([{"name": "w", "shape": [-1], "role": "parameter"}], "shape"),
        ([{"name": "w", "shape": [True], "role": "parameter"}], "dimension"),
        ([{"name": "w", "shape": [2**20, 2**20], "role": "parameter"}], "elements"),
        ([{"name": "w", "shape": [1] * 9, "role": "parameter"}], "shape"),
        ([{"name": "", "shape": [1], "role": "parameter"}], "name"),
        ([{"name": "m", "shape": [1], "role": "statistic"}], "nothing to learn"),
        ([{"name": "w", "shape": "1", "role": "parameter"}], "row"),
    ],
)
def test_impossible_layouts_are_refused(rows, why):
    """Before anything of their size is allocated."""
    with pytest.raises(ProtocolError, match=why):
        ModelLayout.from_rows(rows)


def test_a_vector_of_another_length_is_a_bug_of_ours():
    """Peers' sizes are checked where they arrive; here it is a programming error."""
    with pytest.raises(ValueError, match=r"\(11,\)"):
        LAYOUT.split(np.zeros(12, np.float32))
    with pytest.raises(ValueError, match="shape"):
        LAYOUT.join({"w": np.zeros(6), "b": np.zeros(3), "range": np.zeros(2)})
