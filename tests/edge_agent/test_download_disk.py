"""A download on the device's disk: a restart goes on, a full disk waits, and a finished one is written once."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anabranch.simulator.files import MemoryFiles
from edge_agent.download import DISK_S, Download, Held, Target
from edge_agent.objects import Objects
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import Delta, Get, Want
from fl_protocol.parts import FileParts
from fl_protocol.transfer import Outgoing, decode_bitmap
from fl_protocol.transport import Limits

DATA = random.Random(1).randbytes(300_000)
LINK = Limits("3.1.1", 131_072)
CHUNK = 16 << 10
OBJECT = Outgoing(DATA, CHUNK)
FOLDER = Path("objects")


def start(files: MemoryFiles) -> tuple[Objects, Download]:
    """A device that has just started, and looks for the object."""
    objects = Objects(FOLDER, files, lambda: 2e9)
    download = Download(Target("bundle", OBJECT.sha256, OBJECT.size), 0.0, None, objects.parts)
    assert objects.load(OBJECT.sha256) is None
    download.not_on_disk()
    return objects, download


def ask(download: Download, now: float, link: Limits = LINK) -> Get:
    word = download.next(now, link)
    assert isinstance(word, Get)
    return word


def missing(get: Get) -> list[int]:
    count = -(-get.size // get.chunk_size)
    return np.flatnonzero(decode_bitmap(get.missing, count)).tolist()


def test_a_restart_asks_only_for_what_misses_and_the_object_is_written_once() -> None:
    """Killed half-way: the rest comes; the file of the parts becomes the object, and nothing is left beside it."""
    files = MemoryFiles()
    _, first = start(files)
    for chunk in OBJECT.chunks(ask(first, 0.0).missing, 10):
        assert first.heard(chunk, 1.0, LINK) is None
    objects, second = start(files)
    get = ask(second, 0.0)
    assert missing(get) == [*range(10, OBJECT.count)]
    written = files.used()
    for chunk in OBJECT.chunks(get.missing, 64):
        arrived = second.heard(chunk, 1.0, LINK)
    assert arrived is not None
    assert arrived.data == DATA
    files.capacity = files.used()  # a copy would not fit
    assert objects.save(OBJECT.sha256, arrived.data)
    assert files.names(FOLDER) == [OBJECT.sha256]
    assert objects.load(OBJECT.sha256) == DATA
    assert written < len(DATA)


def test_a_full_disk_is_said_and_waited_for() -> None:
    """Chunks under way are not taken meanwhile, nothing is asked for, and what came before is kept."""
    files = MemoryFiles()
    _, download = start(files)
    chunks = [OBJECT.chunk(index) for index in range(OBJECT.count)]
    ask(download, 0.0)
    download.heard(chunks[0], 1.0, LINK)
    files.capacity = files.used()
    with pytest.raises(ProtocolError) as caught:
        download.heard(chunks[1], 2.0, LINK)
    assert caught.value.code is Code.DISK
    assert download.heard(chunks[2], 2.0, LINK) is None
    assert download.next(2.0 + DISK_S - 0.1, LINK) is None
    files.capacity = None
    assert missing(ask(download, 2.0 + DISK_S)) == [*range(1, OBJECT.count)]


def test_a_disk_that_is_full_at_the_start_is_complained_of() -> None:
    """Once a minute, and not by an exception: nobody is there to take it."""
    files = MemoryFiles()
    _, download = start(files)
    files.capacity = 0
    assert download.next(0.0, LINK) is None
    assert [error.code for error in download.take_complaints()] == [Code.DISK]
    assert download.take_complaints() == []
    assert download.next(DISK_S - 1, LINK) is None
    assert download.take_complaints() == []
    files.capacity = None
    assert len(missing(ask(download, DISK_S))) == OBJECT.count


def wanting(files: MemoryFiles) -> tuple[Download, Delta]:
    """A device that has asked for a delta; the answer says that it comes in chunks."""
    target = Target("version", "a" * 64, 400_000, version=5, asks=True, task="fan")
    download = Download(target, 0.0, None, FileParts(FOLDER, files, now_s=lambda: 2e9))
    download.not_on_disk(Held(3, "b" * 64))
    assert isinstance(download.next(0.0, LINK), Want)
    names = {"task": "fan", "sha256": "a" * 64, "base": "b" * 64, "object": OBJECT.sha256, "size": OBJECT.size}
    return download, Delta(**names, chunk_size=CHUNK)  # type: ignore[arg-type]


def test_a_delta_that_the_disk_has_no_room_for_is_waited_for() -> None:
    """As any object: E_DISK is said, and nothing is wanted again before there may be room."""
    files = MemoryFiles()
    download, answer = wanting(files)
    files.capacity = 0
    with pytest.raises(ProtocolError) as caught:
        download.answered(answer, 1.0)
    assert caught.value.code is Code.DISK
    said = [download.next(1.0 + second, LINK) for second in range(int(DISK_S))]
    assert said == [None] * int(DISK_S)
    files.capacity = None
    assert isinstance(download.next(1.0 + DISK_S, LINK), Want)
    assert download.answered(answer, 2.0 + DISK_S) is None
    assert ask(download, 2.0 + DISK_S).sha256 == OBJECT.sha256


def test_an_answer_in_sizes_that_nobody_can_fetch_leaves_the_way() -> None:
    """More chunks than any object has: E_SIZE, and the version is fetched whole."""
    download, answer = wanting(MemoryFiles())
    with pytest.raises(ProtocolError) as caught:
        download.answered(replace(answer, chunk_size=1), 1.0)
    assert caught.value.code is Code.SIZE
    assert ask(download, 1.0).sha256 == "a" * 64


def test_a_connection_with_other_packets_keeps_what_came() -> None:
    """From 16 KiB to 4 KiB a chunk: every byte that was here is here."""
    files = MemoryFiles()
    _, download = start(files)
    for chunk in OBJECT.chunks(ask(download, 0.0).missing, 5):
        download.heard(chunk, 1.0, LINK)
    download.resume()
    small = Limits("3.1.1", 4096 + 512)
    get = ask(download, 2.0, small)
    assert get.chunk_size == 4096
    assert missing(get) == [*range(20, -(-len(DATA) // 4096))]


def test_parts_of_what_is_wanted_outlive_the_unwanted() -> None:
    """And are dropped with it when nothing names them any more."""
    files = MemoryFiles()
    objects, download = start(files)
    download.heard(OBJECT.chunk(0), 0.0, LINK)
    objects.keep(frozenset({OBJECT.sha256}))
    assert len(files.names(FOLDER)) == 2
    assert download.fetching == OBJECT.sha256
    objects.keep(frozenset({"a" * 64}))
    assert files.names(FOLDER) == []
