"""The gateway's heart as function calls: exactly one verdict an update, exactly one disposal an accepted one."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_aggregator.admission import HEADER_BYTES, VALUE_BYTES
from broker_aggregator.events import (
    CommitRelease,
    Evaluate,
    Evaluated,
    Online,
    Quarantine,
    Received,
    RecordUpdate,
    RecordVerdict,
    SaveState,
    Send,
    SendObject,
    Tick,
)
from broker_aggregator.fleet import KEPT_VERDICTS
from fl_protocol.compression import encode_statistics, make_compressor
from fl_protocol.messages import DeviceState, Grant, Manifest, Offer, Plan, Result, Sync, TaskStatus
from fl_protocol.signing import seal_update, sign_offer
from fl_protocol.tensors import ModelLayout, TensorEntry
from fl_protocol.topics import Kind, build
from fl_protocol.transfer import Outgoing
from tests.support.fleet import FLEET, LAYOUT, Gateway, key_of, make_update, of_kind, results, tiny_bundle

D = [0.1, 0.2, 0.3]
FANS = [f"fan-{i}" for i in range(6)]


def gateway(**plan: object) -> Gateway:
    return Gateway().add(*FANS).start(**{"buffer": 3, "deadline_s": 60, "example_exponent": "0", **plan})


# --- one update ---


def test_an_accepted_update_is_recorded_before_it_is_answered():
    """Durable before visible: the effects stand in that order, and both are there."""
    effects = gateway().send(make_update("fan-0", 1, 0, D))
    record = next(i for i, e in enumerate(effects) if isinstance(e, RecordUpdate))
    answer = next(i for i, e in enumerate(effects) if isinstance(e, Send) and isinstance(e.message, Result))
    assert record < answer
    assert results(effects)[0].verdict == "accepted"


def test_a_repeat_hears_the_stored_verdict_and_counts_nothing():
    """Same verdict, `repeat` set, nothing recorded; also when the task has moved on since."""
    g = gateway(buffer=1, max_staleness=0)
    update = make_update("fan-0", 1, 0, D)
    first = g.verdict(update)
    assert g.task.release.version == 1
    effects = g.send(update)
    assert results(effects) == [replace(first, repeat=True)]
    assert not of_kind(effects, RecordUpdate, RecordVerdict, CommitRelease)


def test_a_verdict_and_the_status_say_what_it_cost_and_what_float32_would_have():
    """Of what arrived; a repeat says the same; refused ones cost too. An offer that is refused has brought nothing."""
    g = gateway(max_staleness=1)
    update = make_update("fan-0", 1, 0, D)
    size, plain = len(seal_update(update, key_of("fan-0"), FLEET, "t")), 4 * LAYOUT.size
    first = g.verdict(update)
    assert first.bytes_up is not None
    assert abs(first.bytes_up - size) < 100
    assert first.bytes_up_float32 == plain
    assert g.verdict(update) == replace(first, repeat=True)
    refused = g.verdict(make_update("fan-1", 1, 0, D, fingerprint="f" * 32))
    assert refused.bytes_up
    status = g.task.status(6, 6)
    assert status.bytes_up == first.bytes_up + refused.bytes_up
    assert status.ratio_up == round(plain / status.bytes_up, 2)
    assert gateway().task.status(6, 6).ratio_up is None


@pytest.mark.parametrize(
    ("change", "verdict", "code"),
    [
        ({"fingerprint": "f" * 32}, "rejected", "E_FINGERPRINT"),
        ({"base_version": 7}, "rejected", "E_VERSION"),
        ({"sha256": "0" * 64}, "rejected", "E_SHA"),
        ({"payload": np.array([1, np.nan, 2], "<f4").tobytes()}, "rejected", "E_NAN"),
        ({"payload": np.array([1, np.inf, 2], "<f4").tobytes()}, "rejected", "E_NAN"),
        ({"payload": b"\0" * 400}, "rejected", "E_SIZE"),
        ({"payload": b""}, "rejected", "E_SIZE"),
        ({"codec": {"name": "magic"}, "payload": b"\0" * 12}, "rejected", "E_SCHEMA"),
        ({"statistics": b"\0"}, "rejected", "E_SIZE"),
        ({"statistics": np.array([1, np.nan], "<f2").tobytes()}, "rejected", "E_NAN"),
        ({"task": "other"}, "rejected", "E_TASK"),
        ({"device": "fan-1"}, "rejected", "E_AUTH"),
    ],
)
def test_bad_updates_are_refused_with_a_code_and_leave_no_trace(change, verdict, code):
    """The verdict is stored, so that a repeat hears the same; model and buffer stay as they are."""
    g = gateway()
    update = make_update(**{"device": "fan-0", "seq": 1, "base_version": 0, "delta": D, **change})
    effects = g.send(update, device="fan-0")
    (result,) = results(effects)
    assert (result.verdict, result.code) == (verdict, code)
    assert result.why
    assert not of_kind(effects, RecordUpdate)
    assert len(of_kind(effects, RecordVerdict)) == 1
    assert not g.task.buffer
    assert results(g.send(update, device="fan-0")) == [replace(result, repeat=True)]


def test_an_update_too_old_is_stale():
    """max_staleness versions are of use, one more is not; there is no trace in the model."""
    g = gateway(buffer=1, max_staleness=1)
    for seq in (1, 2):
        g.send(make_update("fan-0", seq, seq - 1, D))
    assert g.task.release.version == 2
    assert g.verdict(make_update("fan-1", 1, 1, D)).verdict == "accepted"
    late = g.verdict(make_update("fan-2", 1, 0, D))
    assert (late.verdict, late.code) == ("stale", "E_STALE")


def test_a_delta_of_absurd_norm_counts_as_much_as_five_ordinary_ones():
    """Clipped, not refused: it may be a late joiner's. The first ten make out what is ordinary."""
    g = gateway(buffer=100)
    ordinary = [f"other-{i}" for i in range(10)]
    g.add(*ordinary)
    for fan in ordinary:
        g.send(make_update(fan, 1, 0, D))
    g.send(make_update("fan-1", 1, 0, [4 * d for d in D]))
    g.send(make_update("fan-2", 1, 0, [1e30 * d for d in D]))
    assert [b.scale for b in g.task.buffer[:11]] == [1.0] * 11
    clipped = g.task.buffer[11]
    assert clipped.norm * clipped.scale == pytest.approx(5 * np.linalg.norm(D), rel=1e-5)
    g.now = 60
    g.handle(Tick())
    expected = np.array([1, 2, 3]) + np.array(D) * (10 + 4 + 5) / 12 * 12 / 100
    np.testing.assert_allclose(g.task.release.vector[:3], expected, rtol=1e-5)


def test_the_first_deltas_are_held_against_the_model_itself():
    """Before ten norms are known: two updates of 3e38 must not make the model infinite."""
    g = gateway(buffer=1)
    own = np.linalg.norm(g.task.release.vector[:3])
    for fan in ("fan-0", "fan-1"):
        assert g.verdict(make_update(fan, 1, 0, [3e38, 3e38, 3e38])).verdict == "accepted"
    assert np.isfinite(g.task.release.vector).all()
    assert np.linalg.norm(g.task.release.vector[:3]) < 40 * own
    assert g.verdict(make_update("fan-2", 1, 2, D)).verdict == "accepted"


def test_a_step_that_would_not_be_finite_is_quarantined():
    """With whatever optimizer: the version before stays, and training goes on from it."""
    g = gateway(buffer=1, server_learning_rate="100", norm_limit="1e12")
    g.task.release = replace(g.task.release, vector=np.full(5, 3e38, np.float32))
    effects = g.send(make_update("fan-0", 1, 0, [3e38, 3e38, 3e38]))
    assert len(of_kind(effects, Quarantine)) == 1
    assert not of_kind(effects, CommitRelease)
    assert not g.task.buffer


def test_synchronous_mode_renews_more_than_once():
    """Its deadlines pass again and again without a quorum; they must not put off the next renewal for ever."""
    g = gateway(mode="synchronous", deadline_s=10)
    for seq, until in ((1, 60), (2, 120), (3, 240)):
        version = g.task.release.version
        g.send(make_update("fan-0", seq, version, D, payload=b""))
        while g.now < until:
            g.now += 1
            g.handle(Tick())
        assert g.task.release.version == version + 1


def test_renewals_grow_rare_and_are_no_versions_made():
    """One device that is always refused must not turn versions over for all others."""
    g = gateway(deadline_s=10, stop={"versions": 1})
    for seq in range(200):
        g.now += 10
        g.send(make_update("fan-0", seq, g.task.release.version, D, payload=b""))
    assert 3 <= g.task.release.version <= 9
    assert (g.task.made, g.task.plan.state) == (0, "running")


def test_a_version_that_only_brought_refusals_is_published_again():
    """A device trains each version once: without this, a fleet whose updates were all refused would stand for ever."""
    g = gateway(deadline_s=10)
    assert g.verdict(make_update("fan-0", 1, 0, D, payload=b"")).verdict == "rejected"
    before = g.task.release
    g.now = 10
    (commit,) = of_kind(g.handle(Tick()), CommitRelease)
    assert (commit.release.version, commit.release.sha256, commit.release.used) == (1, before.sha256, ())
    g.now = 100
    assert not of_kind(g.handle(Tick()), CommitRelease)


def test_nobody_vouches_for_a_wrong_signature():
    """Answered, not finally: a forger must not make the device drop its own update."""
    g = gateway()
    update = make_update("fan-0", 1, 0, D)
    forged = g.verdict(update, key=key_of("fan-1"))
    assert (forged.verdict, forged.code, forged.final) == ("deferred", "E_SIG", False)
    assert g.verdict(update).verdict == "accepted"


@pytest.mark.parametrize("revoke", [False, True])
def test_strangers_and_revoked_devices_are_told_so(revoke):
    """E_AUTH; a device that is let in later sends the same bytes again, and they count."""
    g = gateway()
    if revoke:
        g.ask("device-revoke", device="fan-0")
    name = "fan-0" if revoke else "stranger"
    update = make_update(name, 1, 0, D)
    told = g.verdict(update)
    assert (told.verdict, told.code) == ("deferred", "E_AUTH")
    g.ask("device-allow", device=name, public_key=key_of(name).public)
    assert g.verdict(update).verdict == "accepted"


def test_seq_below_the_low_water_mark_is_old():
    """The gateway remembers the newest verdicts of a device, and says E_OLD below them: never counted twice."""
    g = gateway(buffer=1)
    updates = [make_update("fan-0", seq, seq - 1, D) for seq in range(1, KEPT_VERDICTS + 3)]
    for update in updates:
        assert g.verdict(update).verdict == "accepted"
    assert g.verdict(updates[0]).code == "E_OLD"
    assert g.verdict(updates[-1]).repeat
    anew = make_update("fan-0", 1, g.task.release.version, D, incarnation="1" * 16)
    assert g.verdict(anew).verdict == "accepted"


def test_a_full_disk_defers():
    """Not final: the update stays on the device until there is room."""
    g = gateway()
    g.handle(Tick(free_bytes=1))
    update = make_update("fan-0", 1, 0, D)
    told = g.verdict(update)
    assert (told.verdict, told.code) == ("deferred", "E_DISK")
    assert told.retry_in_s > 0
    g.handle(Tick())
    assert g.verdict(update).verdict == "accepted"


# --- buffers and releases ---


def test_k_devices_make_a_release_and_it_is_announced():
    """Commit, then a manifest that names it, then its blocks once for all."""
    g = gateway()
    for fan in FANS[:2]:
        g.send(make_update(fan, 1, 0, D))
    assert g.task.release.version == 0
    effects = g.send(make_update("fan-2", 1, 0, D))
    (commit,) = of_kind(effects, CommitRelease)
    assert [name[0] for name in commit.release.used] == FANS[:3]
    np.testing.assert_allclose(commit.release.vector[:3], [1.1, 2.2, 3.3], rtol=1e-6)
    order = [e for e in effects if isinstance(e, CommitRelease | SendObject) or _is(e, Manifest)]
    assert [type(e).__name__ for e in order] == ["CommitRelease", "Send", "SendObject"]
    assert order[1].message.sha256 == commit.release.sha256 == order[2].sha256
    assert order[1].message.version == 1
    assert order[1].retain


def _is(effect: object, kind: type) -> bool:
    return isinstance(effect, Send) and isinstance(effect.message, kind)


def test_a_device_has_one_slot_in_a_buffer():
    """Its second accepted update waits for the next one; nothing overwrites the first; a third is told to wait."""
    g = gateway(buffer=2)
    for version in range(3):
        for fan in ("fan-4", "fan-5"):
            g.send(make_update(fan, version, version, D))
    for seq in (0, 1):
        assert g.verdict(make_update("fan-0", seq, seq, D)).verdict == "accepted"
    third = g.verdict(make_update("fan-0", 2, 2, D))
    assert (third.verdict, third.code, third.retry_in_s) == ("deferred", "E_QUOTA", 60)
    assert g.task.release.version == 3
    g.send(make_update("fan-1", 1, 0, D))
    assert g.task.release.used == (("fan-0", "0" * 16, 0), ("fan-1", "0" * 16, 1))
    assert [b.update.seq for b in g.task.buffer] == [1]
    assert g.verdict(make_update("fan-0", 2, 2, D)).verdict == "accepted"


def test_the_deadline_releases_a_part_of_a_buffer():
    """b / K of the step; the clock starts with the first update, and an empty buffer waits for ever."""
    g = gateway(buffer=4, deadline_s=10)
    g.now = 100
    assert not of_kind(g.handle(Tick()), CommitRelease)
    g.send(make_update("fan-0", 1, 0, [4, 0, 0]))
    g.now = 109.9
    assert not of_kind(g.handle(Tick()), CommitRelease)
    g.now = 110
    (commit,) = of_kind(g.handle(Tick()), CommitRelease)
    np.testing.assert_allclose(commit.release.vector[:3], [1 + 4 / 4, 2, 3])


def test_staleness_is_measured_at_the_flush():
    """An update that was fresh when it came and waited for a version is a version old."""
    g = gateway(buffer=2)
    for fan in ("fan-4", "fan-5"):
        g.send(make_update(fan, 1, 0, D))
    for seq in (1, 2):
        g.send(make_update("fan-0", seq, seq - 1, D))
    g.send(make_update("fan-1", 1, 1, D))
    g.send(make_update("fan-2", 1, 2, D))
    assert g.task.release.version == 3
    assert g.task.release.staleness == (1, 0)


def test_synchronous_mode_takes_the_current_version_only():
    """The first C of a version; what comes for an older one is stale."""
    g = gateway(mode="synchronous", buffer=2)
    g.send(make_update("fan-0", 1, 0, D))
    g.send(make_update("fan-1", 1, 0, D))
    assert g.task.release.version == 1
    assert g.verdict(make_update("fan-2", 1, 0, D)).verdict == "stale"
    assert g.verdict(make_update("fan-2", 2, 1, D)).verdict == "accepted"


def test_a_quorum_is_enough_at_the_deadline_and_less_waits():
    """Less than the quorum keeps what came and leaves the version open; the step is the mean of those who came."""
    g = gateway(mode="synchronous", buffer=4, quorum=2, deadline_s=10)
    g.send(make_update("fan-0", 1, 0, [3, 0, 0]))
    g.now = 10
    assert not of_kind(g.handle(Tick()), CommitRelease)
    g.send(make_update("fan-1", 1, 0, [1, 0, 0]))
    g.now = 19.9
    assert not of_kind(g.handle(Tick()), CommitRelease)
    g.now = 20
    (commit,) = of_kind(g.handle(Tick()), CommitRelease)
    np.testing.assert_allclose(commit.release.vector[:3], [3, 2, 3])


@given(
    arrivals=st.lists(st.tuples(st.sampled_from(FANS), st.integers(0, 3), st.booleans()), max_size=40),
    buffer=st.integers(1, 5),
    synchronous=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_accepted_update_comes_to_exactly_one_disposal(arrivals, buffer, synchronous):
    """Whatever the order, repeats and ages: counted once, or waiting, or quarantined when the task ends."""
    g = gateway(buffer=buffer, mode="synchronous" if synchronous else "asynchronous", max_staleness=2)
    accepted: list[tuple[str, str, int]] = []
    for seq, (fan, age, again) in enumerate(arrivals):
        update = make_update(fan, seq, max(0, g.task.release.version - age), D)
        for _ in range(1 + again):
            result = g.verdict(update)
            if result.verdict == "accepted" and not result.repeat:
                accepted.append((fan, "0" * 16, seq))
    counted = [name for e in of_kind(g.effects, CommitRelease) for name in e.release.used]
    waiting = [b.name for b in g.task.buffer]
    assert sorted(counted + waiting) == sorted(accepted)
    g.ask("task-stop", task="fan")
    quarantined = [name for e in of_kind(g.effects, Quarantine) for name in e.used]
    assert sorted(counted + quarantined) == sorted(accepted)
    for release in (e.release for e in of_kind(g.effects, CommitRelease)):
        devices = [name[0] for name in release.used]
        assert len(devices) == len(set(devices))


# --- stopping ---


def test_a_task_ends_after_its_versions():
    """Finished: later updates are stale, and what waited is quarantined with the reason."""
    g = gateway(buffer=1, stop={"versions": 2})
    g.send(make_update("fan-0", 1, 0, D))
    effects = g.send(make_update("fan-1", 1, 1, D))
    plans = [e.message for e in effects if _is(e, Plan)]
    assert [p.state for p in plans] == ["finished"]
    assert g.verdict(make_update("fan-2", 1, 2, D)).verdict == "stale"


@pytest.mark.parametrize(
    ("better", "stop", "values", "why"),
    [
        ("higher", {"metric": "0.9"}, [0.5, 0.91], "accuracy 0.9100 reached 0.9"),
        ("higher", {"plateau": 2}, [0.5, 0.6, 0.6, 0.59], "no better accuracy in 2 releases"),
        ("lower", {"metric": "0.3"}, [0.9, 0.31, 0.29], "accuracy 0.2900 reached 0.3"),
        ("lower", {"plateau": 2}, [0.6, 0.5, 0.5, 0.7], "no better accuracy in 2 releases"),
    ],
)
def test_a_task_ends_by_what_the_held_out_set_says(better, stop, values, why):
    """A target reached, or no progress for so many releases; the bundle says whether higher or lower is progress."""
    g = Gateway().add(*FANS)
    plan = {"buffer": 1, "stop": stop}
    bundle = replace(tiny_bundle(), better=better)
    g.ask("task-create", bundle, task="fan", plan=plan, evaluation="/held/out.npz")
    g.ask("task-start", task="fan")
    for seq, value in enumerate(values):
        assert g.task.plan.state == "running"
        effects = g.send(make_update("fan-0", seq, seq, D))
        (evaluate,) = of_kind(effects, Evaluate)
        g.handle(Evaluated("fan", evaluate.version, 1.0, value))
    assert (g.task.plan.state, g.task.why) == ("finished", why)


def test_devices_reports_stand_in_where_the_gateway_has_no_examples():
    """The mean of what they measured, by their held-out examples; a report that is no number is left out."""
    g = gateway(buffer=3, stop={"metric": "0.8"})
    g.send(make_update("fan-0", 1, 0, D, metrics={"value": 0.9, "validation_examples": 30.0}))
    g.send(make_update("fan-1", 1, 0, D, metrics={"value": 0.5, "validation_examples": 10.0}))
    g.send(make_update("fan-2", 1, 0, D, metrics={"value": float("nan")}))
    assert g.task.reported() == pytest.approx(0.8)
    assert g.task.plan.state == "finished"


def test_one_device_that_lies_about_the_metric_ends_no_task():
    """Under a rule that stands attackers the median word decides, however many examples one says it has."""
    fans = [f"fan-{i}" for i in range(5)]
    g = Gateway().add(*fans).start(buffer=5, stop={"metric": "0.95"}, rule={"name": "robust"})
    for fan in fans:
        told = {"value": 1.0, "validation_examples": 1e6} if fan == "fan-0" else {"value": 0.3}
        g.send(make_update(fan, 1, 0, [0.1, 0.1, 0.1], metrics=told))
    assert (g.task.release.version, g.task.plan.state, g.task.measured.value) == (1, "running", 0.3)


def test_a_task_ends_after_its_minutes_of_running():
    """Pauses do not count."""
    g = gateway(stop={"minutes": 1})
    g.now = 30
    g.ask("task-pause", task="fan")
    g.now = 1000
    g.ask("task-start", task="fan")
    g.now = 1029
    g.handle(Tick())
    assert g.task.plan.state == "running"
    g.now = 1030
    g.handle(Tick())
    assert g.task.plan.state == "finished"


def test_a_paused_task_defers():
    """The device keeps its update and asks again later."""
    g = gateway()
    g.ask("task-pause", task="fan")
    update = make_update("fan-0", 1, 0, D)
    assert g.verdict(update).verdict == "deferred"
    g.ask("task-start", task="fan")
    assert g.verdict(update).verdict == "accepted"


# --- larger than a packet ---


def offer_of(data: bytes, chunk_size: int = 64, **changes: object) -> Offer:
    outgoing = Outgoing(data, chunk_size)
    offer = Offer(
        sha256=outgoing.sha256,
        size=len(data),
        chunk_size=chunk_size,
        task="fan",
        incarnation="0" * 16,
        seq=1,
        base_version=0,
        fingerprint=LAYOUT.fingerprint,
    )
    return sign_offer(replace(offer, **changes), key_of("fan-0"), FLEET, build(Kind.OFFER, FLEET, device="fan-0"))


def sealed(update) -> bytes:
    topic = build(Kind.UPDATE, FLEET, device=update.device)
    return seal_update(update, key_of(update.device), FLEET, topic)


def test_an_update_in_chunks_is_an_update():
    """Offer, grants, chunks in any order, twice: accepted once."""
    g = gateway()
    data = sealed(make_update("fan-0", 1, 0, D))
    outgoing = Outgoing(data, 64)
    effects = g.handle(Received("fan-0", offer_of(data)))
    for _ in range(50):
        grants = [e.message for e in effects if _is(e, Grant)]
        if not grants:
            break
        chunks = list(outgoing.chunks(grants[-1].missing, grants[-1].window))
        effects = [e for chunk in reversed(chunks) for e in g.handle(Received("fan-0", chunk))]
        effects += g.handle(Received("fan-0", chunks[0]))
    assert [r.verdict for r in results(g.effects)] == ["accepted"]
    assert results(g.handle(Received("fan-0", offer_of(data)))) == [replace(results(g.effects)[0], repeat=True)]


@pytest.mark.parametrize(
    ("change", "code"),
    [({"fingerprint": "f" * 32}, "E_FINGERPRINT"), ({"base_version": 5}, "E_VERSION"), ({"task": "other"}, "E_TASK")],
)
def test_a_useless_update_is_told_so_at_its_offer(change, code):
    """Before its radio time is spent; the verdict is signed and final like any other."""
    g = gateway()
    effects = g.handle(Received("fan-0", offer_of(b"x" * 500, **change)))
    (result,) = results(effects)
    assert result.code == code
    assert not [e for e in effects if _is(e, Grant)]


@pytest.mark.parametrize("change", [{"signature": None}, {"seq": 2}, {"base_version": 9}])
def test_an_offer_that_its_device_did_not_sign_decides_nothing(change):
    """Whatever it says, it gets no verdict: the device's own update stays to be judged."""
    g = gateway()
    effects = g.handle(Received("fan-0", replace(offer_of(b"x" * 500), **change)))
    assert [e.message.code for e in effects if _is(e, Grant)] == ["E_SIG"]
    assert not results(effects)
    assert g.verdict(make_update("fan-0", 2, 0, D)).verdict == "accepted"


def test_an_offer_larger_than_any_update_of_its_layout_is_rejected():
    """At once and finally: a model of five numbers has no update of a megabyte, and nothing is reserved for one."""
    g = gateway()
    most = VALUE_BYTES * LAYOUT.size + HEADER_BYTES
    (result,) = results(g.handle(Received("fan-0", offer_of(b"x", size=most + 1, chunk_size=1 << 20))))
    assert (result.verdict, result.code, result.final) == ("rejected", "E_SIZE", True)
    assert g.coordinator.inbox.reserved == 0
    effects = g.handle(Received("fan-0", offer_of(b"x", size=most, chunk_size=1 << 20, seq=2)))
    assert [e.message.answer for e in effects if _is(e, Grant)] == ["go"]


@pytest.mark.parametrize(
    "codec", [{"name": "none"}, {"name": "topk", "share": "1"}, {"name": "qsgd", "bits": "8", "coder": "rice"}]
)
def test_an_honest_update_is_never_larger_than_an_offer_may_be(codec):
    """The largest codecs with as many metrics and settings as the wire carries."""
    words = {f"{i:064}": "9" * 64 for i in range(60)}
    metrics = {f"{i:064}": float(i) for i in range(64)}
    size = len(sealed(make_update("fan-0", 1, 0, [1.0, -1.0, 1.0], codec=codec, metrics=metrics)))
    assert size + sum(len(k) + len(v) + 6 for k, v in words.items()) < HEADER_BYTES
    large = ModelLayout((TensorEntry("w", (20_000,), "parameter"),))
    for vector in (np.ones(20_000), np.eye(1, 20_000)[0] * 1e30, np.random.default_rng(0).standard_cauchy(20_000)):
        payload = make_compressor(codec, large).compress(vector.astype(np.float32), np.random.default_rng(0))
        assert len(payload) <= VALUE_BYTES * large.size // 2 + 100


# --- presence, restart of the broker ---


def state(name: str, boot: int, bseq: int, n: int = 0, incarnation: str | None = None) -> Received:
    return Received("fan-0", DeviceState(state=name, boot=boot, bseq=bseq, n=n, incarnation=incarnation))


def test_a_stale_last_will_is_not_believed():
    """`lost` of an older connection comes after the newer one's `ready`: dropped; of this connection: believed."""
    g = gateway()
    g.handle(state("ready", 1, 2))
    assert not of_kind(g.handle(state("lost", 1, 1)), SaveState)
    assert g.coordinator.fleet.devices["fan-0"].active
    g.handle(state("lost", 1, 2))
    assert not g.coordinator.fleet.devices["fan-0"].active
    g.handle(state("ready", 1, 3))
    assert g.coordinator.fleet.devices["fan-0"].active


@given(st.permutations([("ready", 1, 1, 1), ("lost", 1, 1, 0), ("ready", 2, 1, 1), ("training", 2, 1, 2)]))
def test_words_about_a_device_count_in_their_order_not_in_that_of_their_coming(words):
    """Whatever comes late: the newest word of an incarnation holds, a will being its connection's last (ADR 0018)."""
    g = gateway()
    for word in words:
        g.handle(state(*word, incarnation="a" * 16))
    known = g.coordinator.fleet.devices["fan-0"].state
    assert (known.state, known.boot, known.n) == ("training", 2, 2)


def test_a_device_flashed_anew_counts_its_starts_from_one():
    """A live word of another incarnation is taken though its start is lower; the old one's will is not."""
    g = gateway()
    g.handle(state("ready", 50, 3, 1, "a" * 16))
    g.handle(state("ready", 1, 1, 1, "b" * 16))
    g.handle(state("lost", 50, 3, 0, "a" * 16))
    assert g.coordinator.fleet.devices["fan-0"].active
    g.handle(state("lost", 1, 1, 0, "b" * 16))
    assert not g.coordinator.fleet.devices["fan-0"].active


def test_a_broker_that_forgot_is_told_everything_again():
    """Plans, manifests, everyone's tasks, and a call to announce; the chunk size follows the broker's limit."""
    g = gateway()
    effects = g.handle(Online(session_present=False, max_packet=20_000, mqtt="5"))
    kinds = {type(e.message) for e in effects if isinstance(e, Send)}
    assert {Plan, Manifest, TaskStatus, Sync} <= kinds
    desired = [e for e in effects if isinstance(e, Send) and e.topic.kind is Kind.DESIRED]
    assert {e.topic.device for e in desired} == set(FANS)
    (manifest,) = [e.message for e in effects if _is(e, Manifest)]
    assert manifest.chunk_size <= 20_000
    again = g.handle(Online(session_present=True, max_packet=20_000, mqtt="5"))
    assert not [e for e in again if _is(e, Sync)]


def test_statistics_are_averaged_by_examples():
    """Measured, not learnt: 100 and 300 examples of ranges (1, 2) and (2, 4)."""
    g = gateway(buffer=2)
    for fan, n, values in (("fan-0", 100, [1, 2]), ("fan-1", 300, [2, 4])):
        statistics = encode_statistics(np.array(values, np.float32))
        g.send(make_update(fan, 1, 0, D, num_examples=n, statistics=statistics))
    np.testing.assert_allclose(g.task.release.vector[3:], [1.75, 3.5])
