"""Archives from elsewhere: found by the ends of paths, read within bounds, and refused where they are hostile."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.errors import ConfigError
from models import archives
from models.archives import Archive
from tests.anabranch.datasets.made_up import zipped


@pytest.mark.parametrize(
    "path", ["../ai4i2020.csv", "a/../../ai4i2020.csv", "/ai4i2020.csv", "C:/ai4i2020.csv", "..\\x"]
)
def test_an_archive_that_reaches_out_of_itself_is_refused(path):
    for content in (zipped({path: b"x"}), zipped({"inner.zip": zipped({path: b"x"})})):
        with pytest.raises(ConfigError, match="outside"):
            Archive.of_downloads({"a.zip": content})


def test_an_archive_is_bounded_unpacked(monkeypatch):
    """A file, all archives within it, and their number: whatever its directory says."""
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 10_000)
    monkeypatch.setattr(archives, "MAX_FILES", 5)
    assert Archive.of_downloads({"a.zip": zipped({"x": bytes(10_000)})}).read("x") == bytes(10_000)
    with pytest.raises(ConfigError, match="larger than 10,000"):
        Archive.of_downloads({"a.zip": zipped({"x": bytes(10_001)})}).read("x")
    with pytest.raises(ConfigError, match="larger than 10,000"):
        Archive.of_downloads({"a.zip": zipped({"x.zip": bytes(10_001)})})
    with pytest.raises(ConfigError, match="too much"):
        Archive.of_downloads({"a.zip": zipped({str(n): b"" for n in range(6)})})
    inner = zipped({str(n): b"" for n in range(3)})
    with pytest.raises(ConfigError, match="too much"):
        Archive.of_downloads({"a.zip": zipped({"1.zip": inner, "2.zip": inner})})
    ballast = zipped({"x": np.random.default_rng(0).bytes(6000)})
    with pytest.raises(ConfigError, match="too much"):
        Archive.of_downloads({"a.zip": zipped({"1.zip": ballast, "2.zip": ballast})})


def test_a_size_that_lies_is_not_believed():
    """The directory says 5 bytes, the file is longer: its checksum is of other bytes, and it is refused."""
    content = bytearray(zipped({"x": b"0123456789" * 1000}))
    at = content.rindex(b"PK\1\2") + 24
    content[at : at + 4] = (5).to_bytes(4, "little")
    with pytest.raises(ConfigError, match="damaged"):
        Archive.of_downloads({"a.zip": bytes(content)}).read("x")


@given(st.integers(0, 400), st.integers(0, 255))
@settings(deadline=None)
def test_a_damaged_archive_is_refused_or_gives_what_it_held(at, value):
    content = bytearray(zipped({"folder/x": b"some bytes", "y.zip": zipped({"z": b"others"})}))
    content[at % len(content)] = value
    for given_ in (bytes(content), bytes(content[: at % len(content)])):
        try:
            archive = Archive.of_downloads({"a.zip": given_})
            found = [archive.read("x"), archive.read("z")]
        except ConfigError:
            continue
        assert found == [b"some bytes", b"others"]


def test_files_are_found_by_the_end_of_their_path(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "x_1.csv").write_bytes(b"1")
    (tmp_path / "a.zip").write_bytes(zipped({"there/x_2.csv": b"2", "xx_1.csv": b"3"}))
    archive = Archive.of_folder(tmp_path)
    assert [archive.read(p) for p in ("x_1.csv", "here/x_*.csv", "x_2.csv")] == [b"1", b"1", b"2"]
    with pytest.raises(ConfigError, match="2 files are called"):
        archive.read("x_*.csv")
    with pytest.raises(ConfigError, match=r"no y\.csv"):
        archive.read("y.csv")
    with pytest.raises(ConfigError, match="no folder"):
        Archive.of_folder(tmp_path / "nowhere")


def test_a_zip_of_another_compression_than_ours_is_read_too():
    """Stored, deflated or bzip2: what zipfile knows."""
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_BZIP2):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.writestr("x", b"bytes")
        assert Archive.of_downloads({"a.zip": file.getvalue()}).read("x") == b"bytes"
