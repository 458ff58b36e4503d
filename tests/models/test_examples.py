"""An author's .npz: never shuffled, split by word, by client or in time; what is wrong is named."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.errors import ConfigError
from models.examples import check_examples, from_npz
from models.spec import Input, Splits
from tests.models.specs import TOY, examples, toy


@pytest.fixture
def write(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        return tmp_path / "data.npz"

    return write


def numbered(n):
    return {"x": np.arange(n, dtype=np.float64), "y": np.arange(n) % 3}


def rows(splits):
    return [x.astype(int).tolist() for x, _ in splits]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("npz")


@given(sizes=st.lists(st.integers(10, 40), min_size=1, max_size=4), tested=st.booleans())
def test_each_client_trains_on_its_first_examples_and_tests_on_its_last(folder, sizes, tested):
    client = np.repeat(np.arange(len(sizes)), sizes)
    n = len(client)
    test = {"test": np.arange(n) % 10 == 9} if tested else {}
    np.savez(folder / "data.npz", **numbered(n), client=client, **test)
    train, validation, held_out = rows(from_npz(folder / "data.npz"))
    assert sorted(train + validation + held_out) == list(range(n))
    for number in range(len(sizes)):
        mine = [[row for row in part if client[row] == number] for part in (train, validation, held_out)]
        assert mine[0]
        assert max(mine[0]) < min(mine[1])
        assert tested or max(mine[1]) < min(mine[2])
    if tested:
        assert held_out == np.flatnonzero(test["test"]).tolist()


def test_words_say_who_is_where(write):
    words = np.array(["test", "train", "validation", "train"])
    splits = from_npz(write(**numbered(4), split=words))
    assert rows(splits) == [[1, 3], [2], [0]]
    assert [(x.dtype.name, y.dtype.name) for x, y in splits] == [("float32", "int64")] * 3


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": np.zeros(5)}, "no array 'x'"),
        ({"x": np.zeros(5)}, "no array 'y'"),
        ({"x": np.zeros((5, 2)), "y": np.zeros(4)}, "y has shape (4,)"),
        ({"x": np.zeros(5), "y": np.zeros(5), "client": np.zeros(3)}, "client has shape (3,)"),
        ({**numbered(3), "split": np.array(["train", "val", "test"])}, "word 'val'"),
        ({**numbered(2), "split": np.array(["train", "test"])}, "no example is for validation"),
        ({**numbered(2), "split": np.array(["train", None], object)}, "does not read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_the_array_at_fault(write, arrays, said):
    with pytest.raises(ConfigError) as caught:
        from_npz(write(**arrays))
    assert said in caught.value.message


def test_a_file_that_is_not_there_or_not_an_npz_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("x,y\n1,2\n")
    for path in (tmp_path / "none.npz", tmp_path / "text.npz"):
        with pytest.raises(ConfigError, match=path.name):
            from_npz(path)


def changed(split, **arrays):
    splits = examples()._asdict()
    x, y = splits[split]
    return Splits(**{**splits, split: (arrays.get("x", x), arrays.get("y", y))})


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        (examples()[:2], "no Splits"),
        (changed("validation", x=np.zeros((100, 5), np.float32)), "validation: x is float32 (100, 5)"),
        (changed("test", x=np.zeros((100, 4))), "test: x is float64"),
        (changed("train", y=np.zeros(100, np.float32)), "train: y is float32"),
        (changed("train", y=np.zeros(99, np.int64)), "100 x and 99 y"),
        (changed("train", y=np.full(100, 3)), "classes 3..3 for 3 labels"),
        (changed("train", x=np.full((100, 4), np.nan, np.float32)), "not finite"),
    ],
)
def test_examples_that_do_not_fit_the_spec_are_refused_by_split_and_field(splits, said):
    check_examples(TOY, examples())
    with pytest.raises(ConfigError) as caught:
        check_examples(TOY, splits)
    assert said in caught.value.message


def test_a_regression_may_have_any_y():
    check_examples(toy(labels=(), y=Input((2,), torch.float32)), examples(lambda x: x[:, :2] * 100))
