"""Both ends on disks of their own, over a hostile network, dying between any two effects: the object arrives once.

Every run is drawn from one seed; hypothesis prints it where a promise breaks.
"""

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.simulator.files import MemoryFiles
from anabranch.simulator.power import Death, PowerCut
from fl_protocol import messages as m
from fl_protocol.codec import decode_as, encode
from fl_protocol.errors import ProtocolError
from fl_protocol.file_source import FileSource
from fl_protocol.pacing import window_for
from fl_protocol.parts import FileParts
from fl_protocol.transfer import Fetch, Inbox, Outgoing, Upload

CHUNK = 50
WINDOW = 8
OBJECT, FOLDER = Path("object"), Path("parts")
STEP_S = 0.25
Direction = Literal["up", "down"]


@dataclass
class Network:
    """Each message is lost, damaged, doubled and delayed by chance; `evil` 0 is a good one, in order."""

    rng: random.Random
    evil: float
    under_way: list[tuple[float, int, m.Message]] = field(default_factory=list)
    chunk_bytes: int = 0
    _count: int = 0

    def send(self, message: m.Message | None, now: float) -> None:
        if message is None:
            return
        self._count += 1
        self.chunk_bytes += len(message.data) if isinstance(message, m.Chunk) else 0
        copies = 1
        if self.evil:
            copies = 0 if self.rng.random() < self.evil else 1 + (self.rng.random() < 0.2)
        for _ in range(copies):
            delay = self.rng.expovariate(1) if self.evil else 0.1
            self.under_way.append((now + delay, self._count, message))

    def arrived(self, now: float) -> list[m.Message]:
        here = sorted((item for item in self.under_way if item[0] <= now), key=lambda item: item[:2])
        self.under_way = [item for item in self.under_way if item[0] > now]
        return [self._carried(message) for _, _, message in here]

    def _carried(self, message: m.Message) -> m.Message:
        message = decode_as(type(message), encode(message))
        if isinstance(message, m.Chunk) and self.evil and self.rng.random() < 0.1:
            return m.Chunk(**{**vars(message), "data": message.data[::-1]})
        return message


class Ends:
    """A sender and a receiver; either can be started again from its disk."""

    def __init__(self, direction: Direction, data: bytes, seed: int, evil: float) -> None:
        self.direction, self.data, self.sha256 = direction, data, hashlib.sha256(data).hexdigest()
        self.rng = random.Random(seed)
        self.network = Network(self.rng, evil)
        self.sender_disk, self.receiver_disk = MemoryFiles(), MemoryFiles()
        self.sender_disk.write_at(OBJECT, 0, data)
        self.receiver_disk.make_directory(FOLDER)
        self.receiver_disk.sync_directory(Path())
        self.name = f"ann.{self.sha256}" if direction == "up" else self.sha256
        self.now, self.deaths = 0.0, 0
        self.start_sender()
        self.start_receiver()

    def start_sender(self) -> None:
        source = FileSource(OBJECT, self.sha256, self.sender_disk)
        about = {"task": "fan", "incarnation": "0" * 16, "seq": 1, "base_version": 3, "fingerprint": "a" * 32}
        self.upload = Upload(source, CHUNK, **about, retry_s=5)  # type: ignore[arg-type]
        self.outgoing = Outgoing(source, CHUNK)

    def start_receiver(self) -> None:
        self.parts = FileParts(FOLDER, self.receiver_disk, now_s=lambda: 2e9 + self.now, small=0)
        if self.direction == "up":
            self.inbox = Inbox(100_000, 1e6, window=WINDOW, retry_s=3, parts=self.parts, now=self.now)
        else:
            part = self.parts.open(self.name, self.sha256, len(self.data), CHUNK)
            self.fetch = Fetch(self.sha256, len(self.data), CHUNK, WINDOW, 3, part)

    @property
    def receiver(self) -> object:
        return self.inbox.get("ann", self.sha256) if self.direction == "up" else self.fetch

    def held(self) -> set[int]:
        """The chunks that the receiver has now."""
        receiver = self.receiver
        flags = receiver._incoming.flags if receiver else np.ones(-(-len(self.data) // CHUNK), bool)  # type: ignore[attr-defined]
        return {*np.flatnonzero(~flags).tolist()}

    def finished(self) -> bytes | None:
        path = FOLDER / self.sha256
        return self.receiver_disk.read(path) if self.receiver_disk.is_file(path) else None

    def step(self) -> None:
        """Both ends do what is due. A `PowerCut` comes from the receiver's disk."""
        self.now += STEP_S
        if self.direction == "up":
            self.network.send(self.upload.offer(self.now), self.now)
            for _, grant in self.inbox.next_grants(self.now):
                self.network.send(grant, self.now)
        else:
            self.network.send(self.fetch.next_get(self.now), self.now)
        for message in self.network.arrived(self.now):
            self.take(message)

    def take(self, message: m.Message) -> None:
        match message:
            case m.Offer():
                reception = self.inbox.open(message.sha256, message.size, message.chunk_size, "ann", self.now)
                self.network.send(reception.offered(self.now), self.now)
            case m.Grant():
                for chunk in self.upload.granted(message, self.now):
                    self.network.send(chunk, self.now)
            case m.Get():
                for chunk in self.outgoing.chunks(message.missing, message.window):
                    self.network.send(chunk, self.now)
            case m.Chunk():
                self.take_chunk(message)

    def take_chunk(self, chunk: m.Chunk) -> None:
        receiver = self.receiver
        if receiver is None or receiver.done:  # type: ignore[attr-defined]
            return
        try:
            if receiver.add(chunk, self.now):  # type: ignore[attr-defined]
                receiver.verify()  # type: ignore[attr-defined]
                self.parts.finish(self.name, FOLDER / self.sha256)
            elif self.direction == "up":
                self.network.send(receiver.next_grant(self.now), self.now)  # type: ignore[attr-defined]
        except ProtocolError:
            pass  # damaged on its way: as good as lost

    def kill_receiver(self, death: Death) -> None:
        self.deaths += 1
        self.receiver_disk.die(death, np.random.default_rng(self.rng.randrange(2**32)))
        self.receiver_disk.reboot()
        self.receiver_disk.crash_point = lambda _: None
        self.start_receiver()


def object_of(seed: int, size: int = 0) -> bytes:
    rng = random.Random(seed)
    return rng.randbytes(size or rng.randint(1, 3000))


@settings(max_examples=80, deadline=None)
@given(
    direction=st.sampled_from(["up", "down"]),
    seed=st.integers(0, 2**32),
    evil=st.sampled_from([0.0, 0.1, 0.4]),
    death=st.sampled_from(["kill", "power"]),
    risk=st.sampled_from([0.0, 0.02, 0.1]),
    bad_s=st.sampled_from([10, 60]),
)
def test_an_object_arrives_whatever_dies(
    direction: Direction, seed: int, evil: float, death: Death, risk: float, bad_s: float
) -> None:
    """The receiver dies before any effect on its disk, the finishing rename too; the sender dies when it likes.

    What a kill found stays; the bytes are the object's; nothing is left beside it; and finishing again changes nothing.
    """
    ends = Ends(direction, object_of(seed), seed, evil)

    def crash(_: str) -> None:
        if ends.now < bad_s and ends.rng.random() < risk:
            raise PowerCut

    while ends.finished() is None:
        assert ends.now < 2000, "never arrived"
        if ends.now >= bad_s:
            ends.network.evil = 0.0
        if ends.now < bad_s and ends.rng.random() < risk:
            ends.start_sender()
        ends.receiver_disk.crash_point = crash
        try:
            ends.step()
        except PowerCut:
            before = ends.held()
            ends.kill_receiver(death)
            if death == "kill" and ends.finished() is None:
                assert before - ends.held() <= {-(-len(ends.data) // CHUNK) - 1}
    ends.receiver_disk.crash_point = lambda _: None
    assert ends.finished() == ends.data
    ends.kill_receiver("kill")
    assert ends.finished() == ends.data
    if direction == "up":
        assert ends.receiver_disk.names(FOLDER) == [ends.sha256]


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("tenths", [0, 1])
def test_what_is_sent_is_the_object_and_little_more(direction: Direction, tenths: int) -> None:
    """Nothing twice on a good network; with either end killed in each tenth, one window for each death."""
    ends = Ends(direction, object_of(1, 50_000), 1, 0.0)
    while ends.finished() is None:
        ends.step()
        share = len(ends.held()) / 1000
        if tenths and ends.finished() is None and share > (ends.deaths + 1) / 10 and ends.deaths < 9:
            ends.network.under_way.clear()
            ends.start_sender()
            ends.kill_receiver("kill")
    assert ends.finished() == ends.data
    assert ends.deaths == 9 * tenths
    assert len(ends.data) <= ends.network.chunk_bytes <= len(ends.data) + ends.deaths * WINDOW * CHUNK
    assert ends.network.chunk_bytes <= 1.1 * len(ends.data)


def test_reordering_by_a_few_is_not_taken_for_loss() -> None:
    """Chunks overtaken by up to two others are not asked for again; one that was lost is, without a silence."""
    rng = random.Random(3)
    out = Outgoing(object_of(1, 50_000), CHUNK)
    fetch = Fetch(out.sha256, out.size, CHUNK, window=16, retry_s=1e9)
    queue: list[m.Chunk] = []
    sent, lost = 0, {100, 500}
    while not fetch.done:
        if get := fetch.next_get(0.0):
            chunks = list(out.chunks(get.missing, get.window))
            sent += len(chunks)
            queue += [chunk for chunk in chunks if chunk.index not in lost]
            lost -= {chunk.index for chunk in chunks}
        fetch.add(queue.pop(rng.randrange(min(3, len(queue)))), 0.0)
    assert fetch.data() == object_of(1, 50_000)
    assert sent <= out.count + 2 + 8


@pytest.mark.parametrize("chunk_size", [1, 500, 16 << 10, 48 << 10, 1 << 20])
def test_a_window_covers_a_fast_link_and_no_more(chunk_size: int) -> None:
    """Half of it, which is always under way, is what 20 Mbit/s carry in 100 ms, where chunks are not tiny."""
    window = window_for(chunk_size)
    assert 4 <= window <= 36
    if 16 << 10 <= chunk_size <= 48 << 10:
        assert window // 2 * chunk_size >= 20e6 / 8 * 0.1
        assert window * chunk_size <= 576 << 10


def test_patience_comes_back_with_the_chunks() -> None:
    """An outage of minutes does not leave a fast link with minutes of patience for its next loss."""
    out = Outgoing(object_of(1, 50_000), CHUNK)
    fetch = Fetch(out.sha256, out.size, CHUNK, window=8, retry_s=5)
    now = 0.0
    while now < 300:  # nothing answers
        fetch.next_get(now)
        now += 1
    get = fetch.next_get(now + 1000)
    for _ in range(10):
        assert get is not None
        for chunk in out.chunks(get.missing, get.window):
            now += 0.02
            fetch.add(chunk, now)
        get = fetch.next_get(now) or get
    silent = next(s for s in range(1, 200) if fetch.next_get(now + s))
    assert silent <= 6


def test_a_gateway_that_starts_again_keeps_its_budget_and_its_clock() -> None:
    """Half-received uploads take their room after a restart too, the oldest leave first, and what is old is dropped."""
    files = MemoryFiles()
    wall = [2e9]
    parts = FileParts(FOLDER, files, now_s=lambda: wall[0], small=0)

    def inbox(now: float, max_bytes: int = 2500) -> Inbox:
        return Inbox(max_bytes, 600, parts=parts, now=now)

    first = inbox(50.0)
    objects = {owner: Outgoing(owner.encode() * 1000, CHUNK) for owner in "ab"}
    for owner, out in objects.items():
        first.open(out.sha256, out.size, CHUNK, owner, 50.0).add(out.chunk(1), 50.0)
        wall[0] += 250
    second = inbox(7.0)
    assert second.reserved == 2000
    reception = second.get("b", objects["b"].sha256)
    assert reception is not None
    assert reception.progress > 0
    assert list(second.next_grants(11.9)) == []  # chunks may be under way
    assert [owner for owner, _ in second.next_grants(12.0)] == ["a", "b"]
    assert second.expire(107.0) == [("a", objects["a"].sha256)]
    assert [found.name[0] for found in parts.found()] == ["b"]
    assert inbox(0.0, max_bytes=500).reserved == 0
    assert parts.found() == []
