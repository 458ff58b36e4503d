"""What every `Files` does: the operating system's, and the simulator's that lose what was not synced."""

import errno
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.simulator.files import MemoryFiles
from broker_aggregator.objects import add_bundle
from edge_agent.objects import Objects
from fl_protocol.durable import OS_FILES, Files, make_directory, write_durably
from fl_protocol.errors import ConfigError

BUNDLE = Path(__file__).parents[2] / "anabranch/data/fan_vibration.bundle"
Disk = tuple[Files, Path]


@pytest.fixture(params=["os", "memory"])
def disk(request, tmp_path) -> Disk:
    """A file system and an empty directory in it."""
    if request.param == "os":
        return OS_FILES, tmp_path
    files = MemoryFiles()
    files.make_directory(Path("/disk"))
    return files, Path("/disk")


def put(files: Files, path: Path, *parts: bytes) -> None:
    """Write a file, part by part."""
    with files.create(path, 0o644) as file:
        for part in parts:
            file.write(part)
        file.sync()


def test_a_file_is_what_was_written_last(disk: Disk) -> None:
    """In parts or at once; creating it again empties it."""
    files, root = disk
    put(files, root / "f", b"one", b"", b"two")
    assert (files.read(root / "f"), files.size(root / "f")) == (b"onetwo", 6)
    put(files, root / "f", b"x")
    assert files.read(root / "f") == b"x"
    put(files, root / "f")
    assert (files.read(root / "f"), files.is_file(root / "f")) == (b"", True)


def test_a_file_is_written_and_read_in_the_middle(disk: Disk) -> None:
    """Zeros fill what was skipped; it is made at the first write; reading ends where the file does."""
    files, root = disk
    files.write_at(root / "f", 3, b"late")
    files.write_at(root / "f", 0, b"ab")
    files.write_at(root / "f", 4, b"")
    assert files.read(root / "f") == b"ab\0late"
    assert [files.read_at(root / "f", *at) for at in ((0, 2), (3, 9), (7, 1), (99, 1), (0, 0))] == [
        b"ab",
        b"late",
        b"",
        b"",
        b"",
    ]
    files.write_at(root / "f", 1, b"BCDE")
    files.sync(root / "f")
    assert files.read(root / "f") == b"aBCDEte"


def test_names_are_sorted_and_of_one_directory(disk: Disk) -> None:
    """Files and directories alike; what is in those is theirs."""
    files, root = disk
    for name in ("b", "a", ".c"):
        put(files, root / name, b"")
    files.make_directory(root / "d")
    put(files, root / "d" / "e", b"")
    files.sync_directory(root)
    assert files.names(root) == [".c", "a", "b", "d"]
    assert (files.is_directory(root / "d"), files.is_file(root / "d")) == (True, False)
    assert (files.is_directory(root / "a"), files.is_file(root / "nothing")) == (False, False)


def test_a_temporary_name_is_beside_its_file(disk: Disk) -> None:
    """In the same directory, so that the rename is one operation; and not the file's own."""
    files, root = disk
    temporary = files.temporary(root / "f")
    assert temporary.parent == root
    assert temporary.name.startswith(".f.")


def test_a_file_is_replaced_durably_in_a_directory_that_is_made(disk: Disk) -> None:
    """`write_durably` leaves the file, and nothing else."""
    files, root = disk
    path = root / "a" / "b" / "f"
    for data in (b"old", b"new"):
        write_durably(path, data, files=files)
    assert files.names(path.parent) == ["f"]
    assert files.read(path) == b"new"
    make_directory(path.parent, files)
    with pytest.raises(FileExistsError):
        make_directory(path, files)


def test_objects_are_saved_loaded_and_kept(disk: Disk) -> None:
    """A device's: by name; leftovers go with the unwanted; a place that is a file is the operator's mistake."""
    files, root = disk
    objects = Objects(root / "objects", files)
    assert objects.save("a", b"one")
    assert objects.save("b", b"two")
    put(files, files.temporary(root / "objects" / "c"), b"half")
    objects.keep(frozenset({"b", "d"}))
    assert files.names(root / "objects") == ["b"]
    assert [Objects(root / "objects", files).load(name) for name in "ab"] == [None, b"two"]
    with pytest.raises(ConfigError, match="objects directory"):
        Objects(root / "objects" / "b", files)


def test_a_bundle_is_kept_under_its_hash(disk: Disk) -> None:
    """The gateway's: a damaged one is mended, a sound one is left; a missing source is a sentence."""
    files, root = disk
    data = BUNDLE.read_bytes()
    put(files, root / "source", data)
    name = hashlib.sha256(data).hexdigest()
    for _ in range(3):
        assert add_bundle(root / "bundles", root / "source", files).sha256 == name
        assert files.read(root / "bundles" / name) == data
        put(files, root / "bundles" / name, b"damaged")
    add_bundle(root / "bundles", root / "source", files)
    for _ in range(2):
        add_bundle(root / "bundles", root / "source", files)
    assert files.names(root / "bundles") == [name]
    with pytest.raises(ConfigError, match="cannot read the bundle"):
        add_bundle(root / "bundles", root / "nothing", files)


NAMES = st.sampled_from(["a", "b", "d", "d/a", "d/e", "a/x", "a/x/y", "no/x"]).map(Path)
OPERATIONS = st.one_of(
    st.tuples(st.just("put"), NAMES, st.binary(max_size=4)),
    st.tuples(st.just("write_at"), NAMES, st.integers(0, 6), st.binary(max_size=4)),
    st.tuples(st.just("read_at"), NAMES, st.integers(0, 6), st.integers(0, 6)),
    st.tuples(st.just("rename"), NAMES, NAMES).filter(lambda o: o[1].parent == o[2].parent),
    st.tuples(
        st.sampled_from(
            ["remove", "make_directory", "sync_directory", "sync", "read", "names", "is_file", "is_directory"]
        ),
        NAMES,
    ),
)


def outcome(files: Files, root: Path, name: str, path: Path, *more: object) -> object:
    """What an operation answers, or the kind of its refusal."""
    arguments = [root / a if isinstance(a, Path) else a for a in more]
    function: Callable[..., object] = getattr(files, name, None) or (lambda *a: put(files, *a))
    if name in ("rename", "sync", "read_at") and files.is_directory(root / path):
        return None  # production does this to files
    try:
        return function(root / path, *arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@given(st.lists(OPERATIONS, max_size=20))
def test_memory_answers_as_the_operating_system_does(operations: list[tuple]) -> None:
    """The same values and the same errors, whatever was done before."""
    memory = MemoryFiles()
    with tempfile.TemporaryDirectory() as folder:
        for operation in operations:
            mine = outcome(memory, Path(), *operation)
            theirs = outcome(OS_FILES, Path(folder), *operation)
            assert mine == theirs, operation
