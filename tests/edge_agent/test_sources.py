"""Examples from a folder: what is read, what is held out, and every complaint with its mend."""

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.sources import InputSpec
from edge_agent.sources.folder import FolderSource
from fl_protocol.errors import ConfigError

SPEC = InputSpec((2, 3), "float32", (), "int64", ("calm", "shaken"))


def save(path: Path, n: int = 20, *, first: float = 0.0, **changes: Any) -> None:
    """Examples whose x counts up from `first`."""
    x = (np.arange(n * 6, dtype=np.float32) + first).reshape(n, 2, 3)
    np.savez(path, **{"x": x, "y": np.arange(n) % 2, **changes})


def complaint(path: Path, spec: InputSpec = SPEC, **options: Any) -> str:
    """What a source says that cannot be read."""
    with pytest.raises(ConfigError) as caught:
        FolderSource(path, **options).load(spec)
    assert caught.value.hint
    return caught.value.message


def test_the_last_tenth_in_time_is_held_out(tmp_path: Path) -> None:
    """Files in the order of their names; never at random, since neighbours resemble each other."""
    save(tmp_path / "b.npz", 10, first=1000.0)
    save(tmp_path / "a.npz", 10)
    dataset = FolderSource(tmp_path).load(SPEC)
    assert (len(dataset.train), len(dataset.validation)) == (18, 2)
    assert dataset.train.x[0, 0, 0] == 0
    assert dataset.validation.x[0, 0, 0] == 1000 + 8 * 6
    np.testing.assert_array_equal(dataset.newest[0], dataset.validation.x[-1])
    assert (dataset.train.x.dtype, dataset.train.y.dtype) == (np.float32, np.int64)


def test_files_named_validation_are_held_out_whole(tmp_path: Path) -> None:
    """Then everything else trains."""
    save(tmp_path / "train.npz", 10)
    save(tmp_path / "validation-1.npz", 4, first=500.0)
    dataset = FolderSource(tmp_path).load(SPEC)
    assert (len(dataset.train), len(dataset.validation)) == (10, 4)
    np.testing.assert_array_equal(dataset.newest[0], dataset.train.x[-1])


def test_csv_with_and_without_names(tmp_path: Path) -> None:
    """One example a row; the label by number or name, in the last column or a named one."""
    (tmp_path / "1.csv").write_text("1,2,3,4,5,6,0\n6,5,4,3,2,1,shaken\n\n")
    dataset = FolderSource(tmp_path).load(SPEC)
    np.testing.assert_array_equal(dataset.train.x, [[[1, 2, 3], [4, 5, 6]], [[6, 5, 4], [3, 2, 1]]])
    np.testing.assert_array_equal(dataset.train.y, [0, 1])
    (tmp_path / "1.csv").write_text("kind,a,b,c,d,e,f\ncalm,1,2,3,4,5,6\n")
    dataset = FolderSource(tmp_path, label="kind").load(SPEC)
    assert (dataset.train.x[0, 1, 2], dataset.train.y[0]) == (6, 0)


def test_a_regression_has_real_labels(tmp_path: Path) -> None:
    """Without classes any finite number is a label."""
    spec = InputSpec((2,), "float32", (1,), "float32", ())
    (tmp_path / "1.csv").write_text("1,2,0.5\n3,4,-1e3\n")
    np.testing.assert_array_equal(FolderSource(tmp_path).load(spec).train.y, [[0.5], [-1000]])


def test_unchanged_files_are_read_once_and_new_ones_at_once(tmp_path: Path) -> None:
    """A changed folder is read again; an unchanged one costs a listing."""
    save(tmp_path / "a.npz", 10)
    source = FolderSource(tmp_path)
    first = source.load(SPEC)
    assert source.load(SPEC) is first
    save(tmp_path / "b.npz", 10)
    assert len(source.load(SPEC).train) == 18


def test_an_empty_or_missing_folder_says_so(tmp_path: Path) -> None:
    """With the path, and what to put there."""
    assert "holds no .npz and no .csv" in complaint(tmp_path)
    assert "No such file" in complaint(tmp_path / "gone")
    save(tmp_path / "validation.npz")
    assert "nothing to train on" in complaint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"x": np.zeros((20, 3, 2), np.float32)}, "shape"),
        ({"x": np.zeros((20,), np.float32)}, "shape"),
        ({"x": np.float32(1)}, "shape"),
        ({"y": np.zeros(19, np.int64)}, "20 examples and y has 19"),
        ({"y": np.full(20, 2)}, "label in row 0 is 2"),
        ({"y": np.array([0] * 7 + [-1] * 13)}, "label in row 7 is -1"),
        ({"y": np.full(20, 0.5)}, "of type float64"),
        ({"x": np.zeros((20, 2, 3), complex)}, "of type complex128"),
        ({"x": np.array([["a"]])}, "of type"),
        ({"x": np.array([{}], object)}, "of type object"),
    ],
)
def test_an_npz_that_does_not_fit_the_model(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    """Shape, type, labels: the complaint names the file and the row."""
    save(tmp_path / "a.npz", **changes)
    text = complaint(tmp_path)
    assert expected in text
    assert "a.npz" in text


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    """The row and the place in it."""
    x = np.zeros((20, 2, 3), np.float32)
    x[13, 1, 2] = np.nan
    save(tmp_path / "a.npz", x=x)
    assert "not finite in row 13, at [1, 2]" in complaint(tmp_path)


def test_values_beyond_the_models_type(tmp_path: Path) -> None:
    """A finite float64 that float32 does not reach: no infinity is trained on."""
    x = np.zeros((20, 2, 3))
    x[4, 0, 1] = 1e39
    save(tmp_path / "a.npz", x=x)
    assert "not finite in row 4, at [0, 1], as float32" in complaint(tmp_path)
    spec = InputSpec((2, 3), "float32", (), "float32", ())
    save(tmp_path / "a.npz", y=np.full(20, -1e39))
    assert "y is not finite in row 0" in complaint(tmp_path, spec)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2,3,4,5,6,0\n1,2,3,4,5,0\n", "row 2: 6 columns"),
        ("a,b,c,d,e,f,kind\n1,2,oops,4,5,6,0\n", "row 2, column c: 'oops' is not a number"),
        ("1,2,3,4,5,6,0\n1,2,nan,4,5,6,0\n", "not finite in row 1"),
        ("1,2,3,4,5,6,3\n", "label in row 0 is 3"),
        ("1,2,3,4,5,6,0.5\n", "'0.5' is no label"),
        ("1,2,3,4,5,6,rattling\n", "is not a number"),
        ('1,2,3,4,5,6,"0\n', "not a readable .csv"),
    ],
)
def test_a_csv_that_does_not_fit_the_model(tmp_path: Path, text: str, expected: str) -> None:
    """The complaint names the file, the row and the column."""
    (tmp_path / "a.csv").write_text(text)
    assert expected in complaint(tmp_path)


def test_a_label_column_that_is_not_there(tmp_path: Path) -> None:
    """The columns that are there are named."""
    (tmp_path / "a.csv").write_text("a,b,c,d,e,f,kind\n1,2,3,4,5,6,0\n")
    with pytest.raises(ConfigError, match="no column 'label'") as caught:
        FolderSource(tmp_path, label="label").load(SPEC)
    assert "kind" in caught.value.hint


def test_memory_is_bounded_before_it_is_taken(tmp_path: Path) -> None:
    """Over all files; an array's size is read from its header, not found out."""
    save(tmp_path / "a.npz", 100)
    save(tmp_path / "b.npz", 100)
    assert len(FolderSource(tmp_path, max_bytes=8_000).load(SPEC).train) == 180
    assert "b.npz needs" in complaint(tmp_path, max_bytes=5_000)
    (tmp_path / "c.csv").write_text("1,2,3,4,5,6,0\n" * 1000)
    assert "c.csv needs" in complaint(tmp_path, max_bytes=10_000)


def test_an_array_that_claims_a_terabyte(tmp_path: Path) -> None:
    """A header may say what it likes; nothing is allocated for it."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000, 2, 3), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    assert "needs 2288818" in complaint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and then nothing", b"x" * 1000])
def test_files_that_are_no_npz(tmp_path: Path, content: bytes) -> None:
    """Truncated or something else."""
    (tmp_path / "a.npz").write_bytes(content)
    assert "not a readable .npz" in complaint(tmp_path)


def test_a_truncated_npz_at_every_length(tmp_path: Path) -> None:
    """Each is a complaint or, never, anything else."""
    save(tmp_path / "whole.npz", 3)
    data = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "whole.npz").unlink()
    for length in range(0, len(data), 7):
        (tmp_path / "a.npz").write_bytes(data[:length])
        assert complaint(tmp_path)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_an_npz_damaged_anywhere(tmp_path: Path, write: Any) -> None:
    """One byte is wrong: a complaint, unless nothing depends on it; never anything else."""
    write(tmp_path / "whole.npz", x=np.zeros((20, 2, 3), np.float32), y=np.arange(20) % 2)
    data = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "whole.npz").unlink()
    complaints = 0
    for at in range(len(data)):
        (tmp_path / "a.npz").write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            FolderSource(tmp_path).load(SPEC)
        except ConfigError:
            complaints += 1
    assert complaints > len(data) / 2


def test_an_encrypted_npz(tmp_path: Path) -> None:
    """Its flags say so, in each local header and in the directory."""
    save(tmp_path / "a.npz")
    data = bytearray((tmp_path / "a.npz").read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            data[at + flags] |= 1
    (tmp_path / "a.npz").write_bytes(data)
    assert "encrypted" in complaint(tmp_path)


def test_a_file_without_x_or_y(tmp_path: Path) -> None:
    """It is named."""
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2, 3), np.float32))
    assert "has no array y" in complaint(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    """Or is none: a directory of that name."""
    (tmp_path / "a.npz").mkdir()
    assert "not a readable .npz" in complaint(tmp_path)
