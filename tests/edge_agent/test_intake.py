"""Plans, manifests, bundles and versions: nothing unverified is ever used, and a fetch always ends."""

import hashlib

import numpy as np
import pytest

from edge_agent import events as e
from edge_agent.task import FRESH_S
from fl_protocol.messages import Chunk, Desired, Get, Manifest
from fl_protocol.topics import Kind
from tests.edge_agent.rig import (
    BUNDLE,
    BUNDLE_BYTES,
    TASK,
    Rig,
    all_of,
    blob_of,
    chunks_of,
    complaints,
    sent,
    states,
    the,
    topic,
    updates,
    vector_of,
)


def gets(effects: list[e.Effect]) -> list[Get]:
    """What was asked for."""
    return [send.message for send in sent(Kind.GET, effects) if isinstance(send.message, Get)]


def with_task(**plan: object) -> tuple[Rig, list[e.Effect]]:
    """A connected device that has read a plan."""
    rig = Rig()
    rig.connect()
    rig.desire(TASK)
    return rig, rig.plan(**plan)


def test_a_bundle_is_fetched_verified_and_stored_once() -> None:
    """Looked for on the disk, then asked for in chunks; the next start finds it on the disk."""
    rig, effects = with_task()
    assert the(e.Load, effects).sha256 == BUNDLE.sha256
    (get,) = gets(effects)
    assert (get.sha256, get.size) == (BUNDLE.sha256, len(BUNDLE_BYTES))
    effects = rig.serve(BUNDLE_BYTES, get.chunk_size)
    assert the(e.SaveObject, effects).sha256 == BUNDLE.sha256
    assert rig.objects[BUNDLE.sha256] == BUNDLE_BYTES
    rig.restart()
    rig.connect()
    rig.desire(TASK)
    assert not gets(rig.plan())
    assert all_of(e.ReadExamples, rig.asked)


def test_a_damaged_bundle_on_the_disk_is_fetched_again() -> None:
    """Flash storage lies now and then; the hash tells."""
    rig = Rig()
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES[:-1] + b"x"
    rig.connect()
    rig.desire(TASK)
    effects = rig.plan()
    assert gets(effects)
    assert "damaged" in all_of(e.Note, effects)[0].text
    (get,) = gets(effects)
    rig.serve(BUNDLE_BYTES, get.chunk_size)
    assert rig.objects[BUNDLE.sha256] == BUNDLE_BYTES


def test_a_damaged_version_on_the_disk_is_fetched_again() -> None:
    """Also when it looks like one: the same length, every value finite."""
    rig = Rig()
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.objects[hashlib.sha256(blob_of(1)).hexdigest()] = blob_of(2)
    rig.connect()
    rig.desire(TASK)
    rig.plan()
    effects = rig.announce(1)
    assert not all_of(e.Train, effects)
    assert all_of(e.Train, rig.broadcast(1))


def test_bytes_that_are_another_object_are_dropped_and_asked_for_again_later() -> None:
    """E_SHA as an event; nothing is stored or used; a minute later it is tried again, then after two."""
    rig, effects = with_task()
    for failures in range(3):
        (get,) = gets(effects)
        wrong = bytearray(BUNDLE_BYTES)
        wrong[1000] ^= 1
        forged = [forge(chunk) for chunk in chunks_of(bytes(wrong), get.chunk_size)]
        effects = [effect for chunk in forged for effect in rig.hear(Kind.CHUNK_DOWN, chunk)]
        assert [c.code for c in complaints(effects)] == ["E_SHA"]
        assert not all_of(e.SaveObject, effects)
        assert not gets(effects + rig.wait(60 * 2**failures - 1))
        effects = rig.wait(2)
    (get,) = gets(effects)
    rig.serve(BUNDLE_BYTES, get.chunk_size)
    assert BUNDLE.sha256 in rig.objects


def forge(chunk: Chunk) -> Chunk:
    """The chunk under the real bundle's name."""
    return Chunk(sha256=BUNDLE.sha256, index=chunk.index, count=chunk.count, crc32=chunk.crc32, data=chunk.data)


def test_a_bundle_that_is_not_one_is_never_used() -> None:
    """Right hash, wrong content: E_SCHEMA, and the plan waits."""
    rubbish = b"not a bundle at all" * 100
    rig, effects = with_task(bundle_sha256=hashlib.sha256(rubbish).hexdigest(), bundle_size=len(rubbish))
    (get,) = gets(effects)
    effects = rig.serve(rubbish, get.chunk_size)
    assert [c.code for c in complaints(effects)] == ["E_SCHEMA"]
    assert not all_of(e.SaveObject, effects)
    assert not all_of(e.ReadExamples, rig.asked)
    assert all_of(e.Load, rig.plan(revision=2))[0].sha256 == BUNDLE.sha256  # a mended plan goes on at once


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"fingerprint": "0" * 32}, "E_FINGERPRINT"),
        ({"hyper": {"learning_rat": "0.1"}}, "E_SCHEMA"),
        ({"hyper": {"learning_rate": "much"}}, "E_SCHEMA"),
        ({"codec": {"name": "brotli"}}, "E_SCHEMA"),
        ({"clip_norm": "-1"}, "E_SCHEMA"),
    ],
)
def test_a_plan_that_its_bundle_cannot_follow_is_refused(change: dict[str, object], code: str) -> None:
    """With the code as an event, a state that says so, and no training."""
    rig = Rig()
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.connect()
    rig.desire(TASK)
    effects = rig.plan(**change)
    assert [c.code for c in complaints(effects)] == [code]
    assert not all_of(e.Train, rig.announce(0) + rig.broadcast(0) + rig.wait(10))
    assert states(rig.asked)[-1].why == "the plan does not fit its bundle"
    effects = rig.plan(revision=2) + rig.wait(3)
    (get,) = gets(effects)
    assert all_of(e.Train, rig.serve(blob_of(0)))
    assert get.sha256 == hashlib.sha256(blob_of(0)).hexdigest()


def test_a_bundle_above_the_limit_is_not_even_asked_for() -> None:
    """The size in a plan is believed only as far as the memory allows."""
    rig, effects = with_task(bundle_size=1 << 29)
    assert not gets(effects + rig.wait(100))
    assert [c.code for c in complaints(rig.asked)] == ["E_SIZE"]


def test_a_broadcast_version_needs_no_get() -> None:
    """Heard while waiting: no question asked, stored, and older ones deleted."""
    rig = Rig()
    rig.ready_to_train(0)
    assert not gets(rig.asked)
    rig = Rig(predict_s=1000)
    rig.ready_to_train(0)
    rig.wait(FRESH_S)
    rig.announce(1)
    effects = rig.broadcast(1)
    assert not gets(effects)
    assert set(rig.objects) == {BUNDLE.sha256, hashlib.sha256(blob_of(1)).hexdigest()}
    assert hashlib.sha256(blob_of(0)).hexdigest() not in the(e.KeepObjects, effects).sha256s


def test_what_the_broadcast_lost_is_repaired() -> None:
    """After a second or two the missing chunks are asked for, and only those."""
    rig = Rig(predict_s=1000)
    order = rig.ready_to_train(0)
    rig.train(order)
    rig.announce(1, chunk_size=8192)
    chunks = chunks_of(blob_of(1), 8192)
    for chunk in chunks[:-1]:
        rig.hear(Kind.BROADCAST, chunk, version="1")
    rig.wait(8)
    get = gets(rig.asked)[-1]
    assert get.missing == bytes([1 << (len(chunks) - 1)])
    assert all_of(e.SaveObject, rig.hear(Kind.CHUNK_DOWN, chunks[-1]))


def test_a_retained_manifest_is_not_waited_for() -> None:
    """Its broadcast was long ago: ask at once."""
    rig = Rig()
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.connect()
    rig.desire(TASK)
    rig.plan()
    from fl_protocol.messages import Manifest

    blob = blob_of(3)
    manifest = Manifest(
        task=TASK,
        plan_revision=1,
        version=3,
        fingerprint=BUNDLE.layout.fingerprint,
        sha256=hashlib.sha256(blob).hexdigest(),
        size=len(blob),
        chunk_size=16384,
        counter=1,
    )
    assert len(gets(rig.hear(Kind.MANIFEST, manifest, retained=True))) == 1


def test_a_version_that_is_not_finite_is_not_used() -> None:
    """Right hash, but NaN: E_NAN, not stored, not trained."""
    vector = vector_of(0)
    vector[5] = np.nan
    blob = vector.tobytes()
    rig = Rig()
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.connect()
    rig.desire(TASK)
    rig.plan()
    rig.announce(0, sha256=hashlib.sha256(blob).hexdigest(), size=len(blob))
    effects = rig.serve(blob)
    assert [c.code for c in complaints(effects)] == ["E_NAN"]
    assert not all_of(e.SaveObject, effects)
    assert not all_of(e.Train, effects)


def test_a_version_whose_bytes_are_corrupt_is_not_used() -> None:
    """CRCs right, SHA-256 wrong: E_SHA, nothing stored; the next version is taken."""
    rig = Rig(predict_s=1000)
    rig.train(rig.ready_to_train(0))
    rig.announce(1)
    wanted = hashlib.sha256(blob_of(1)).hexdigest()
    effects = []
    for chunk in chunks_of(blob_of(2)):
        forged = Chunk(sha256=wanted, index=chunk.index, count=chunk.count, crc32=chunk.crc32, data=chunk.data)
        effects += rig.hear(Kind.BROADCAST, forged, version="1")
    assert [c.code for c in complaints(effects)] == ["E_SHA"]
    assert not all_of(e.SaveObject, effects)
    rig.announce(3)
    assert all_of(e.SaveObject, rig.broadcast(3))


@pytest.mark.parametrize(
    ("change", "code"), [({"size": 1 << 29}, "E_SIZE"), ({"fingerprint": "0" * 32}, "E_FINGERPRINT")]
)
def test_a_manifest_of_another_model_is_refused(change: dict[str, object], code: str) -> None:
    """Before a byte of it is asked for."""
    rig = Rig()
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.connect()
    rig.desire(TASK)
    rig.plan()
    effects = rig.announce(0, **change)
    assert [c.code for c in complaints(effects)] == [code]
    assert not gets(effects + rig.wait(10))


def test_versions_never_go_back() -> None:
    """A lower version number is E_DOWNGRADE, whatever its counter."""
    rig = Rig()
    rig.ready_to_train(5)
    assert [c.code for c in complaints(rig.announce(4))] == ["E_DOWNGRADE"]


def test_a_slow_fetch_is_finished_though_newer_versions_are_announced() -> None:
    """A fetch that moves goes on, for else a slow link would begin for ever; one that stands still does not."""
    rig = Rig(predict_s=1000)
    rig.train(rig.ready_to_train(0))
    rig.announce(1, chunk_size=4096)
    for version, chunk in enumerate(chunks_of(blob_of(1), 4096), start=2):
        rig.now += 1
        effects = rig.hear(Kind.CHUNK_DOWN, chunk)
        rig.announce(version, chunk_size=4096)
    assert the(e.SaveObject, effects).sha256 == hashlib.sha256(blob_of(1)).hexdigest()
    newest = version
    rig.hear(Kind.CHUNK_DOWN, chunks_of(blob_of(newest), 4096)[0])
    rig.wait(11)
    effects = rig.announce(newest + 1, chunk_size=4096)
    assert the(e.Load, effects).sha256 == hashlib.sha256(blob_of(newest + 1)).hexdigest()


def test_a_new_bundle_replaces_the_old_one() -> None:
    """The plan names another bundle: training stops until it is here, and the old one is deleted then."""
    rig = Rig()
    rig.train(rig.ready_to_train(0))
    effects = rig.plan(revision=2, bundle_sha256="a" * 64, bundle_size=1000)
    assert the(e.Load, effects).sha256 == "a" * 64
    assert gets(effects)
    assert not all_of(e.Train, rig.announce(1) + rig.broadcast(1))


def test_a_lost_connection_resumes_where_it_was() -> None:
    """After a reconnect only what is missing is asked for, at once."""
    rig, effects = with_task()
    (get,) = gets(effects)
    chunks = chunks_of(BUNDLE_BYTES, get.chunk_size)
    rig.hear(Kind.CHUNK_DOWN, chunks[0])
    rig.disconnect()
    assert not gets(rig.wait(100))
    (again,) = gets(rig.connect())
    assert not again.missing[0] & 1
    effects = []
    for chunk in chunks[1:]:
        effects += rig.hear(Kind.CHUNK_DOWN, chunk)
    assert all_of(e.SaveObject, effects)


def test_damaged_chunks_are_refused_one_by_one() -> None:
    """A chunk with a wrong CRC changes nothing; the right one after it does."""
    rig, effects = with_task()
    (get,) = gets(effects)
    chunk, *rest = chunks_of(BUNDLE_BYTES, get.chunk_size)
    bad = Chunk(sha256=chunk.sha256, index=0, count=chunk.count, crc32=chunk.crc32 ^ 1, data=chunk.data)
    assert [c.code for c in complaints(rig.hear(Kind.CHUNK_DOWN, bad))] == ["E_SHA"]
    effects = []
    for good in (chunk, *rest):
        effects += rig.hear(Kind.CHUNK_DOWN, good)
    assert all_of(e.SaveObject, effects)


def test_broadcasts_are_heard_only_while_versions_are_wanted() -> None:
    """While training, without predictions, the device does not pay for what it cannot use."""
    rig = Rig()
    order = rig.ready_to_train(0)
    versions = topic(Kind.MANIFEST), topic(Kind.BROADCAST, version="+")
    assert the(e.Unsubscribe, rig.asked).filters == versions
    effects = rig.train(order)
    assert the(e.Subscribe, effects).filters == tuple((name, 0) for name in versions)


def try_canary(rig: Rig, *tasks: str) -> list[e.Effect]:
    """The gateway names the device's tasks, and those whose versions it tries."""
    desired = Desired(tasks=(TASK,), canary=tasks or None, counter=rig.count(Kind.DESIRED))
    return rig.hear(Kind.DESIRED, desired)


def canary(rig: Rig, version: int) -> list[e.Effect]:
    """The gateway announces a version to the canary."""
    blob = blob_of(version)
    manifest = Manifest(
        task=TASK,
        plan_revision=1,
        version=version,
        fingerprint=BUNDLE.layout.fingerprint,
        sha256=hashlib.sha256(blob).hexdigest(),
        size=len(blob),
        chunk_size=16384,
        counter=rig.count(Kind.MANIFEST, channel="canary"),
    )
    return rig.hear(Kind.MANIFEST, manifest, channel="canary")


def test_a_device_of_the_canary_takes_the_newer_of_both_channels() -> None:
    """It asks for what it is to try at once; what the fleet has meanwhile is no news; what comes after it is."""
    rig = Rig()
    rig.train(rig.ready_to_train(0))
    name = topic(Kind.MANIFEST, channel="canary")
    assert the(e.Subscribe, try_canary(rig, TASK)).filters == ((name, 0),)
    (get,) = gets(canary(rig, 1) + rig.wait(0.1))
    assert get.sha256 == hashlib.sha256(blob_of(1)).hexdigest()
    assert not complaints(rig.announce(0))
    rig.verdict(updates(rig.asked)[-1], "accepted")
    order = the(e.Train, rig.serve(blob_of(1)))
    assert not complaints(rig.announce(0))
    effects = rig.train(order)
    assert updates(effects)[-1].base_version == 1
    assert (name, 0) in [f for subscribe in all_of(e.Subscribe, effects) for f in subscribe.filters]
    rig.verdict(updates(effects)[-1], "stale")
    assert the(e.Unsubscribe, try_canary(rig)).filters == (name,)
    rig.announce(2)
    assert the(e.Train, rig.broadcast(2)).base is not None


def test_nobody_tries_what_it_was_not_asked_to() -> None:
    """A canary's manifest that reaches another device changes nothing; nor does one that is behind the fleet."""
    rig = Rig()
    rig.train(rig.ready_to_train(5))
    assert not gets(canary(rig, 6) + rig.wait(3))
    try_canary(rig, TASK)
    assert not complaints(canary(rig, 4))
    assert not gets(rig.wait(3))
