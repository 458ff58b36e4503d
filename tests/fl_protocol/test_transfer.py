"""Objects larger than a packet reach the other end whole, whatever the network does, and nothing else does."""

import hashlib
import random
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol import messages as m
from fl_protocol.codec import decode_as, encode
from fl_protocol.errors import Code, ConfigError, ProtocolError
from fl_protocol.topics import Kind, build
from fl_protocol.transfer import (
    MAX_WINDOW,
    SILENT_S,
    Fetch,
    Inbox,
    Incoming,
    Outgoing,
    Reception,
    Upload,
    chunk_count,
    chunk_size_for,
    decode_bitmap,
    encode_bitmap,
)

DATA = bytes(range(256)) * 4 + b"the end"  # 1031 bytes: the last chunk is a short one
SHA = hashlib.sha256(DATA).hexdigest()


def upload(data: bytes = DATA, chunk_size: int = 100, retry_s: float = 5.0) -> Upload:
    about = {"task": "fan", "incarnation": "0" * 16, "seq": 1, "base_version": 3, "fingerprint": "a" * 32}
    return Upload(data, chunk_size, **about, retry_s=retry_s)


def refusal(act: Callable[[], object]) -> Code:
    with pytest.raises(ProtocolError) as caught:
        act()
    return caught.value.code


# --- sizes and bitmaps -------------------------------------------------------------------------------------------


@given(size=st.integers(1, m.MAX_OBJECT_BYTES), chunk_size=st.integers(1, m.MAX_CHUNK_BYTES))
def test_chunks_cover_the_object_and_no_more(size: int, chunk_size: int) -> None:
    """Count chunks hold it, one fewer would not; more than `MAX_CHUNKS` are refused."""
    if size > chunk_size * m.MAX_CHUNKS:
        assert refusal(lambda: chunk_count(size, chunk_size)) is Code.SIZE
    else:
        count = chunk_count(size, chunk_size)
        assert (count - 1) * chunk_size < size <= count * chunk_size


@pytest.mark.parametrize(("size", "chunk_size"), [(0, 1), (-1, 1), (1, 0), (1, -5), (2**40, 2**20), (1, 2**30)])
def test_impossible_sizes_are_refused_before_anything_is_allocated(size: int, chunk_size: int) -> None:
    """Sizes come from the peer."""
    assert refusal(lambda: chunk_count(size, chunk_size)) is Code.SIZE
    assert refusal(lambda: Incoming(SHA, size, chunk_size)) is Code.SIZE


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_a_bitmap_reads_back_and_no_other_length_does(flags: list[bool]) -> None:
    """Bit i % 8 of byte i // 8 is chunk i; bytes and bits beyond the last chunk are refused."""
    bitmap = encode_bitmap(np.array(flags))
    assert [bool(bitmap[i // 8] >> i % 8 & 1) for i in range(len(flags))] == flags
    assert decode_bitmap(bitmap, len(flags)).tolist() == flags
    assert refusal(lambda: decode_bitmap(bitmap + b"\0", len(flags))) is Code.SIZE
    assert refusal(lambda: decode_bitmap(bitmap[:-1], len(flags))) is Code.SIZE
    if len(flags) % 8:
        beyond = bitmap[:-1] + bytes([bitmap[-1] | 1 << len(flags) % 8])
        assert refusal(lambda: decode_bitmap(beyond, len(flags))) is Code.SIZE


@pytest.mark.parametrize("version", ["3.1.1", "5"])
@pytest.mark.parametrize("max_packet", [1024, 20_000, 131_072, 2_000_000, 268_435_455])
def test_the_largest_chunk_fits_the_brokers_packet(version: str, max_packet: int) -> None:
    """16 KiB on MQTT 3.1.1, 48 KiB on 5, and never more than a packet with the longest topic and fields."""
    size = chunk_size_for(version, max_packet)
    assert size <= (16 << 10 if version == "3.1.1" else 48 << 10)
    chunk = m.Chunk(
        sha256="f" * 64,
        index=m.MAX_CHUNKS - 1,
        count=m.MAX_CHUNKS,
        crc32=2**32 - 1,
        data=bytes(size),
        ts=2**53 - 1,
    )
    topic = build(Kind.CHUNK_UP, "f" * 64, device="d" * 64)
    assert 5 + 2 + len(topic) + 2 + 64 + len(encode(chunk)) <= max_packet  # 64: more properties than we set
    assert size == (16 << 10 if version == "3.1.1" else 48 << 10) or size > max_packet // 2 - 1


def test_a_broker_that_carries_nothing_is_the_operators_matter() -> None:
    """The message says what to allow."""
    with pytest.raises(ConfigError, match="hint: allow 1024 or more"):
        chunk_size_for("5", 600)


# --- an object as chunks -----------------------------------------------------------------------------------------


@given(data=st.binary(min_size=1, max_size=2000), chunk_size=st.integers(1, 300), seed=st.integers(0, 99))
def test_chunks_in_any_order_and_number_make_the_object(data: bytes, chunk_size: int, seed: int) -> None:
    """Shuffled and doubled, each through the codec."""
    out = Outgoing(data, chunk_size)
    incoming = Incoming(out.sha256, out.size, chunk_size)
    order = [*range(out.count), *random.Random(seed).choices(range(out.count), k=out.count)]
    random.Random(seed).shuffle(order)
    seen = set()
    for index in order:
        complete = incoming.add(decode_as(m.Chunk, encode(out.chunk(index))))
        seen.add(index)
        assert complete == incoming.complete == (len(seen) == out.count)
        assert np.flatnonzero(decode_bitmap(incoming.missing, out.count)).tolist() == sorted({*range(out.count)} - seen)
    assert incoming.data() == data
    assert incoming.progress == 1


def test_outgoing_sends_the_first_missing_of_the_window() -> None:
    """And never more than the window's limit, whatever the peer asks for."""
    out = Outgoing(DATA, 4)
    missing = np.zeros(out.count, np.bool_)
    missing[[3, 7, 8, 200]] = True
    assert [c.index for c in out.chunks(encode_bitmap(missing), 3)] == [3, 7, 8]
    assert [c.index for c in out.chunks(encode_bitmap(missing), 9)] == [3, 7, 8, 200]
    assert len(list(out.chunks(encode_bitmap(np.ones(out.count, np.bool_)), 1_000_000))) == MAX_WINDOW
    assert refusal(lambda: out.chunks(b"\xff", 3)) is Code.SIZE
    assert refusal(lambda: out.chunk(out.count)) is Code.SIZE
    assert refusal(lambda: out.chunk(-1)) is Code.SIZE


def lie(**fields: object) -> m.Chunk:
    chunk = replace(Outgoing(DATA, 100).chunk(2), **fields)
    return replace(chunk, crc32=zlib.crc32(chunk.data)) if "data" in fields else chunk


@pytest.mark.parametrize(
    ("chunk", "code"),
    [
        (lie(sha256="0" * 64), Code.SHA),
        (lie(crc32=1), Code.SHA),
        (lie(count=12), Code.SIZE),
        (lie(count=10), Code.SIZE),
        (lie(index=11), Code.SIZE),
        (lie(index=10), Code.SIZE),  # the last one is shorter
        (lie(data=bytes(99)), Code.SIZE),
        (lie(data=bytes(101)), Code.SIZE),
        (lie(data=b""), Code.SIZE),
    ],
)
def test_a_chunk_that_lies_changes_nothing(chunk: m.Chunk, code: Code) -> None:
    """Wrong object, checksum, count, index or length."""
    incoming = Incoming(SHA, len(DATA), 100)
    before = incoming.missing
    assert refusal(lambda: incoming.add(chunk)) is code
    assert incoming.missing == before


def test_an_object_with_another_hash_starts_again() -> None:
    """Every checksum was right, and yet it is not what it was called."""
    incoming = Incoming(SHA, len(DATA), 100)
    for chunk in Outgoing(DATA[:-1] + b"!", 100).chunks(incoming.missing, 64):
        incoming.add(replace(chunk, sha256=SHA))
    assert incoming.complete
    assert refusal(incoming.data) is Code.SHA
    assert incoming.progress == 0
    with pytest.raises(ValueError, match="11 of 11 chunks are missing"):
        incoming.data()
    for chunk in Outgoing(DATA, 100).chunks(incoming.missing, 64):
        incoming.add(chunk)
    assert incoming.data() == DATA


def test_each_end_holds_the_object_once() -> None:
    """8 MB through both ends, by tracemalloc: 1.3 copies at the receiver, none besides the object at the sender."""
    data = random.Random(1).randbytes(8_000_000)
    sha256 = hashlib.sha256(data).hexdigest()
    tracemalloc.start()
    try:
        out = Outgoing(data, 16 << 10)
        fetch = Fetch(sha256, len(data), 16 << 10)
        while (get := fetch.next_get(0.0)) is not None:
            for chunk in out.chunks(get.missing, get.window):
                fetch.add(chunk, 0.0)
        received = fetch.data()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert received == data
    assert peak < 1.3 * len(data)


# --- pacing ------------------------------------------------------------------------------------------------------


def test_a_fetch_asks_for_more_when_half_of_the_window_has_come() -> None:
    """So the link never runs dry, and nothing is asked for twice while it is under way."""
    out = Outgoing(DATA, 10)  # 104 chunks
    fetch = Fetch(out.sha256, out.size, 10, window=8, retry_s=5)
    get = fetch.next_get(0)
    assert get is not None
    assert get.window == 8
    assert fetch.next_get(4.9) is None
    for chunk in list(out.chunks(get.missing, get.window))[:4]:
        assert fetch.next_get(1) is None
        fetch.add(chunk, 1)
    more = fetch.next_get(1)
    assert more is not None
    assert [c.index for c in out.chunks(more.missing, more.window)] == [8, 9, 10, 11]


def test_silence_is_answered_by_asking_again_with_growing_patience() -> None:
    """5 s, 10 s, 20 s, ... up to 16 times; a new connection begins anew."""
    fetch = Fetch(SHA, len(DATA), 100, window=4, retry_s=5)
    first = fetch.next_get(0)
    times = [now for now in range(1, 400) if fetch.next_get(now)]
    assert times == [5, 15, 35, 75, 155, 235, 315, 395]
    fetch.resume()
    assert fetch.next_get(400) == first
    assert fetch.next_get(404) is None
    assert fetch.next_get(405) == first


def test_a_chunk_lost_in_passing_is_asked_for_without_a_silence() -> None:
    """Answers come in the order of requests: what an earlier request still lacks was lost."""
    out = Outgoing(DATA, 10)
    fetch = Fetch(out.sha256, out.size, 10, window=4, retry_s=1000)
    under_way, lost = [], {1, 6, 50, 99}
    for _ in range(1000):
        get = fetch.next_get(0)
        if get is not None:
            under_way += out.chunks(get.missing, get.window)
        if not under_way:
            break
        chunk = under_way.pop(0)
        if chunk.index in lost:
            lost.remove(chunk.index)
        else:
            fetch.add(chunk, 0)
    assert fetch.data() == DATA


def test_a_fetch_of_another_object_than_it_was_called_starts_again_at_once() -> None:
    """It does not wait for silence first: nothing is under way."""
    out = Outgoing(DATA[:-1] + b"!", 100)
    fetch = Fetch(SHA, len(DATA), 100, retry_s=1000)
    first = fetch.next_get(0)
    for chunk in out.chunks(encode_bitmap(np.ones(out.count, np.bool_)), 64):
        fetch.add(replace(chunk, sha256=SHA), 1)
    assert fetch.done
    assert fetch.next_get(2) is None
    assert refusal(fetch.data) is Code.SHA
    assert not fetch.done
    assert fetch.next_get(2) == first


def test_blocks_overheard_in_a_broadcast_are_not_asked_for() -> None:
    """A fetch takes chunks that it did not ask for."""
    out = Outgoing(DATA, 100)
    fetch = Fetch(out.sha256, out.size, 100)
    for index in (0, 1, 2, 5):
        fetch.add(out.chunk(index), 0)
    get = fetch.next_get(0)
    assert get is not None
    assert np.flatnonzero(decode_bitmap(get.missing, out.count)).tolist() == [3, 4, 6, 7, 8, 9, 10]
    assert fetch.progress == pytest.approx(4 / 11)


@pytest.mark.parametrize("window", [0, -1, MAX_WINDOW + 1])
def test_a_window_that_no_sender_would_fill_is_a_mistake(window: int) -> None:
    """The sender stops at `MAX_WINDOW`; asking for more would wait for silence each time."""
    with pytest.raises(ValueError, match="a window has 1 to"):
        Fetch(SHA, len(DATA), 100, window=window)


def test_an_offer_is_repeated_until_it_is_answered_and_again_after_silence() -> None:
    """Nothing but a verdict ends an upload: lost answers are given once more."""
    up = upload(retry_s=5)
    assert up.offer(0) == up.offer(5)
    assert up.offer(14) is None
    assert up.offer(15) is not None
    assert up.granted(m.Grant(sha256=SHA, answer="wait", retry_in_s=30), 16) == []
    assert up.answer == "wait"
    assert up.offer(50.9) is None
    assert up.offer(51) is not None
    for answer in ("done", "stale", "full", "reject"):
        assert up.granted(m.Grant(sha256=SHA, answer=answer), 60) == []
        assert up.offer(64.9) is None
        assert up.offer(65) is not None


def test_a_grant_for_another_object_changes_nothing() -> None:
    """Wrong name, wrong bitmap."""
    up = upload()
    up.offer(0)
    assert refusal(lambda: up.granted(m.Grant(sha256="0" * 64, answer="done"), 1)) is Code.SHA
    assert refusal(lambda: up.granted(m.Grant(sha256=SHA, answer="go", window=1, missing=b"\xff"), 1)) is Code.SIZE
    assert up.answer == ""
    assert up.offer(5) is not None


def test_a_repeated_offer_does_not_send_what_is_under_way_again() -> None:
    """A slow link would drown in its own repeats; the gateway only says that it listens."""
    inbox = Inbox(10_000, 60, window=4, retry_s=5)
    up = upload()
    up.offer(0)
    first = inbox.open(SHA, len(DATA), 100, "ann", 0).offered(0)
    chunks = up.granted(first, 0)
    assert [c.index for c in chunks] == [0, 1, 2, 3]
    again = inbox.open(SHA, len(DATA), 100, "ann", 4).offered(4)
    assert (again.answer, again.window) == ("go", 0)
    assert up.granted(again, 4) == []
    assert up.offer(8.9) is None  # and the gateway's word counted as one


def test_two_uploads_of_one_object_do_not_meet() -> None:
    """Chunks belong to their owner: nobody completes, or spoils, what another device sends."""
    inbox = Inbox(10_000, 60)
    ann, bob = (inbox.open(SHA, len(DATA), 100, owner, 0) for owner in ("ann", "bob"))
    for chunk in Outgoing(DATA, 100).chunks(encode_bitmap(np.ones(11, np.bool_)), 64):
        ann.add(chunk, 0)
    assert ann.done
    assert ann.offered(0).answer == "done"
    assert bob.progress == 0
    assert inbox.get("ann", SHA) is ann
    inbox.close("ann", SHA)
    assert inbox.get("ann", SHA) is None
    assert inbox.get("bob", SHA) is bob


# --- the inbox's budget ------------------------------------------------------------------------------------------


def name(i: int) -> str:
    return f"{i:064x}"


def test_the_inbox_keeps_to_its_budget_and_says_which_way_it_is_full() -> None:
    """E_SIZE will never fit, E_QUOTA may later; what nobody touches makes room."""
    inbox = Inbox(1000, ttl_s=60)
    assert refusal(lambda: inbox.open(name(0), 1001, 100, "ann", 0)) is Code.SIZE
    inbox.open(name(1), 600, 100, "ann", 0)
    assert refusal(lambda: inbox.open(name(2), 401, 100, "bob", 1)) is Code.QUOTA
    inbox.open(name(2), 400, 100, "bob", 1)
    assert inbox.reserved == 1000
    inbox.open(name(1), 600, 100, "ann", 30)  # her offer came again
    assert inbox.expire(61) == [("bob", name(2))]
    assert inbox.reserved == 600
    inbox.open(name(3), 1000, 100, "cat", 90)
    assert inbox.get("ann", name(1)) is None


def test_an_owners_newest_objects_count_and_a_refused_one_costs_it_nothing() -> None:
    """A device that starts over does not wait for its own leftovers, nor does it take others' room."""
    inbox = Inbox(1000, ttl_s=60, per_owner=2, owner_bytes=1000)
    inbox.open(name(9), 500, 100, "bob", 0)
    for i in (1, 2, 3):
        inbox.open(name(i), 200, 100, "ann", 0)
    assert [inbox.get("ann", name(i)) is not None for i in (1, 2, 3)] == [False, True, True]
    assert refusal(lambda: inbox.open(name(4), 600, 100, "ann", 0)) is Code.QUOTA
    assert [inbox.get("ann", name(i)) is not None for i in (2, 3, 4)] == [True, True, False]


def test_an_owner_has_a_quarter_of_the_budget_or_one_object() -> None:
    """More is E_QUOTA, which costs the others nothing, and everybody else still has room."""
    inbox = Inbox(1000, ttl_s=3600)
    inbox.open(name(1), 150, 100, "ann", 0)
    assert refusal(lambda: inbox.open(name(2), 101, 100, "ann", 0)) is Code.QUOTA
    assert inbox.get("ann", name(1)) is not None
    inbox.open(name(2), 100, 100, "ann", 0)
    inbox.open(name(3), 700, 100, "bob", 0)  # alone, it may be larger than a quarter
    assert refusal(lambda: inbox.open(name(4), 1, 100, "bob", 0)) is Code.QUOTA
    assert inbox.reserved == 950


def test_what_an_owner_left_behind_makes_room_for_its_next() -> None:
    """Once it is silent: until then two large uploads take turns, and neither throws the other's chunks away."""
    inbox = Inbox(10_000, ttl_s=3600, owner_bytes=1500)
    out = Outgoing(DATA, 100)
    inbox.open(SHA, len(DATA), 100, "ann", 0).add(out.chunk(0), 100)
    assert refusal(lambda: inbox.open(name(1), 600, 100, "ann", 99 + SILENT_S)) is Code.QUOTA
    inbox.open(SHA, len(DATA), 100, "ann", 99 + SILENT_S)  # an offer is no chunk
    inbox.open(name(1), 600, 100, "ann", 100 + SILENT_S)
    assert inbox.get("ann", SHA) is None


def test_an_offer_without_a_chunk_is_forgotten_however_often_it_comes() -> None:
    """With one chunk it stays for the whole of `ttl_s`."""
    inbox = Inbox(10_000, ttl_s=3600)
    inbox.open(SHA, len(DATA), 100, "ann", 0).add(Outgoing(DATA, 100).chunk(0), 1)
    for now in range(0, int(SILENT_S), 15):
        inbox.open(SHA, len(DATA), 100, "bob", now).offered(now)
        assert inbox.expire(now) == []
    assert inbox.expire(SILENT_S) == [("bob", SHA)]
    assert inbox.expire(3600) == []
    assert inbox.expire(3601) == [("ann", SHA)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(1, 700), st.integers(0, 400))))
def test_no_owner_ever_holds_more_than_its_share_or_one_object(offers: list[tuple[str, int, int, int]]) -> None:
    """Whatever is offered, whenever: a quarter of the budget, or a single object; and the budget over all."""
    inbox, now, held = Inbox(1000, ttl_s=3600, per_owner=3), 0.0, dict[tuple[str, str], int]()
    for owner, number, size, later in offers:
        now += later
        with suppress(ProtocolError):
            inbox.open(name(number), size, 100, owner, now)
            held[owner, name(number)] = size
        held = {key: size for key, size in held.items() if inbox.get(*key)}
        for each in "abc":
            own = [size for key, size in held.items() if key[0] == each]
            assert len(own) <= 3
            assert len(own) <= 1 or sum(own) <= 250
        assert sum(held.values()) == inbox.reserved <= 1000


def test_other_sizes_for_a_known_object_begin_again() -> None:
    """A new connection may have another chunk size."""
    inbox = Inbox(2000, ttl_s=60)
    first = inbox.open(SHA, len(DATA), 100, "ann", 0)
    first.add(Outgoing(DATA, 100).chunk(0), 0)
    assert inbox.open(SHA, len(DATA), 100, "ann", 0) is first
    second = inbox.open(SHA, len(DATA), 50, "ann", 0)
    assert (second.progress, second.chunk_size) == (0, 50)
    assert inbox.reserved == len(DATA)


# --- both ends over a hostile network ----------------------------------------------------------------------------


class Network:
    """Carries messages between two ends; while it is bad it drops, doubles, damages, delays and reorders them."""

    def __init__(self, seed: int, loss: float) -> None:
        self._random = random.Random(seed)
        self.loss = loss
        self._under_way: list[tuple[float, int, m.Message]] = []
        self.carried = 0

    def send(self, message: m.Message, now: float) -> None:
        self.carried += 1
        copies = 0 if self._random.random() < self.loss else 1 + (self._random.random() < self.loss / 4)
        for _ in range(copies):
            delay = self._random.expovariate(2) if self.loss else 0.1
            self._under_way.append((now + delay, self.carried, message))

    def arrived(self, now: float) -> list[m.Message]:
        here = sorted((item for item in self._under_way if item[0] <= now), key=lambda item: item[:2])
        self._under_way = [item for item in self._under_way if item[0] > now]
        return [self._through_the_codec(message) for _, _, message in here]

    def _through_the_codec(self, message: m.Message) -> m.Message:
        message = decode_as(type(message), encode(message))
        if isinstance(message, m.Chunk) and self._random.random() < self.loss / 4:
            return replace(message, data=message.data[::-1] + b"?" * self._random.choice([0, 1]))
        return message


def run(
    network: Network, step: Callable[[float], bytes | None], *, bad_until: float, restart: Callable[[], None]
) -> bytes:
    """Until the object is there: 0.5 s steps, restarts while the network is bad, then none of its faults."""
    now = 0.0
    good_from: int | None = None
    while now < 2000:
        if now >= bad_until and good_from is None:
            network.loss, good_from = 0.0, network.carried
        if good_from is None and now % 10 == 7:
            restart()
        data = step(now)
        if data is not None:
            if good_from is not None:
                # 2 messages a chunk at most, and what was still being repeated.
                assert network.carried - good_from <= 2 * 60 + 40
            return data
        now += 0.5
    raise AssertionError("never arrived")


hostile = {
    "seed": st.integers(0, 2**32),
    "loss": st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]),
    "window": st.integers(1, 20),
    "bad_until": st.sampled_from([3, 10, 30, 100]),
}


@settings(max_examples=60, deadline=None)
@given(**hostile)
def test_an_upload_arrives_over_any_network(seed: int, loss: float, window: int, bad_until: float) -> None:
    """Drops, duplicates, reordering, damage, and a gateway that forgets its inbox; then it ends in bounded messages."""
    data = random.Random(seed).randbytes(1 + seed % 1200)
    network, up = Network(seed, loss), upload(data, chunk_size=20)
    inbox = Inbox(5000, 30, window=window, retry_s=3)

    def restart() -> None:
        nonlocal inbox
        inbox = Inbox(5000, 30, window=window, retry_s=3)
        up.resume()

    def gateway(message: m.Message, now: float) -> bytes | None:
        reception: Reception | None
        if isinstance(message, m.Offer):
            reception = inbox.open(message.sha256, message.size, message.chunk_size, "ann", now)
            network.send(reception.offered(now), now)
        elif isinstance(message, m.Chunk) and (reception := inbox.get("ann", message.sha256)):
            try:
                if reception.add(message, now):
                    return reception.data()
            except ProtocolError:
                return None  # damaged: as good as lost
            if grant := reception.next_grant(now):
                network.send(grant, now)
        return None

    def step(now: float) -> bytes | None:
        if offer := up.offer(now):
            network.send(offer, now)
        for _, grant in inbox.next_grants(now):
            network.send(grant, now)
        for message in network.arrived(now):
            if isinstance(message, m.Grant):
                for chunk in up.granted(message, now):
                    network.send(chunk, now)
            elif (whole := gateway(message, now)) is not None:
                return whole
        return None

    assert run(network, step, bad_until=bad_until, restart=restart) == data


@settings(max_examples=60, deadline=None)
@given(**hostile)
def test_a_download_arrives_over_any_network(seed: int, loss: float, window: int, bad_until: float) -> None:
    """As upwards; the device keeps what it has when the connection is a new one."""
    data = random.Random(seed).randbytes(1 + seed % 1200)
    network, out = Network(seed, loss), Outgoing(data, 20)
    fetch = Fetch(out.sha256, out.size, 20, window=window, retry_s=3)

    def step(now: float) -> bytes | None:
        if get := fetch.next_get(now):
            network.send(get, now)
        for message in network.arrived(now):
            if isinstance(message, m.Get):
                for chunk in out.chunks(message.missing, message.window):
                    network.send(chunk, now)
            elif isinstance(message, m.Chunk):
                try:
                    if fetch.add(message, now):
                        return fetch.data()
                except ProtocolError:
                    continue  # damaged: as good as lost
        return None

    assert run(network, step, bad_until=bad_until, restart=fetch.resume) == data


@pytest.mark.parametrize("seconds_a_chunk", [0.1, 1.0, 7.0, 19.0])
def test_a_slow_link_is_not_buried_in_repeats(seconds_a_chunk: float) -> None:
    """However slow it is against `retry_s`, repeats cost a few windows, not a share of the object."""
    out = Outgoing(random.Random(2).randbytes(4000), 10)  # 400 chunks
    fetch = Fetch(out.sha256, out.size, 10, window=16, retry_s=3)
    queue: list[m.Chunk] = []
    sent, now, free_at = 0, 0.0, seconds_a_chunk
    while not fetch.done:
        if get := fetch.next_get(now):
            chunks = list(out.chunks(get.missing, get.window))
            queue, sent = queue + chunks, sent + len(chunks)
        if queue and now >= free_at:
            fetch.add(queue.pop(0), now)
            free_at = now + seconds_a_chunk
        now += 0.1
    assert sent <= out.count + 5 * 16
