"""The device's heart, rule by rule: tasks, training, verdicts, sending again, connections, signatures."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import events as e
from edge_agent.events import Guess
from edge_agent.gate import Reading
from fl_protocol.compression.float16 import decode_statistics
from fl_protocol.compression.pipeline import make_compressor
from fl_protocol.errors import ProtocolError
from fl_protocol.messages import (
    Chunk,
    DeviceInfo,
    DeviceState,
    GatewayState,
    Get,
    Grant,
    Health,
    Offer,
    Prediction,
    Result,
    Sync,
)
from fl_protocol.queues import Outgoing, Packet
from fl_protocol.signing import seal
from fl_protocol.topics import Kind
from fl_protocol.transfer import Inbox
from fl_protocol.transport import Delivery, Limits, Undeliverable
from tests.edge_agent.rig import (
    BUNDLE,
    BUNDLE_BYTES,
    DEVICE,
    FLEET,
    FLEET_KEY,
    STRANGERS_KEY,
    TASK,
    Rig,
    all_of,
    blob_of,
    complaints,
    result_of,
    sent,
    states,
    the,
    topic,
    updates,
    vector_of,
)

P = BUNDLE.layout.num_parameters


def accepted_once(rig: Rig, version: int = 0) -> None:
    """A rig whose first update has been accepted."""
    (update,) = updates(rig.train(rig.ready_to_train(version)))
    rig.verdict(update, "accepted")


# --- connections -------------------------------------------------------------------------------------------------


def test_every_connection_subscribes_to_exact_topics_and_announces() -> None:
    """At each Connected: all own topics, state and info retained, whether or not the session was kept."""
    rig = Rig()
    for present in (False, True):
        effects = rig.connect(present=present)
        filters = [name for subscribe in all_of(e.Subscribe, effects) for name, _ in subscribe.filters]
        downlink = (Kind.RESULT, Kind.GRANT, Kind.CHUNK_DOWN, Kind.DELTA, Kind.SLOT)
        own = (*downlink, Kind.DESIRED, Kind.STATE, Kind.SYNC, Kind.GATEWAY, Kind.KEYS)
        assert set(filters) == {topic(kind) for kind in own}
        assert all("+" not in name and "#" not in name for name in filters)
        (state,), (info,) = sent(Kind.STATE, effects), sent(Kind.INFO, effects)
        assert state.retain
        assert state.qos == 1
        assert info.retain
        assert info.qos == 1
        assert states(effects)[0].bseq == rig.bseq
        assert isinstance(info.message, DeviceInfo)
        assert info.message.mqtt == "5"
        rig.disconnect()


def test_a_reconnect_follows_its_tasks_again() -> None:
    """Plan and manifest of each task are subscribed to on the new connection too."""
    rig = Rig()
    rig.ready_to_train()
    rig.disconnect()
    filters = [name for subscribe in all_of(e.Subscribe, rig.connect()) for name, _ in subscribe.filters]
    assert topic(Kind.PLAN) in filters
    assert topic(Kind.MANIFEST) in filters


def subscriptions(effects: list[e.Effect]) -> dict[str, int]:
    """Filter -> QoS of everything that was subscribed to."""
    return {text: qos for effect in all_of(e.Subscribe, effects) for text, qos in effect.filters}


def test_a_device_with_nothing_to_train_looks_again_ever_more_rarely() -> None:
    """After some five minutes, then ten, then an hour at most: its tasks, plans and manifests, and its state anew."""
    rig = Rig()
    rig.ready_to_train()
    wanted = {topic(Kind.DESIRED): 1, topic(Kind.PLAN): 1, topic(Kind.MANIFEST): 0}
    rig.train(the(e.Train, rig.asked))
    rig.verdict(updates(rig.asked)[-1], "accepted")
    assert not wanted.keys() & subscriptions(rig.wait(220)).keys()
    effects = rig.wait(160)
    assert wanted.items() <= subscriptions(effects).items()
    assert states(effects)
    assert not wanted.keys() & subscriptions(rig.wait(440 - 160)).keys()
    assert wanted.items() <= subscriptions(rig.wait(600)).items()
    looks = [subscriptions(rig.wait(1800)).keys() >= wanted.keys() for _ in range(48)]
    assert 17 <= sum(looks) <= 33  # one an hour, give or take a quarter


def test_a_device_that_trains_does_not_look_again() -> None:
    """Each training begins the wait anew."""
    rig = Rig()
    train = rig.ready_to_train()
    for version in range(1, 6):
        rig.wait(200)
        rig.train(train)
        effects = rig.verdict(updates(rig.asked)[-1], "accepted")
        effects += rig.announce(version)
        effects += rig.wait(3) + rig.serve(blob_of(version))
        train = all_of(e.Train, rig.asked)[-1]
        assert topic(Kind.DESIRED) not in subscriptions(effects)


def test_its_own_last_will_is_contradicted_unless_it_is_of_a_later_life() -> None:
    """Reading `lost` of this connection or an older one, the device says its state again."""
    rig = Rig()
    rig.connect()
    for boot, bseq, expected in ((1, 1, 1), (0, 9, 1), (2, 1, 0), (1, 2, 0)):
        lost = DeviceState(state="lost", boot=boot, bseq=bseq)
        assert len(states(rig.hear(Kind.STATE, lost))) == expected
    assert not states(rig.hear(Kind.STATE, DeviceState(state="ready", boot=1, bseq=1)))


def test_state_numbers_grow_and_nothing_is_said_twice() -> None:
    """`n` +1 a message; an unchanged state is not published again."""
    rig = Rig()
    rig.connect()
    rig.ready_to_train()
    told = states(rig.asked)
    assert [s.n for s in told] == list(range(1, len(told) + 1))
    assert told[-1].state == "training"
    assert told[-1].task == TASK
    assert told[-1].version == 0
    assert not states(rig.wait(5))


def test_sync_announces_again_within_the_time_asked_for() -> None:
    """gw/sync: state and info once more, at a moment of this device's own."""
    rig = Rig()
    rig.connect()
    assert not states(rig.hear(Kind.SYNC, Sync(within_s=5)))
    effects = rig.wait(5)
    assert len(states(effects)) == 1
    assert len(sent(Kind.INFO, effects)) == 1


def test_goodbye_is_a_state() -> None:
    """SIGTERM: `disconnected` is published, and nothing new begins."""
    rig = Rig()
    rig.ready_to_train()
    effects = rig.do(e.Stop())
    assert states(effects)[-1].state == "disconnected"
    assert not all_of(e.Train, rig.wait(100))


# --- tasks -------------------------------------------------------------------------------------------------------


def test_desired_names_the_tasks_and_a_signed_list_ends_others() -> None:
    """New tasks are followed; one that a signed list no longer names is left, and its update forgotten."""
    rig = Rig()
    rig.train(rig.ready_to_train())
    assert rig.restored.pending
    effects = rig.desire("other")
    assert topic(Kind.PLAN) in the(e.Unsubscribe, effects).filters
    assert (topic(Kind.PLAN, task="other"), 1) in all_of(e.Subscribe, effects)[0].filters
    assert the(e.Forget, effects).task == TASK
    assert not rig.restored.pending
    assert not updates(rig.wait(1000))


def test_a_cleared_desired_suspends_and_loses_nothing() -> None:
    """An empty payload is signed by nobody: nothing is sent or trained, but the update stays until the task is back."""
    rig = Rig()
    (update,) = updates(rig.train(rig.ready_to_train()))
    rig.hear(Kind.DESIRED, b"")
    assert not updates(rig.wait(1000))
    assert rig.restored.pending
    again = rig.delivered(rig.desire(TASK) + rig.wait(1))
    assert [u.seq for u in again] == [update.seq]


def test_a_cleared_plan_and_manifest_change_nothing() -> None:
    """Nor are they signed by anybody: versions are trained, and verdicts taken, while `desired` names the task."""
    rig = Rig()
    (update,) = updates(rig.train(rig.ready_to_train()))
    before = rig.restored
    for kind in (Kind.PLAN, Kind.MANIFEST):
        assert not rig.hear(kind, b"")
    assert rig.restored == before
    rig.verdict(update, "accepted")
    assert not rig.restored.pending
    rig.announce(1)
    rig.hear(Kind.MANIFEST, b"")
    order = the(e.Train, rig.broadcast(1))
    rig.hear(Kind.PLAN, b"")
    assert updates(rig.train(order))
    rig.desire()
    assert not rig.restored.pending
    assert not updates(rig.wait(1000))


def test_tasks_take_turns() -> None:
    """One task is trained at a time; the one that waited longest is next."""
    rig = Rig()
    rig.connect()
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.desire("a", "b")
    for task in ("a", "b"):
        rig.plan(task)
    effects = rig.announce(0, "a") + rig.announce(0, "b")
    turns, version = [], 0
    effects += rig.broadcast(0, "a") + rig.broadcast(0, "b")
    while len(turns) < 6:
        order = the(e.Train, effects)
        turns.append(order.task)
        rig.now += 1
        effects = rig.train(order)
        (update,) = updates(effects)
        effects = [x for x in effects if not isinstance(x, e.Send)] + rig.verdict(update, "accepted")
        if len(turns) % 2 == 0:
            version += 1
            for task in ("a", "b"):
                effects += rig.announce(version, task) + rig.broadcast(version, task)
    assert turns in (["a", "b"] * 3, ["b", "a"] * 3)


def test_a_plan_that_does_not_run_is_not_trained() -> None:
    """created, paused, stopped, finished: wait, and say so; running again: go on."""
    rig = Rig()
    rig.connect()
    rig.desire(TASK)
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.plan(state="paused")
    rig.announce(0)
    effects = rig.broadcast(0)
    assert not all_of(e.Train, effects)
    assert "paused" in states(rig.asked)[-1].why
    assert all_of(e.Train, rig.plan(revision=2))


# --- training ----------------------------------------------------------------------------------------------------


def test_the_update_is_what_training_changed() -> None:
    """delta, statistics, ids, metrics and the SHA-256 are what the gateway needs; the signature is the device's."""
    rig = Rig()
    rig.connect()
    rig.desire(TASK)
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.plan(codec={"name": "none"}, revision=7, hyper={"learning_rate": "0.125"}, batch_size=8, local_epochs=2)
    rig.announce(3)
    order = the(e.Train, rig.broadcast(3))
    assert order.order.hyper["learning_rate"] == 0.125
    assert order.order.hyper["momentum"] == BUNDLE.hyper["momentum"]
    assert (order.order.batch_size, order.order.local_epochs) == (8, 2)
    np.testing.assert_array_equal(order.base, vector_of(3))
    result = result_of(order.base)
    (update,) = updates(rig.do(e.Trained(TASK, result)))
    assert (update.device, update.task, update.base_version, update.plan_revision) == (DEVICE, TASK, 3, 7)
    assert (update.num_examples, update.local_steps, update.seq) == (100, 4, 1)
    assert update.fingerprint == BUNDLE.layout.fingerprint
    assert update.metrics["value"] == 0.5
    delta = make_compressor(update.codec, BUNDLE.layout).decompress(update.payload)
    np.testing.assert_array_equal(delta, result.parameters - order.base[:P])
    statistics = decode_statistics(update.statistics, BUNDLE.layout)
    np.testing.assert_allclose(statistics, result.statistics, rtol=1e-3)


def test_the_disk_has_an_update_before_the_radio_does() -> None:
    """SaveUpdate comes before the first publish of its bytes."""
    rig = Rig()
    effects = rig.train(rig.ready_to_train())
    saved = effects.index(the(e.SaveUpdate, effects))
    assert saved < effects.index(sent(Kind.UPDATE, effects)[0])


def test_each_version_is_trained_at_most_once_also_over_restarts() -> None:
    """After a verdict the same version is not trained again; nor by the next process."""
    rig = Rig()
    accepted_once(rig, version=5)
    assert not all_of(e.Train, rig.wait(1000))
    rig.restart()
    rig.connect()
    rig.desire(TASK)
    rig.plan()
    effects = rig.announce(5) + rig.wait(100)
    assert not all_of(e.Train, effects)
    assert all_of(e.Train, rig.announce(6) + rig.broadcast(6))


def test_one_update_in_flight() -> None:
    """A newer version waits until the verdict on the update in flight; then training starts at once."""
    rig = Rig()
    (update,) = updates(rig.train(rig.ready_to_train(0)))
    assert not all_of(e.Train, rig.announce(1) + rig.broadcast(1))
    effects = rig.verdict(update, "accepted")
    np.testing.assert_array_equal(the(e.Train, effects).base, vector_of(1))


def test_a_newer_version_never_interrupts_a_training() -> None:
    """Manifests in mid-training are noted; the next training starts from the newest."""
    rig = Rig()
    order = rig.ready_to_train(0)
    for version in (1, 2, 3):
        assert not all_of(e.Train, rig.announce(version))
    effects = rig.train(order)
    (update,) = updates(effects)
    assert update.base_version == 0
    (get,) = sent(Kind.GET, effects + rig.wait(2))
    assert isinstance(get.message, Get)
    assert get.message.sha256 == hashlib.sha256(blob_of(3)).hexdigest()
    effects = rig.serve(blob_of(3)) + rig.verdict(update, "accepted")
    np.testing.assert_array_equal(the(e.Train, effects).base, vector_of(3))


def test_a_failed_training_is_tried_again_after_a_while() -> None:
    """With growing pauses, and an event that says why."""
    rig = Rig()
    rig.ready_to_train()
    waits = []
    for _ in range(3):
        effects = rig.do(e.TrainingFailed(TASK, None, "no memory"))
        assert (states(effects)[-1].state, "no memory" in states(effects)[-1].why) == ("sleeping", True)
        start = rig.now
        while not all_of(e.Train, rig.wait(10)):
            assert rig.now - start < 3600
        waits.append(rig.now - start)
    assert complaints(rig.asked)[0].event == "training failed"
    assert waits == sorted(waits)
    assert waits[0] >= 60
    assert waits[2] >= 2 * waits[1] - 10


def test_a_result_that_is_not_finite_never_leaves() -> None:
    """E_NAN as an event, no update, no sequence number spent, tried again later."""
    rig = Rig()
    order = rig.ready_to_train()
    result = result_of(order.base)
    result.parameters[0] = np.nan
    effects = rig.do(e.Trained(TASK, result))
    assert complaints(effects)[0].code == "E_NAN"
    assert not all_of(e.SaveUpdate, effects)
    assert rig.restored.seq == 0
    assert all_of(e.Train, rig.wait(120))


def test_a_training_whose_task_has_ended_is_dropped() -> None:
    """The task left `desired` in mid-training: its result goes nowhere."""
    rig = Rig()
    order = rig.ready_to_train()
    rig.desire()
    assert not all_of(e.SaveUpdate, rig.train(order))


# --- the gate, examples, predictions -----------------------------------------------------------------------------


def test_the_gate_holds_training_and_says_why() -> None:
    """No training while it says no, a pause of the one in hand, and `sleeping` with the reason."""
    rig = Rig()
    rig.do(e.Measured(Reading(temperature_c=90)))
    rig.connect()
    rig.desire(TASK)
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.plan()
    rig.announce(0)
    assert not all_of(e.Train, rig.broadcast(0))
    assert states(rig.asked)[-1].state == "sleeping"
    assert "hot" in states(rig.asked)[-1].why
    assert not all_of(e.Train, rig.do(e.Measured(Reading(temperature_c=72))))  # it has to cool down first
    assert all_of(e.Train, rig.do(e.Measured(Reading(temperature_c=60))))
    assert the(e.Pause, rig.do(e.Measured(Reading(temperature_c=90)))).paused
    assert not the(e.Pause, rig.do(e.Measured(Reading(temperature_c=60)))).paused


def test_without_examples_it_sleeps_and_looks_again_every_minute() -> None:
    """The state says what is missing; examples that come later are found."""
    rig = Rig()
    rig.examples = "the data folder /data is empty"
    rig.connect()
    rig.desire(TASK)
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.plan()
    rig.announce(0)
    rig.broadcast(0)
    assert (states(rig.asked)[-1].state, states(rig.asked)[-1].why) == ("sleeping", rig.examples)
    assert len(all_of(e.ReadExamples, rig.wait(300))) == 5
    rig.examples = 60
    effects = rig.wait(60)
    assert all_of(e.Train, effects)
    info = sent(Kind.INFO, effects)[-1].message
    assert isinstance(info, DeviceInfo)
    assert info.num_examples == 60


def test_predictions_go_on_with_the_newest_verified_version() -> None:
    """Every `predict_s`, at QoS 0, also while training."""
    rig = Rig(predict_s=10)
    rig.ready_to_train(4)
    predict = the(e.Predict, rig.wait(10))
    assert predict.version == 4
    (send,) = sent(Kind.PREDICTION, rig.do(e.Predicted(TASK, 4, Guess("normal", 0.75, 0.2))))
    assert send.qos == 0
    assert isinstance(send.message, Prediction)
    assert (send.message.label, send.message.probability, send.message.version) == ("normal", 0.75, 4)


def test_health_is_told_now_and_then() -> None:
    """With what the sensors say, at QoS 0."""
    rig = Rig()
    rig.connect()
    rig.do(e.Measured(Reading(temperature_c=48.5, battery_pct=20.0), bytes_up=12))
    (send,) = sent(Kind.HEALTH, rig.wait(31))
    health = send.message
    assert isinstance(health, Health)
    assert send.qos == 0
    assert (health.temperature_c, health.bytes_up, health.may_train) == (48.5, 12, False)


# --- verdicts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", ["accepted", "stale", "rejected"])
def test_a_final_verdict_settles_the_residual_once(verdict: str) -> None:
    """accepted: what the codec left out is kept; stale and rejected: what was refused is. A repeat changes nothing."""
    rig = Rig()
    effects = rig.train(rig.ready_to_train(5, origin=5))
    pending, (update,) = the(e.SaveUpdate, effects).update, updates(effects)
    effects = rig.verdict(update, verdict, code="" if verdict == "accepted" else "E_STALE")
    assert the(e.Settle, effects).result.verdict == verdict
    expected = pending.if_accepted if verdict == "accepted" else pending.if_refused
    np.testing.assert_array_equal(rig.restored.residuals[TASK].vector, expected)
    assert not rig.restored.pending
    assert not all_of(e.Settle, rig.verdict(update, "rejected", repeat=True))
    order = the(e.Train, rig.announce(6) + rig.broadcast(6))
    effects = rig.train(order, seed=1)
    delta = result_of(order.base, 1).parameters - order.base[:P]
    step = the(e.SaveUpdate, effects).update
    quantised = make_compressor({"name": "uq", "step": "1.0"}, BUNDLE.layout).decompress(updates(effects)[0].payload)
    np.testing.assert_allclose(quantised + step.if_accepted, delta + expected, atol=1e-6)


def test_deferred_is_not_final() -> None:
    """The same bytes again, after the time the gateway names; nothing else moves."""
    rig = Rig()
    effects = rig.train(rig.ready_to_train())
    (update,), (first,) = updates(effects), sent(Kind.UPDATE, effects)
    assert not all_of(e.Settle, rig.verdict(update, "deferred", retry_in_s=120))
    assert not updates(rig.wait(119))
    (again,) = sent(Kind.UPDATE, rig.wait(2))
    assert again.message == first.message
    assert rig.restored.pending


def test_a_task_that_runs_again_waits_for_no_deferral() -> None:
    """paused: deferred by a minute; running again: sent within two seconds. An unchanged state brings nothing."""
    rig = Rig()
    (update,) = updates(rig.train(rig.ready_to_train()))
    rig.plan(revision=2, state="paused")
    rig.verdict(update, "deferred", retry_in_s=60)
    assert not updates(rig.plan(revision=3, state="paused") + rig.wait(2.01))
    effects = rig.plan(revision=4)
    assert not updates(effects)  # the fleet spreads
    assert len(updates(rig.wait(2.01))) == 1
    assert not updates(rig.plan(revision=5) + rig.wait(2.01))


def test_verdicts_on_anything_else_are_ignored() -> None:
    """Another seq, another incarnation, another task."""
    rig = Rig()
    (update,) = updates(rig.train(rig.ready_to_train()))
    for change in ({"seq": 2}, {"incarnation": "f" * 16}, {"task": "other"}):
        assert not all_of(e.Settle, rig.verdict(update, "accepted", **change))
    assert rig.restored.pending


def test_another_fingerprint_starts_with_no_residual() -> None:
    """A residual belongs to the layout that it was made under."""
    rig = Rig()
    accepted_once(rig)
    rig.restored.residuals[TASK] = e.LocalVector("0" * 32, np.ones(P, np.float32))  # type: ignore[index]
    rig.restart()
    rig.connect()
    rig.desire(TASK)
    rig.plan(codec={"name": "none"})
    order = the(e.Train, rig.announce(1) + rig.wait(0.1) + rig.broadcast(1))
    (update,) = updates(rig.train(order))
    delta = make_compressor(update.codec, BUNDLE.layout).decompress(update.payload)
    np.testing.assert_array_equal(delta, result_of(order.base).parameters - order.base[:P])


def test_another_life_of_the_model_starts_with_no_residual() -> None:
    """A task deleted and created again while the device was away: it still has its name, but another origin."""
    rig = Rig()
    accepted_once(rig)
    assert np.any(rig.restored.residuals[TASK].vector)
    rig.disconnect()
    rig.connect()
    rig.plan(codec={"name": "none"}, revision=2, origin=9)
    order = the(e.Train, rig.announce(9) + rig.broadcast(9))
    (update,) = updates(rig.train(order))
    delta = make_compressor(update.codec, BUNDLE.layout).decompress(update.payload)
    np.testing.assert_array_equal(delta, result_of(order.base).parameters - order.base[:P])
    assert rig.restored.pending[0].origin == 9
    rig.verdict(update, "accepted")
    assert rig.restored.residuals[TASK].origin == 9


def test_an_update_of_an_earlier_life_leaves_its_residual_there() -> None:
    """Refused after the task began anew: what is kept of it is not added to the new model."""
    rig = Rig()
    (old,) = updates(rig.train(rig.ready_to_train()))
    rig.plan(codec={"name": "none"}, revision=2, origin=9)
    rig.announce(9)
    rig.broadcast(9)
    order = the(e.Train, rig.verdict(old, "stale", code="E_STALE"))
    (update,) = updates(rig.train(order, seed=1))
    delta = make_compressor(update.codec, BUNDLE.layout).decompress(update.payload)
    np.testing.assert_array_equal(delta, result_of(order.base, 1).parameters - order.base[:P])


def test_a_version_of_an_earlier_life_is_not_trained_from() -> None:
    """Its delta would be kept as the new life's residual."""
    rig = Rig()
    rig.connect()
    rig.desire(TASK)
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.plan(state="paused")
    rig.announce(3)
    rig.broadcast(3)
    effects = rig.plan(revision=2, origin=9)
    assert not all_of(e.Train, effects)
    assert states(effects)[-1].why == "fetching the model"
    assert all_of(e.Train, rig.announce(9) + rig.broadcast(9))


# --- sending again -----------------------------------------------------------------------------------------------


def test_silence_means_the_same_bytes_again_with_growing_patience() -> None:
    """After about 15 s, then twice as long each time, at most five minutes; seq and bytes never change.

    After ten minutes it may be too late for it: then it is offered.
    """
    rig = Rig()
    (first,) = sent(Kind.UPDATE, rig.train(rig.ready_to_train()))
    times, made = [], rig.now
    last = made
    while len(times) < 8:
        effects = rig.wait(1)
        for send in sent(Kind.UPDATE, effects) + sent(Kind.OFFER, effects):
            assert send.message == first.message if rig.now - made <= 600 else isinstance(send.message, Offer)
            times.append(rig.now - last)
            last = rig.now
    assert 11 <= times[0] <= 20
    assert 22 <= times[1] <= 39
    assert all(220 <= t <= 377 for t in times[5:])


def test_a_reconnect_and_a_restarted_gateway_bring_it_again_within_two_seconds() -> None:
    """Nobody knows what was lost: it is offered. While there is no connection nothing is sent."""
    rig = Rig()
    rig.train(rig.ready_to_train())
    rig.hear(Kind.GATEWAY, GatewayState(state="ready", boot=1, bseq=1))
    rig.wait(3)
    rig.disconnect()
    rig.now += 1
    assert len(rig.delivered(rig.connect() + rig.wait(2.01))) == 1
    rig.disconnect()
    assert not rig.delivered(rig.wait(1000))
    assert len(rig.delivered(rig.connect() + rig.wait(2.01))) == 1
    assert not rig.delivered(rig.hear(Kind.GATEWAY, GatewayState(state="ready", boot=1, bseq=1)) + rig.wait(2.01))
    assert len(rig.delivered(rig.hear(Kind.GATEWAY, GatewayState(state="ready", boot=2, bseq=1)) + rig.wait(2.01))) == 1


def test_a_restart_sends_from_the_outbox() -> None:
    """The next process sends the very bytes that the last one stored, once the task is named."""
    rig = Rig()
    (first,) = updates(rig.train(rig.ready_to_train()))
    rig.restart()
    rig.connect()
    (update,) = rig.delivered(rig.desire(TASK) + rig.wait(2.01))
    assert update == first
    rig.verdict(update, "accepted", repeat=True)
    assert not rig.restored.pending


def test_what_does_not_fit_in_a_packet_is_offered_and_sent_as_granted() -> None:
    """offer -> grant(go) -> chunks -> grant(done) -> result; the chunks are the sealed bytes."""
    rig = Rig()
    rig.connect(max_packet=2048)
    effects = rig.train(rig.ready_to_train())
    pending = the(e.SaveUpdate, effects).update
    assert not sent(Kind.UPDATE, effects)
    (offer,) = (s.message for s in sent(Kind.OFFER, effects))
    assert isinstance(offer, Offer)
    assert (offer.seq, offer.base_version, offer.task) == (1, 0, TASK)
    reception = Inbox(1 << 20, 60).open(offer.sha256, offer.size, offer.chunk_size, DEVICE, rig.now)
    grant = reception.offered(rig.now)
    for _ in range(10):
        effects = rig.hear(Kind.GRANT, grant) if grant else []
        for send in sent(Kind.CHUNK_UP, effects):
            assert isinstance(send.message, Chunk)
            reception.add(send.message, rig.now)
        if reception.done:
            break
        grant = reception.next_grant(rig.now)
    assert reception.data() == pending.sealed


def test_a_grant_that_says_wait_is_waited_for() -> None:
    """The offer comes again after `retry_in_s`, not before."""
    rig = Rig()
    rig.connect(max_packet=2048)
    (offer,) = (s.message for s in sent(Kind.OFFER, rig.train(rig.ready_to_train())))
    assert isinstance(offer, Offer)
    rig.hear(Kind.GRANT, Grant(sha256=offer.sha256, answer="full", retry_in_s=100))
    assert not sent(Kind.OFFER, rig.wait(99))
    assert len(sent(Kind.OFFER, rig.wait(2))) == 1


def given_up_for_its_size(how: str, name: str, payload: bytes) -> Undeliverable:
    """What the transport's own queue says of a packet that is too large."""
    queue, packet, small = Outgoing(), Packet(name, payload, 1, retain=False), Limits("5", 4096)
    match how:
        case "above the limit":
            queue.connected(small)
            with pytest.raises(ProtocolError) as caught:
                queue.put(packet)
            return Undeliverable(name, len(payload), caught.value.message)
        case "above the next limit":
            queue.put(packet)
            (event,) = queue.connected(small)
        case "two connections ended":
            queue.put(packet)
            for mid in (1, 2):
                queue.connected(Limits("5", 1 << 20))
                assert queue.take() is packet
                queue.sent(mid, packet)
                events = queue.disconnected()
            (event,) = events
    return event


@pytest.mark.parametrize("how", ["above the limit", "above the next limit", "two connections ended"])
def test_an_update_that_the_broker_will_not_carry_goes_in_chunks(how: str) -> None:
    """Undeliverable: said as an event, and offered instead."""
    rig = Rig()
    (send,) = sent(Kind.UPDATE, rig.train(rig.ready_to_train(codec={"name": "none"})))
    assert isinstance(send.message, bytes)
    assert len(send.message) > 4096
    effects = rig.do(given_up_for_its_size(how, send.topic, send.message))
    assert [(c.event, c.code) for c in complaints(effects)] == [("undeliverable", "E_SIZE")]
    assert len(sent(Kind.OFFER, effects)) == 1


@pytest.mark.parametrize("codec", ["none", "uq"])
@pytest.mark.parametrize(
    "reason", ["the broker refused it: Not authorized", "4096 messages, 33554432 bytes wait already"]
)
def test_an_update_refused_for_another_reason_keeps_its_patience(codec: str, reason: str) -> None:
    """No permission, no room: chunks would fare no better, and nothing is sent again at once."""
    rig = Rig()
    options = {"name": codec} if codec == "none" else {"name": codec, "step": "1.0"}
    (send,) = sent(Kind.UPDATE, rig.train(rig.ready_to_train(codec=options)))
    assert isinstance(send.message, bytes)
    times, sends = [rig.now], [send]
    while len(times) < 5:
        for again in sends:
            effects = rig.do(Undeliverable(again.topic, len(send.message) + 40, reason))
            assert not [c for c in complaints(effects) if c.code]
            assert not sent(Kind.UPDATE, effects) + sent(Kind.OFFER, effects)
        effects = rig.wait(1)
        assert not sent(Kind.OFFER, effects)
        if sends := sent(Kind.UPDATE, effects):
            times.append(rig.now)
    assert complaints(rig.asked)[0].event == "undeliverable"
    assert all(later >= 11 * 2**n for n, later in enumerate(np.diff(times)))


def test_a_small_update_was_not_given_up_for_its_size() -> None:
    """The connection ended twice with it in hand: the link is bad, and chunks would be larger."""
    rig = Rig()
    (send,) = sent(Kind.UPDATE, rig.train(rig.ready_to_train()))
    assert isinstance(send.message, bytes)
    assert len(send.message) <= 4000
    effects = rig.do(given_up_for_its_size("two connections ended", send.topic, send.message))
    assert [c.code for c in complaints(effects)] == [""]
    assert not updates(effects + rig.wait(10))


# --- whom it believes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.DESIRED, Kind.PLAN, Kind.MANIFEST, Kind.RESULT])
def test_what_the_fleets_key_did_not_sign_changes_nothing(kind: Kind) -> None:
    """Unsigned, signed by a stranger, or signed for another topic: dropped, with E_SIG as an event."""
    rig = Rig()
    (update,) = updates(rig.train(rig.ready_to_train()))
    before = rig.restored
    message = {
        Kind.DESIRED: b'{"tasks":[],"counter":9}',
        Kind.PLAN: b'{"counter":9}',
        Kind.MANIFEST: b'{"counter":9}',
        Kind.RESULT: b'{"counter":9}',
    }[kind]
    result = Result(task=TASK, incarnation=update.incarnation, seq=1, verdict="accepted", counter=9)
    forged = seal(result, STRANGERS_KEY, FLEET, topic(kind))
    misplaced = seal(result, FLEET_KEY, FLEET, topic(Kind.RESULT, device="fan-99"))
    for payload in (message, forged, misplaced):
        effects = rig.hear(kind, payload)
        assert not all_of(e.Settle, effects)
        assert not all_of(e.Forget, effects)
        rig.now += 100
        assert complaints(rig.hear(kind, payload))[0].code == "E_SIG"
    assert rig.restored == before


def test_an_older_word_is_a_downgrade_also_after_a_restart() -> None:
    """A lower counter: dropped, E_DOWNGRADE. An equal one is the retained message again: fine."""
    rig = Rig()
    rig.connect()
    rig.desire(TASK)
    rig.plan(counter=5, state="paused")
    old = rig.plan(counter=4, revision=9)
    assert [c.code for c in complaints(old)] == ["E_DOWNGRADE"]
    assert not complaints(rig.plan(counter=5, state="paused"))
    assert rig.restored.counters[topic(Kind.PLAN)] == 5
    rig.restart()
    rig.connect()
    rig.desire(TASK)
    assert [c.code for c in complaints(rig.plan(counter=4))] == ["E_DOWNGRADE"]


def test_rubbish_is_refused_on_every_topic() -> None:
    """Whatever bytes come, the heart answers with an event at most, and goes on."""
    rig = Rig()
    rig.ready_to_train()
    for kind in (Kind.DESIRED, Kind.PLAN, Kind.MANIFEST, Kind.RESULT, Kind.GRANT, Kind.CHUNK_DOWN, Kind.STATE):
        for payload in (b"{", b"\xff\xfe", b"[]", b"\xc1", b"x" * 20_000):
            rig.hear(kind, payload)
    rig.do(Delivery("another/topic", b"", False, None))
    assert {c.level for c in complaints(rig.asked)} == {"error"}
    assert updates(rig.train(e.Train(TASK, BUNDLE, vector_of(0), None, None, None)))  # type: ignore[arg-type]


# --- the disk ----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_waited_out_and_nothing_is_lost() -> None:
    """E_DISK as an event, `sleeping` and why; the update waits in memory and leaves once it is stored."""
    rig = Rig()
    order = rig.ready_to_train()
    rig.disk_full = True
    effects = rig.train(order)
    assert complaints(effects)[0].code == "E_DISK"
    assert not updates(effects)
    assert (states(effects)[-1].state, states(effects)[-1].why) == ("sleeping", "the disk is full")
    assert not updates(rig.wait(100))
    rig.disk_full = False
    (update,) = updates(rig.wait(31))
    rig.disk_full = True
    effects = rig.verdict(update, "accepted") + rig.announce(1) + rig.broadcast(1)
    assert not all_of(e.Train, effects)
    assert rig.restored.pending
    rig.disk_full = False
    assert all_of(e.Train, rig.wait(31))
    assert not rig.restored.pending


def test_a_full_disk_does_not_fill_the_memory() -> None:
    """Of versions and counters that follow each other only what is wanted still waits; the update always does."""
    rig = Rig(predict_s=1000)
    order = rig.ready_to_train()
    rig.disk_full = True
    rig.train(order)
    for version in range(1, 40):
        rig.announce(version)
        rig.broadcast(version)
        rig.now += 1
    rig.disk_full = False
    effects = rig.wait(31)
    assert len(all_of(e.SaveObject, effects)) == 1
    assert len(all_of(e.SaveCounter, effects)) == 1
    assert len(rig.delivered(effects)) == 1
    assert rig.restored.counters[topic(Kind.MANIFEST)] == 40


def test_a_disk_that_was_full_while_the_task_was_suspended() -> None:
    """The update is stored when there is room, and sent when the task is back."""
    rig = Rig()
    order = rig.ready_to_train()
    rig.disk_full = True
    rig.train(order)
    rig.hear(Kind.DESIRED, b"")
    rig.disk_full = False
    assert not updates(rig.wait(100))
    assert rig.restored.pending
    (update,) = updates(rig.desire(TASK) + rig.wait(3))
    rig.verdict(update, "accepted")
    assert not rig.restored.pending


# --- all of it ---------------------------------------------------------------------------------------------------

VERDICTS = st.sampled_from(["accepted", "stale", "rejected", "deferred", "silence", "restart"])


@settings(max_examples=25)
@given(st.lists(VERDICTS, max_size=12))
def test_error_feedback_conserves_over_any_verdicts(verdicts: list[str]) -> None:
    """accepted: sent + kept = learnt + kept before; refused: at most one delta is owed; silence moves nothing."""
    rig = Rig()
    version, kept = 0, np.zeros(P, np.float32)
    effects = rig.train(rig.ready_to_train(0))
    for verdict in verdicts:
        pending, update = rig.restored.pending[0], rig.delivered(effects)[-1]
        assert (update.seq, update.base_version) == (pending.seq, version)
        assert update.seq == version + 1
        if verdict == "silence":
            effects = rig.wait(400)
        elif verdict == "restart":
            rig.restart()
            rig.connect()
            effects = rig.desire(TASK) + rig.wait(2.01)
            rig.plan()
            rig.announce(version)
            rig.broadcast(version)
        elif verdict == "deferred":
            rig.verdict(update, "deferred", retry_in_s=1)
            effects = rig.wait(1.01)
        else:
            rig.verdict(update, verdict)
            delta = result_of(vector_of(version), version).parameters - vector_of(version)[:P]
            if verdict == "accepted":
                quantised = make_compressor(update.codec, BUNDLE.layout).decompress(update.payload)
                np.testing.assert_allclose(quantised + pending.if_accepted, delta + kept, atol=1e-6)
                kept = pending.if_accepted
            else:
                kept = pending.if_refused
                assert 0 < np.linalg.norm(kept) <= np.linalg.norm(delta)
            version += 1
            order = the(e.Train, rig.announce(version) + rig.broadcast(version))
            effects = rig.train(order, seed=version)
        residual = rig.restored.residuals.get(TASK)
        np.testing.assert_array_equal(kept if residual is None else residual.vector, kept)
        assert (residual is None) == (version == 0)


def test_a_device_at_work_says_what_it_is_at_now_and_then() -> None:
    """Training, uploading, ready, training: one word in ten seconds, the newest; that it sleeps it says at once."""
    rig = Rig(state_s=10.0)
    order = rig.ready_to_train(0)
    said = len(states(rig.asked))
    effects = rig.train(order)
    rig.now += 3
    effects += rig.announce(1) + rig.broadcast(1)
    assert not states(effects)
    effects = rig.wait(10)
    assert [state.state for state in states(effects)] == ["uploading"]
    assert said == len(states(rig.asked)) - 1
    effects = rig.do(e.Stop())
    assert states(effects)[-1].state == "disconnected"
