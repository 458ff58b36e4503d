"""Updates in chunks at the gateway: a restart, kill -9 and a full disk cost no more than they must."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anabranch.simulator.files import MemoryFiles
from broker_aggregator.coordinator import DISK_RETRY_S, Coordinator
from broker_aggregator.events import DropParts, Effect, Gone, Online, Received, Send, Tick
from fl_protocol.messages import Chunk, Grant, Offer
from fl_protocol.parts import FileParts
from fl_protocol.signing import seal_update, sign_offer
from fl_protocol.topics import Kind, build
from fl_protocol.transfer import SILENT_S, Inbox, Outgoing, decode_bitmap
from tests.support.fleet import FLEET, LAYOUT, Gateway, key_of, make_update, of_kind, results

FAN, CHUNK, FOLDER = "fan-0", 64, Path("uploads")
DATA = seal_update(
    make_update(FAN, 1, 0, [0.1, 0.2, 0.3], metrics={f"m{i}": float(i) for i in range(40)}),
    key_of(FAN),
    FLEET,
    build(Kind.UPDATE, FLEET, device=FAN),
)
OBJECT = Outgoing(DATA, CHUNK)


def gateway(files: MemoryFiles, now: float = 0.0) -> Gateway:
    """A gateway that has just started on this disk; its store remembers nothing of updates."""
    parts = FileParts(FOLDER, files, now_s=lambda: 2e9, small=0)
    inbox = Inbox(1 << 20, 3600.0, window=4, parts=parts, now=now)
    made = Gateway(Coordinator(FLEET, inbox=inbox), now=now).add(FAN)
    return made.start(buffer=3, deadline_s=60, example_exponent="0")


def offer() -> Received:
    """The device's words."""
    unsigned = Offer(
        sha256=OBJECT.sha256,
        size=OBJECT.size,
        chunk_size=CHUNK,
        task="fan",
        incarnation="0" * 16,
        seq=1,
        base_version=0,
        fingerprint=LAYOUT.fingerprint,
    )
    return Received(FAN, sign_offer(unsigned, key_of(FAN), FLEET, build(Kind.OFFER, FLEET, device=FAN)))


def grants(effects: list[Effect]) -> list[Grant]:
    """What the device is told."""
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Grant)]


def answer(g: Gateway, grant: Grant, sent: list[int], upto: Callable[[int], bool] = lambda _: True) -> list[Effect]:
    """Send what a grant asks for, while `upto` says so of an index; what the gateway does about it."""
    effects: list[Effect] = []
    for chunk in OBJECT.chunks(grant.missing, grant.window):
        if upto(chunk.index):
            sent.append(chunk.index)
            effects += g.handle(Received(FAN, chunk))
    return effects


def carry_out(g: Gateway, effects: list[Effect]) -> None:
    """What the service does after the commit."""
    for effect in of_kind(effects, DropParts):
        g.coordinator.inbox.discard(effect.device, effect.sha256)


def send_all(g: Gateway, effects: list[Effect], sent: list[int], upto: Callable[[int], bool] = lambda _: True) -> None:
    """Go on until the gateway asks for nothing that `upto` allows."""
    while asked := [grant for grant in grants(effects) if grant.window]:
        effects = [e for grant in asked for e in answer(g, grant, sent, upto)]
        carry_out(g, effects)


@pytest.mark.parametrize("restarts_at", [1, 5, OBJECT.count - 1, OBJECT.count])
def test_a_restart_grants_only_what_misses(restarts_at: int) -> None:
    """Wherever it comes, also after the last chunk and before the commit; and the verdict comes once."""
    files, sent = MemoryFiles(), list[int]()
    first = gateway(files)
    send_all(first, first.handle(offer()), sent, lambda index: index < min(restarts_at, OBJECT.count - 1))
    if restarts_at == OBJECT.count:  # the last one came, and its commit did not
        sent.append(OBJECT.count - 1)
        first.handle(Received(FAN, OBJECT.chunk(OBJECT.count - 1)))
    second = gateway(files, now=100.0)
    effects = second.handle(offer())
    (grant,) = grants(effects)
    left = np.flatnonzero(decode_bitmap(grant.missing, OBJECT.count)).tolist()
    assert left == [*range(min(restarts_at, OBJECT.count - 1), OBJECT.count)]
    send_all(second, effects, sent)
    assert [r.verdict for r in results(second.effects)] == ["accepted"]
    assert len(sent) == OBJECT.count + (restarts_at == OBJECT.count)
    assert files.names(FOLDER) == []
    assert [r.repeat for r in results(second.handle(offer()))] == [True]


def test_chunks_that_were_under_way_at_a_restart_are_taken() -> None:
    """Without a new offer: its broker kept them. A window at most comes twice."""
    files, sent = MemoryFiles(), list[int]()
    first = gateway(files)
    asked = grants(first.handle(offer()))[0]
    second = gateway(files)
    effects = answer(second, asked, sent)
    send_all(second, effects, sent)
    assert [r.verdict for r in results(second.effects)] == ["accepted"]
    assert {*sent} == {*range(OBJECT.count)}
    assert len(sent) < OBJECT.count + 4


def test_a_broker_that_forgot_what_was_under_way_costs_no_silence() -> None:
    """A connection without our session asks for it again at once; one with it waits for what the broker kept."""
    g = gateway(MemoryFiles())
    g.handle(offer())
    assert not grants(g.handle(Online(session_present=True, max_packet=1 << 17, mqtt="5")))
    (grant,) = grants(g.handle(Online(session_present=False, max_packet=1 << 17, mqtt="5")))
    assert grant.window == 4


def test_a_full_disk_is_told_once_and_waited_for() -> None:
    """`full`, E_DISK, however many chunks are under way; later it asks for what it lacks, and nothing twice."""
    files, sent = MemoryFiles(), list[int]()
    g = gateway(files)
    effects = g.handle(offer())
    files.capacity = files.used() + CHUNK + 12
    effects = answer(g, grants(effects)[0], sent)
    (full,) = grants(effects)
    assert (full.answer, full.code, full.retry_in_s) == ("full", "E_DISK", DISK_RETRY_S)
    g.now += 10
    assert grants(g.handle(Tick())) == []
    files.capacity = None
    g.now += DISK_RETRY_S
    effects = g.handle(Tick())
    assert np.flatnonzero(decode_bitmap(grants(effects)[0].missing, OBJECT.count))[0] == 1
    send_all(g, effects, sent)
    assert [r.verdict for r in results(g.effects)] == ["accepted"]


def test_nothing_large_is_begun_on_a_disk_that_is_nearly_full() -> None:
    """The answer to the offer says so, before any radio time is spent."""
    g = gateway(MemoryFiles())
    g.handle(Tick(g.coordinator.min_free_bytes + OBJECT.size - 1))
    assert [(grant.answer, grant.code) for grant in grants(g.handle(offer()))] == [("full", "E_DISK")]
    g.handle(Tick(g.coordinator.min_free_bytes + OBJECT.size))
    assert [grant.answer for grant in grants(g.handle(offer()))] == ["go"]


def test_nobody_keeps_others_out_by_offers() -> None:
    """One device offers all that it may, over and over, and sends nothing: another's upload is granted."""
    g = gateway(MemoryFiles()).add("liar")
    topic = build(Kind.OFFER, FLEET, device="liar")
    answers = []
    for seq in range(100):
        lie = Offer(
            sha256=f"{seq:064x}",
            size=65_000,
            chunk_size=1 << 14,
            task="fan",
            incarnation="0" * 16,
            seq=seq,
            base_version=0,
            fingerprint=LAYOUT.fingerprint,
        )
        effects = g.handle(Received("liar", sign_offer(lie, key_of("liar"), FLEET, topic)))
        answers += [(grant.answer, grant.code) for grant in grants(effects)]
    assert g.coordinator.inbox.reserved <= (1 << 20) // 4
    assert {answer for answer, _ in answers} == {"go"}  # its own oldest leave
    assert [grant.answer for grant in grants(g.handle(offer()))] == ["go"]
    g.now += SILENT_S
    g.handle(Tick())
    assert g.coordinator.inbox.reserved == 0


def test_silence_is_looked_at_once_a_tick() -> None:
    """Not after each event: with thousands of uploads under way that would cost more than the event."""
    g = gateway(MemoryFiles())
    assert grants(g.handle(offer()))[0].window == 4
    g.now += 30
    assert grants(g.handle(Gone(FAN))) == []
    assert [grant.window for grant in grants(g.handle(Tick()))] == [4]


def test_a_chunk_that_makes_room_for_more_is_answered_at_once() -> None:
    """Without waiting for a tick."""
    g, sent = gateway(MemoryFiles()), list[int]()
    effects = answer(g, grants(g.handle(offer()))[0], sent)
    assert sum(grant.window for grant in grants(effects)) > 0


def test_an_object_that_is_not_what_it_was_called_leaves_nothing() -> None:
    """Its chunks were sound, its SHA-256 was not: the device offers anew, from nothing."""
    files = MemoryFiles()
    g = gateway(files)
    g.handle(offer())
    for index in range(OBJECT.count):
        chunk = Outgoing(DATA[:-1] + b"!", CHUNK).chunk(index)
        lie = Chunk(sha256=OBJECT.sha256, index=index, count=OBJECT.count, crc32=chunk.crc32, data=chunk.data)
        effects = g.handle(Received(FAN, lie))
    carry_out(g, effects)
    assert not results(g.effects)
    assert files.names(FOLDER) == []
    sent: list[int] = []
    send_all(g, g.handle(offer()), sent)
    assert [r.verdict for r in results(g.effects)] == ["accepted"]
