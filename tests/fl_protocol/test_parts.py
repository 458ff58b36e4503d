"""Objects in the making on the disk: what came stays, whatever became of the files; nothing else is taken for it."""

import errno
import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.simulator.files import MemoryFiles
from fl_protocol.chunks import Incoming, MemoryPart, Outgoing
from fl_protocol.durable import OS_FILES
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.file_source import FileSource, sha256_of
from fl_protocol.parts import SMALL, FileParts, parse_header

DATA = random.Random(5).randbytes(1000)
SHA = hashlib.sha256(DATA).hexdigest()
SIZE = 96  # of a chunk: 11 of them, the last one shorter
FOLDER = Path("uploads")
NOW = 1_800_000_000.0


def parts_on(files: MemoryFiles, *, now: float = NOW, max_bytes: int | None = None) -> FileParts:
    return FileParts(FOLDER, files, now_s=lambda: now, small=0, max_bytes=max_bytes)


def begin(parts: FileParts, name: str = SHA, chunk_size: int = SIZE, data: bytes = DATA) -> Incoming:
    sha256 = name[-64:]
    return Incoming(sha256, len(data), chunk_size, parts.open(name, sha256, len(data), chunk_size))


def bring(incoming: Incoming, *indices: int, data: bytes = DATA) -> None:
    outgoing = Outgoing(data, incoming.chunk_size)
    for index in indices:
        incoming.add(outgoing.chunk(index))


def missing(incoming: Incoming) -> list[int]:
    return np.flatnonzero(incoming.flags).tolist()


def refusal(act: object) -> Code:
    with pytest.raises(ProtocolError) as caught:
        act()  # type: ignore[operator]
    return caught.value.code


def test_a_restart_goes_on_where_it_was() -> None:
    """Out of order, twice over; and the object is what it is called."""
    files = MemoryFiles()
    bring(begin(parts_on(files)), 7, 2, 10)
    bring(begin(parts_on(files)), 0, 7)
    third = begin(parts_on(files))
    assert missing(third) == [1, 3, 4, 5, 6, 8, 9]
    assert third.progress == pytest.approx(4 / 11)
    bring(third, *missing(third))
    assert third.data() == DATA


def test_what_lacks_nothing_asks_for_its_last_chunk_again() -> None:
    """A process that ended before it could finish: there is one way to finish, and it can be gone twice."""
    files = MemoryFiles()
    bring(begin(parts_on(files)), *range(11))
    for _ in range(2):
        again = begin(parts_on(files))
        assert missing(again) == [10]
        bring(again, 10)
        assert again.data() == DATA


@given(seed=st.integers(0, 2**32), chunk_size=st.sampled_from([1, 7, 32, 48, 95, 97, 192, 500, 999, 1000, 4096]))
def test_chunks_of_another_size_take_over_what_they_cover(seed: int, chunk_size: int) -> None:
    """A connection with other packets keeps every byte that whole chunks of its size can be made of."""
    rng = random.Random(seed)
    files = MemoryFiles()
    came = rng.sample(range(11), rng.randint(0, 10))
    bring(begin(parts_on(files)), *came)
    bytes_held = np.zeros(len(DATA), bool)
    for index in came:
        bytes_held[index * SIZE : (index + 1) * SIZE] = True
    for _ in range(2):  # and a restart later too
        other = begin(parts_on(files), chunk_size=chunk_size)
        starts = range(0, len(DATA), chunk_size)
        assert missing(other) == [i for i, at in enumerate(starts) if not bytes_held[at : at + chunk_size].all()]
    bring(other, *missing(other))
    assert other.data() == DATA


@given(
    seed=st.integers(0, 2**32),
    spoil=st.sampled_from(["part", "records"]),
    how=st.sampled_from(["cut", "zeros", "noise", "longer", "gone"]),
)
def test_whatever_became_of_the_files_only_chunks_are_lost(seed: int, spoil: str, how: str) -> None:
    """No order of writes is relied on: a spoiled byte costs its chunk or the part, never the object's soundness."""
    rng = random.Random(seed)
    files = MemoryFiles()
    came = rng.sample(range(11), rng.randint(1, 11))
    bring(begin(parts_on(files)), *came)
    path = FOLDER / f"{SHA}.{spoil}"
    content, at = bytearray(files.read(path)), rng.randrange(files.size(path))
    length = rng.randint(1, 200)
    if how == "cut":
        del content[at:]
    elif how in ("zeros", "noise"):
        end = min(len(content), at + length)
        content[at:end] = bytes(end - at) if how == "zeros" else rng.randbytes(end - at)
    elif how == "longer":
        content += rng.randbytes(length)
    files.remove(path)
    if how != "gone":
        files.write_at(path, 0, bytes(content))
    again = begin(parts_on(files))
    held = {*range(11)} - {*missing(again)}
    assert held <= {*came}
    if how == "longer":
        too_long = spoil == "part" and len(content) > len(DATA)
        assert held == (set() if too_long else {*came} - ({10} if len(came) == 11 else set()))
    for index in held:
        assert (
            files.read_at(FOLDER / f"{SHA}.part", index * SIZE, SIZE)[:SIZE] == Outgoing(DATA, SIZE).chunk(index).data
        )
    bring(again, *missing(again))
    assert again.data() == DATA


def test_another_objects_bytes_are_never_finished() -> None:
    """Every CRC was right, the SHA-256 was not: nothing of it stays, on the disk either."""
    files, liar = MemoryFiles(), DATA[:-1] + b"!"
    incoming = begin(parts_on(files))
    for index in range(11):
        chunk = Outgoing(liar, SIZE).chunk(index)
        incoming.add(type(chunk)(sha256=SHA, index=index, count=11, crc32=chunk.crc32, data=chunk.data))
    assert refusal(incoming.data) is Code.SHA
    assert missing(incoming) == [*range(11)]
    bring(incoming, 4)
    again = begin(parts_on(files))
    assert missing(again) == [i for i in range(11) if i != 4]
    bring(again, *missing(again))
    assert again.data() == DATA


def test_a_file_of_other_sizes_or_another_name_is_no_part_of_this() -> None:
    """A header speaks for its own name and size alone."""
    files = MemoryFiles()
    bring(begin(parts_on(files)), 1, 2)
    shorter = DATA[:500]
    other = begin(parts_on(files), data=shorter)
    assert missing(other) == [*range(6)]
    bring(begin(parts_on(files)), 1, 2)
    foreign = "f" * 64
    for end in ("part", "records"):
        files.write_at(FOLDER / f"{foreign}.{end}", 0, files.read(FOLDER / f"{SHA}.{end}"))
    assert [found.name for found in parts_on(files).found()] == [SHA]
    assert files.names(FOLDER) == [f"{SHA}.part", f"{SHA}.records"]


def test_found_says_what_lies_there_and_how_long_untouched() -> None:
    """The longest untouched first. Halves, strangers and what is damaged are dropped; other files are left alone."""
    files = MemoryFiles()
    bring(begin(parts_on(files, now=NOW - 60), f"ann.{SHA}"), 1)
    bring(begin(parts_on(files, now=NOW - 600), f"bob.{SHA}"), 1)
    bring(begin(parts_on(files, now=5.0), SHA), 1)  # a machine without a clock
    files.write_at(FOLDER / "mine.txt", 0, b"not a part")
    files.write_at(FOLDER / f"{'a' * 64}.part", 0, b"half")
    files.write_at(FOLDER / "Robert'); DROP.records", 0, files.read(FOLDER / f"{SHA}.records"))
    parts = parts_on(files)
    assert [(found.name[:3], found.age_s) for found in parts.found()] == [("bob", 600.0), ("ann", 60.0), (SHA[:3], 0.0)]
    assert [(f.sha256, f.size, f.chunk_size) for f in parts.found()] == [(SHA, 1000, SIZE)] * 3
    assert len(files.names(FOLDER)) == 7
    parts.expire(600.0)
    assert [found.name[:3] for found in parts.found()] == ["ann", SHA[:3]]
    parts.remove(f"ann.{SHA}")
    parts.remove(f"ann.{SHA}")
    assert files.names(FOLDER) == [f"{SHA}.part", f"{SHA}.records", "mine.txt"]


def test_a_clock_that_was_set_back_ages_nothing() -> None:
    """An age below zero is none."""
    files = MemoryFiles()
    bring(begin(parts_on(files, now=NOW + 1e6)), 1)
    assert [found.age_s for found in parts_on(files).found()] == [0.0]


def test_the_oldest_make_room_for_the_newest() -> None:
    """By the sizes that they will have; after a restart too."""
    files = MemoryFiles()
    for age, owner in ((300, "ann"), (200, "bob"), (100, "cat")):
        bring(begin(parts_on(files, now=NOW - age), f"{owner}.{SHA}"), 0)
    begin(parts_on(files, max_bytes=3500), f"dan.{SHA}")
    assert sorted(found.name[:3] for found in parts_on(files).found()) == ["bob", "cat", "dan"]
    begin(parts_on(files, max_bytes=3500), f"dan.{SHA}")
    assert len(parts_on(files).found()) == 3


def test_a_full_disk_is_said_and_costs_nothing_that_came() -> None:
    """E_DISK, whatever of a write fits; the same chunk goes in once there is room."""
    files = MemoryFiles()
    incoming = begin(parts_on(files))
    bring(incoming, 0, 1)
    used = files.used()
    for room in (0, 1, SIZE - 1, SIZE, SIZE + 1, SIZE + 11):
        files.capacity = used + room
        assert refusal(lambda: bring(incoming, 2)) is Code.DISK
        assert 2 in missing(incoming)
    files.capacity = used + SIZE + 12
    bring(incoming, 2)
    files.capacity = None
    bring(incoming, *missing(incoming))
    assert incoming.data() == DATA
    full = MemoryFiles(capacity=10)
    assert refusal(lambda: begin(parts_on(full))) is Code.DISK
    broken = MemoryFiles(fault=lambda _: errno.EIO)
    assert refusal(lambda: begin(parts_on(broken))) is Code.DISK


def test_a_whole_part_takes_its_name_once() -> None:
    """One rename; nothing for what was not seen to be whole; a record file that was left behind harms nobody."""
    files = MemoryFiles()
    parts = parts_on(files)
    incoming = begin(parts)
    bring(incoming, *range(11))
    assert not parts.finish(SHA, FOLDER / SHA)
    incoming.verify()
    records = files.read(FOLDER / f"{SHA}.records")
    assert parts.finish(SHA, FOLDER / SHA)
    assert not parts.finish(SHA, FOLDER / SHA)
    assert (files.names(FOLDER), files.read(FOLDER / SHA)) == ([SHA], DATA)
    files.write_at(FOLDER / f"{SHA}.records", 0, records)
    assert missing(begin(parts_on(files))) == [*range(11)]
    assert files.read(FOLDER / SHA) == DATA


def test_a_small_object_leaves_the_disk_alone(tmp_path: Path) -> None:
    """It is sent again soon, and flash wears."""
    parts = FileParts(tmp_path / "uploads")
    assert isinstance(parts.open(SHA, SHA, SMALL, SIZE), MemoryPart)
    assert not (tmp_path / "uploads").exists()
    assert not isinstance(parts.open(SHA, SHA, SMALL + 1, SIZE), MemoryPart)
    assert sorted(path.suffix for path in (tmp_path / "uploads").iterdir()) == [".part", ".records"]


@pytest.mark.parametrize("name", ["../" + SHA, "a/b." + SHA, SHA.upper(), "", "A." + SHA, "a.b." + SHA, SHA + ".part"])
def test_a_name_never_leaves_the_directory(name: str) -> None:
    """Names come from topics, which were checked; and once more here."""
    with pytest.raises(ProtocolError, match="no name of a part"):
        parts_on(MemoryFiles()).open(name, SHA, 1000, SIZE)


@given(st.binary(max_size=80))
def test_no_header_of_noise(raw: bytes) -> None:
    """Of 80 bytes or fewer."""
    assert parse_header(raw) is None


def test_a_file_is_sent_without_being_held(tmp_path: Path) -> None:
    """In chunks, by its hash; one that is cut short meanwhile is an error, not a short chunk."""
    path = tmp_path / "object"
    path.write_bytes(DATA)
    source = FileSource(path, sha256_of(path, OS_FILES))
    outgoing = Outgoing(source, SIZE)
    assert (outgoing.sha256, outgoing.size) == (SHA, 1000)
    assert b"".join(outgoing.chunk(i).data for i in range(outgoing.count)) == DATA
    path.write_bytes(DATA[:500])
    assert refusal(lambda: outgoing.chunk(5)) is Code.DISK
    path.unlink()
    assert refusal(lambda: outgoing.chunk(0)) is Code.DISK
