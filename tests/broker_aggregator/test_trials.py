"""A candidate is nobody's until it has shown what it is worth; what falls is withheld, and training goes on."""

from dataclasses import replace

import pytest

from broker_aggregator.coordinator import Coordinator
from broker_aggregator.events import (
    Asked,
    Clear,
    CommitRelease,
    Evaluate,
    Evaluated,
    Note,
    Online,
    Promote,
    Quarantine,
    Received,
    SaveEvaluation,
    Send,
    SendDelta,
    Tick,
    Withhold,
)
from fl_protocol.messages import Answer, Ask, Desired, DeviceState, Manifest, ReleaseMetrics, TaskStatus, Want
from fl_protocol.tensors import ModelLayout, TensorEntry
from fl_protocol.topics import Kind
from tests.support.fleet import Gateway, make_update, of_kind, results, tiny_bundle

D = [0.1, 0.2, 0.3]
FANS = ("fan-0", "fan-1", "fan-2", "fan-3")


def guarded(evaluation: str = "held-out.npz", fans: tuple[str, ...] = FANS, **guard: str) -> Gateway:
    """A running task with a guard, and devices that are connected."""
    g = Gateway().add(*fans)
    plan = {"buffer": 2, "deadline_s": 60, "downlink": {"name": "none"}, "guard": {"margin": "0.05", **guard}}
    assert g.ask("task-create", tiny_bundle(), task="fan", plan=plan, evaluation=evaluation).status == "successful"
    assert g.ask("task-start", task="fan").status == "successful"
    for fan in fans:
        g.handle(Received(fan, DeviceState(state="ready", boot=1, bseq=1)))
    g.effects.clear()
    return g


def fill(g: Gateway, seq: int, base: int, value: float | None = None) -> None:
    """Two updates, which fill the buffer."""
    for fan in FANS[:2]:
        send(g, fan, seq, base, value)


def send(g: Gateway, fan: str, seq: int, base: int, value: float | None = None):
    metrics = {} if value is None else {"value": value, "validation_examples": 10.0}
    return g.send(make_update(fan, seq, base, D, metrics=metrics))


def measured(g: Gateway, version: int, value: float) -> list:
    return g.handle(Evaluated("fan", version, 1 - value, value))


def announced(effects, channel: str = "stable") -> list[int]:
    """The versions that were announced on a channel."""
    sends = [e for e in effects if isinstance(e, Send) and isinstance(e.message, Manifest)]
    return [e.message.version for e in sends if e.topic.channel == channel]


def states_of(effects) -> list[tuple[int, str]]:
    return [(e.release.version, e.state) for e in of_kind(effects, CommitRelease)]


# --- on the held-out set -----------------------------------------------------------------------------------------


def test_a_candidate_is_measured_before_anybody_sees_it():
    """Nothing is durable and nothing announced until the held-out set has said how good it is: then both."""
    g = guarded()
    fill(g, 1, 0)
    assert [e.version for e in of_kind(g.effects, Evaluate)] == [0, 1]
    assert not of_kind(g.effects, CommitRelease)
    assert measured(g, 0, 0.5)
    effects = measured(g, 1, 0.6)
    assert states_of(effects) == [(1, "released")]
    assert announced(effects) == [1]
    assert SaveEvaluation("fan", 1, 0.4, 0.6) in effects
    assert (g.task.release.version, g.task.measured.best, g.task.made) == (1, 0.6, 1)
    (line,) = [e.message for e in of_kind(effects, Send) if isinstance(e.message, ReleaseMetrics)]
    assert (line.version, line.value, line.withheld) == (1, 0.6, None)


def test_while_one_is_measured_the_buffer_fills_on():
    """No other version is made, however much has come; the next one begins when the word is there."""
    g = guarded()
    fill(g, 1, 0)
    for fan in FANS[2:]:
        send(g, fan, 1, 0)
    assert len(of_kind(g.effects, Evaluate)) == 2
    measured(g, 0, 0.5)
    effects = measured(g, 1, 0.6)
    assert [e.version for e in of_kind(effects, Evaluate)] == [2]


def test_one_that_falls_is_withheld_and_its_base_is_published_again():
    """Its updates are quarantined with both values, its number is used up, devices train the base once more."""
    g = guarded()
    fill(g, 1, 0)
    measured(g, 0, 0.8)
    before = g.task.release
    effects = measured(g, 1, 0.7)
    assert states_of(effects) == [(1, "withheld"), (2, "released")]
    assert announced(effects) == [2]
    withheld = of_kind(effects, CommitRelease)[0]
    assert withheld.why == "version 1 withheld: accuracy 0.7000 after 0.8000, margin 0.05"
    assert [device for device, _, _ in withheld.release.used] == list(FANS[:2])
    assert g.task.release.sha256 == before.sha256
    assert (g.task.measured.best, g.task.made, g.task.withheld) == (0.8, 0, [1])
    (line,) = [e.message for e in of_kind(effects, Send) if isinstance(e.message, ReleaseMetrics)]
    assert (line.version, line.value, line.withheld) == (1, 0.7, True)
    assert send(g, "fan-2", 1, 2)
    (late,) = results(send(g, "fan-3", 1, 1))
    assert (late.verdict, late.code) == ("stale", "E_STALE")
    assert "was withheld" in late.why


def test_three_withheld_in_a_row_say_what_to_do():
    """A warning, and a sentence on the page that people watch."""
    g = guarded()
    base = 0
    for seq in (1, 2, 3):
        fill(g, seq, base)
        version = g.task.trial.release.version
        if seq == 1:
            measured(g, 0, 0.8)
        g.now += 2
        g.effects.clear()
        measured(g, version, 0.1)
        base = g.task.release.version
    assert "3 versions in a row withheld" in g.task.why
    assert "task rollback" in g.task.why
    assert any(n.level == "warning" and "margin" in n.text for n in of_kind(g.effects, Note))
    (status,) = [e.message for e in of_kind(g.effects, Send) if isinstance(e.message, TaskStatus)][-1:]
    assert (status.withheld, status.why) == (3, g.task.why[:400])
    fill(g, 4, base)
    measured(g, g.task.trial.release.version, 0.9)
    assert (g.task.why, g.task.withheld_in_a_row) == ("", 0)


@pytest.mark.parametrize(("in_doubt", "state"), [("promote", "released"), ("withhold", "withheld")])
def test_a_word_that_does_not_come_leaves_a_doubt(in_doubt, state):
    """After `measure_s` the plan says what then; a word that comes later changes nothing of what was withheld."""
    g = guarded(measure_s="5", in_doubt=in_doubt)
    fill(g, 1, 0)
    g.now += 4.9
    assert not of_kind(g.handle(Tick()), CommitRelease)
    g.now += 0.2
    assert states_of(g.handle(Tick()))[0] == (1, state)
    measured(g, 1, 0.9)
    assert g.task.measured.value == (0.9 if state == "released" else None)


def test_a_task_that_ends_withholds_what_was_on_trial():
    """What was accepted is counted or quarantined, never forgotten."""
    g = guarded()
    fill(g, 1, 0)
    g.effects.clear()
    g.ask("task-stop", task="fan")
    assert states_of(g.effects) == [(1, "withheld"), (2, "released")]
    assert g.task.trial is None
    assert g.task.plan.state == "stopped"


# --- with a canary -----------------------------------------------------------------------------------------------


def tried(**guard: str) -> Gateway:
    """A version that a quarter of the fleet tries; what its devices said of the version before was 0.8."""
    g = guarded("", canary="0.25", reports="1", **guard)
    fill(g, 1, 0, 0.8)
    return g


def test_a_canarys_version_is_written_and_told_to_few():
    """On its own channel, not broadcast; the devices of the canary hear in `desired` that they try it."""
    g = tried()
    assert states_of(g.effects) == [(1, "canary")]
    assert (announced(g.effects), announced(g.effects, "canary")) == ([], [1])
    (told,) = [e for e in of_kind(g.effects, Send) if isinstance(e.message, Desired)]
    assert told.message.canary == ("fan",)
    assert g.task.tried_by == (told.topic.device,)
    status = g.task.status(4, 4)
    assert (status.version, status.canary) == (0, 1)
    want = Want(task="fan", sha256=g.task.canary.sha256)
    assert [e.want for e in of_kind(g.handle(Received("fan-0", want)), SendDelta)] == [want]


def test_it_is_promoted_by_its_canarys_word():
    """The stable manifest, one transaction; whoever tried it no longer does; its updates may be counted next."""
    g = tried()
    (fan,) = g.task.tried_by
    effects = send(g, fan, 9, 1, 0.82)
    assert of_kind(effects, Promote) == [Promote("fan", 1)]
    assert announced(effects) == [1]
    assert [e.topic.channel for e in of_kind(effects, Clear)] == ["canary"]
    (told,) = [e for e in of_kind(effects, Send) if isinstance(e.message, Desired)]
    assert (told.topic.device, told.message.canary) == (fan, None)
    assert (g.task.release.version, g.task.made, len(g.task.buffer)) == (1, 1, 1)


def test_it_is_withheld_by_its_canarys_word():
    """What it used is quarantined, and what was trained from it; that base is stale ever after."""
    g = tried()
    (fan,) = g.task.tried_by
    effects = send(g, fan, 9, 1, 0.1)
    (withheld,) = of_kind(effects, Withhold)
    assert (withheld.task, withheld.version) == ("fan", 1)
    (of_it,) = of_kind(effects, Quarantine)
    assert [device for device, _, _ in of_it.used] == [fan]
    assert states_of(effects) == [(2, "released")]
    assert announced(effects) == [2]
    assert not g.task.buffer


def test_others_words_on_it_count_for_nothing():
    """Who was not chosen cannot judge a version, though it may have heard of it; its update waits like any other."""
    g = tried()
    other = next(fan for fan in FANS if fan not in g.task.tried_by)
    assert not of_kind(send(g, other, 9, 1, 0.1), Withhold)
    assert g.task.trial is not None


@pytest.mark.parametrize(("in_doubt", "kind"), [("promote", Promote), ("withhold", Withhold)])
def test_a_canary_that_is_silent_leaves_a_doubt(in_doubt, kind):
    """After `canary_s`; with fewer words than asked for, those that came decide."""
    g = tried(canary_s="100", in_doubt=in_doubt)
    g.now += 99
    assert not of_kind(g.handle(Tick()), Promote, Withhold)
    g.now += 2
    assert of_kind(g.handle(Tick()), kind)


def test_a_canary_that_has_nothing_to_say_is_not_waited_for():
    """Devices without held-out examples send their update and no word: once all have, nothing more will come."""
    g = tried(canary_s="100000")
    (fan,) = g.task.tried_by
    g.now += 5
    effects = send(g, fan, 9, 1)
    assert of_kind(effects, Promote) == [Promote("fan", 1)]
    assert any("nobody spoke of version 1 in 5 s" in n.text for n in of_kind(effects, Note))


def test_one_that_lies_about_versions_decides_nothing_for_devices_that_come_anew():
    """Where no device of the canary spoke before, it is held against the median of what the others said."""
    g = guarded("", canary="0.25", reports="1", fans=(*FANS, "fan-4"))
    for fan, value in zip(FANS[:2], (0.8, 1e9), strict=True):
        send(g, fan, 1, 0, value)
    for fan in FANS[2:]:
        send(g, fan, 1, 0, 0.8)
    g.task.words.clear()
    assert of_kind(send(g, g.task.tried_by[0], 9, 1, 0.8), Promote, Withhold) == [Promote("fan", 1)]


@pytest.mark.parametrize("devices", [4, 9, 20])
def test_a_canary_speaks_however_many_devices_wait(devices):
    """While a version is tried all devices train on, and more comes than is counted: those of the canary find room.

    A device keeps an update that is put off, and trains nothing until it is taken; so those with none are chosen.
    """
    fans = tuple(f"fan-{i}" for i in range(devices))
    g = guarded("", fans=fans, canary="0.25", reports="2", canary_s="100000")
    held: dict[str, tuple] = {}  # device -> its update that was put off
    seqs = dict.fromkeys(fans, 0)
    for _ in range(20):
        for fan in fans:
            trial = g.task.canary
            base = trial.version if trial and fan in g.task.tried_by else g.task.release.version
            if fan not in held and g.task.invitations.habits_of(fan).taken < base:
                seqs[fan] += 1
                held[fan] = seqs[fan], base
            if fan in held:
                (told,) = results(send(g, fan, *held[fan], 0.8))
                if told.final:
                    del held[fan]
    assert not any("nobody spoke" in n.text for n in of_kind(g.effects, Note))
    assert g.task.release.version >= 10
    assert max(sum(b.update.device == fan for b in g.task.buffer) for fan in fans) <= 2


def test_a_trial_ends_with_its_model_though_its_guard_is_gone():
    """Paused, its guard taken out, then another model: the version of the old one is withheld, never published."""
    g = tried()
    g.ask("task-pause", task="fan")
    assert g.ask("task-change", tiny_bundle(), task="fan", plan={"buffer": 2}).status == "successful"
    assert g.task.on_trial
    g.effects.clear()
    other = tiny_bundle(ModelLayout((TensorEntry("v", (5,), "parameter"),)), "other")
    assert g.ask("task-change", other, task="fan", plan={"buffer": 2}).status == "successful"
    g.ask("task-start", task="fan")
    assert [w.version for w in of_kind(g.effects, Withhold)] == [1]
    assert states_of(g.effects) == [(2, "released"), (3, "released")]
    assert (g.task.trial, g.task.release.version, g.task.release.vector.size) == (None, 3, 5)


def test_with_both_the_held_out_set_comes_first():
    """What it lets pass goes to the canary; what it does not, no device ever sees."""
    g = guarded(canary="0.25", reports="1")
    fill(g, 1, 0, 0.8)
    measured(g, 0, 0.5)
    effects = measured(g, 1, 0.6)
    assert states_of(effects) == [(1, "canary")]
    assert SaveEvaluation("fan", 1, 0.4, 0.6) in effects
    (fan,) = g.task.tried_by
    assert of_kind(send(g, fan, 9, 1, 0.8), Promote)
    assert g.task.measured.value == 0.6
    fill(g, 10, 1)
    assert not announced(measured(g, 2, 0.1), "canary")


def test_a_new_connection_hears_the_canarys_manifest_again():
    """And where there is none, that what the broker remembered of one is gone."""
    g = guarded("", canary="0.25")
    assert any(e.topic.channel == "canary" for e in of_kind(g.handle(Online(False, 1 << 20, "5")), Clear))
    fill(g, 1, 0, 0.8)
    effects = g.handle(Online(False, 1 << 20, "5"))
    assert announced(effects) == [0]
    assert announced(effects, "canary") == [1]
    assert sum(e.message.canary is not None for e in of_kind(effects, Send) if isinstance(e.message, Desired)) == 1


def test_a_canary_and_invitations_do_not_mix():
    """Refused when the plan is read, with what to do."""
    g = Gateway().add(*FANS)
    plan = {"buffer": 2, "guard": {"margin": "0.05", "canary": "0.25"}, "participation": {"name": "invited"}}
    answer = g.ask("task-create", tiny_bundle(), task="fan", plan=plan)
    assert answer.status == "failed"
    assert "canary" in answer.message


def test_a_deleted_task_clears_the_canarys_manifest():
    """No retained topic stays behind, and the number of a version that nobody will see is not given twice."""
    g = tried()
    g.effects.clear()
    g.ask("task-delete", task="fan")
    kinds = {(e.topic.kind, e.topic.channel) for e in of_kind(g.effects, Clear)}
    assert (Kind.MANIFEST, "canary") in kinds
    assert g.coordinator.last_versions["fan"] == 1


# --- rolling back ------------------------------------------------------------------------------------------------


def roll_back(g: Gateway, found, **arguments):
    """The command, with the version that the service found; its answer and effects."""
    g.counter += 1
    ask = Ask(name="task-rollback", arguments={"task": "fan", **arguments}, counter=g.counter)
    effects = g.handle(Asked(ask, f"c{g.counter}", release=found))
    return next(e.message for e in of_kind(effects, Send) if isinstance(e.message, Answer)), effects


def test_a_rollback_is_a_new_version_with_old_parameters():
    """Rule and optimizer remember what they did then; what was trained since is stale, what waits is quarantined."""
    g = Gateway().add(*FANS).start(buffer=2, server_momentum="0.5")
    fill(g, 1, 0)
    old = g.task.release
    fill(g, 2, 1)
    send(g, "fan-2", 1, 2)
    answer, effects = roll_back(g, old)
    assert answer.message == "version 3 has the parameters of version 1"
    (committed,) = of_kind(effects, CommitRelease)
    release = committed.release
    assert (release.version, release.sha256, release.used, release.share) == (3, old.sha256, (), 0.0)
    assert release.optimizer.keys() == old.optimizer.keys() != set()
    assert all((release.optimizer[name] == old.optimizer[name]).all() for name in old.optimizer)
    assert (g.task.plan.origin, g.task.plan.revision) == (3, 2)
    (gone,) = of_kind(effects, Quarantine)
    assert ([d for d, _, _ in gone.used], gone.why) == (["fan-2"], "rolled back to version 1")
    (late,) = results(send(g, "fan-3", 1, 2))
    assert (late.verdict, late.code) == ("stale", "E_STALE")
    fill(g, 3, 3)
    assert g.task.release.version == 4


def test_a_rollback_ends_a_trial():
    """Its version is withheld, and its number is not given again."""
    g = guarded()
    first = g.task.release
    fill(g, 1, 0)
    measured(g, 0, 0.8)
    measured(g, 1, 0.9)
    fill(g, 2, 1)
    _, effects = roll_back(g, first)
    assert states_of(effects) == [(2, "withheld"), (3, "released")]
    assert (g.task.plan.origin, g.task.trial, g.task.withheld) == (3, None, [])
    assert not measured(g, 2, 0.1)
    assert g.task.measured.value is None


@pytest.mark.parametrize(
    ("make", "arguments", "said"),
    [
        (lambda _: None, {}, "no version was measured"),
        (lambda _: None, {"to": 77}, "version 77 is not kept"),
        (lambda g: g.task.release, {}, "version 0 is the one that is out"),
        (lambda g: replace(g.task.release, fingerprint="0" * 32, version=7), {}, "version 7 is of another model"),
    ],
)
def test_a_rollback_to_nowhere_is_refused(make, arguments, said):
    """With what to do; nothing has changed."""
    g = Gateway().add(*FANS).start(buffer=2)
    answer, effects = roll_back(g, make(g), **arguments)
    assert answer.status == "failed"
    assert said in answer.message
    assert "--to" in answer.hint
    assert not of_kind(effects, CommitRelease)


def test_a_command_is_answered_again_after_a_crash():
    """Its effects were there, its answer was not: asked once more with the same words, it was successful."""
    g = Gateway().add(*FANS)
    assert g.ask("task-create", tiny_bundle(), task="fan", plan={}).status == "successful"
    at = g.coordinator
    again = Gateway(Coordinator("demo", at.fleet, at.tasks, at.operator_counter, at.operator_done))
    assert again.ask("task-create", tiny_bundle(), task="fan", plan={}).status == "successful"
    assert not of_kind(again.effects, CommitRelease)
    failed = Gateway(Coordinator("demo", at.fleet, at.tasks, at.operator_counter + 1, at.operator_done))
    failed.counter = at.operator_counter
    assert failed.ask("task-create", tiny_bundle(), task="fan", plan={}).status == "failed"
