"""Commands at the device: believed only if signed, open and new; carried out once; pauses that outlive the process."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import events as e
from edge_agent.gate import Reading
from edge_agent.pausing import PAUSED
from fl_protocol.codec import encode
from fl_protocol.device_commands import DEVICE_COMMANDS, UPDATE
from fl_protocol.messages import CommandProgress, Desired, DeviceCommand
from fl_protocol.signing import seal
from fl_protocol.topics import Kind
from fl_protocol.transport import Delivery
from tests.edge_agent.rig import (
    BUNDLE,
    BUNDLE_BYTES,
    FLEET,
    FLEET_KEY,
    STRANGERS_KEY,
    TASK,
    Rig,
    all_of,
    complaints,
    sent,
    states,
    topic,
)

CID = "0123abcd"
HOT = Reading(temperature_c=99.0)


def open_commands(rig: Rig, **names: str) -> list[e.Effect]:
    """The gateway names the open commands, cid -> name."""
    commands = {cid.replace("_", "-"): name for cid, name in names.items()}
    return rig.hear(Kind.DESIRED, Desired(tasks=(TASK,), commands=commands, counter=rig.count(Kind.DESIRED)))


def say(rig: Rig, name: str, cid: str = CID, *, counter: int = 1, **arguments: str) -> list[e.Effect]:
    """The gateway's signed word."""
    command = DeviceCommand(arguments=arguments, deadline_s=60, counter=counter)
    return rig.hear(Kind.DEVICE_COMMAND, command, name=name, cid=cid)


def give(rig: Rig, name: str, cid: str = CID, **arguments: str) -> list[e.Effect]:
    """A command, from its naming on."""
    return open_commands(rig, **{cid: name}) + say(rig, name, cid, **arguments)


def told(effects: list[e.Effect], name: str, cid: str = CID) -> list[CommandProgress]:
    """What the device published of it."""
    messages = [send.message for send in sent(Kind.DEVICE_COMMAND, effects, name=name, cid=cid)]
    assert all(isinstance(message, CommandProgress) for message in messages)
    return messages  # type: ignore[return-value]


def statuses(effects: list[e.Effect], name: str, cid: str = CID) -> list[str]:
    """Its words."""
    return [progress.status for progress in told(effects, name, cid)]


def connected() -> Rig:
    rig = Rig()
    rig.connect()
    return rig


# --- whom it believes ---


def test_it_follows_exact_topics_of_open_commands() -> None:
    """Subscribed when they are named, unsubscribed when they are not, and again at each connection."""
    rig = connected()
    name = topic(Kind.DEVICE_COMMAND, name="report", cid=CID)
    assert (((name, 1),),) in [(s.filters,) for s in all_of(e.Subscribe, open_commands(rig, **{CID: "report"}))]
    rig.disconnect()
    assert (name, 1) in [pair for s in all_of(e.Subscribe, rig.connect()) for pair in s.filters]
    assert (name,) in [u.filters for u in all_of(e.Unsubscribe, open_commands(rig))]


@pytest.mark.parametrize("name", DEVICE_COMMANDS)
def test_it_is_told_that_it_is_executed_and_that_it_has_ended(name: str) -> None:
    """In this order, retained, each word on the disk before it is said."""
    rig = connected()
    effects = give(rig, name, **({"sha256": "0" * 64, "size": "1000"} if name == UPDATE else {}))
    said = sent(Kind.DEVICE_COMMAND, effects, name=name, cid=CID)
    assert [s.retain for s in said] == [True] * len(said)
    assert statuses(effects, name)[0] == "executing"
    for progress in told(effects, name):
        saves = [x for x in effects if isinstance(x, e.SaveCommand) and x.command.progress == progress]
        sends = [x for x in effects if isinstance(x, e.Send) and x.message == progress]
        assert effects.index(saves[0]) < effects.index(sends[0])


@pytest.mark.parametrize(
    ("forge", "code"),
    [
        (lambda _: encode(DeviceCommand(counter=9)), "E_SIG"),
        (lambda name: seal(DeviceCommand(counter=9), STRANGERS_KEY, FLEET, name), "E_SIG"),
        (lambda name: seal(DeviceCommand(counter=9), FLEET_KEY, FLEET, name + "0"), "E_SIG"),
        (lambda name: seal(DeviceCommand(counter=9), FLEET_KEY, "other", name), "E_SIG"),
        (lambda _: b"{", "E_SCHEMA"),
        (lambda _: b'{"sig": "00", "status": "executing"}', "E_SIG"),
    ],
)
def test_what_the_fleet_did_not_sign_is_never_carried_out(forge: Callable[[str], bytes], code: str) -> None:
    """Unsigned, a stranger's, another command's, another fleet's, nonsense."""
    rig = connected()
    open_commands(rig, **{CID: "forget-data"})
    name = topic(Kind.DEVICE_COMMAND, name="forget-data", cid=CID)
    effects = rig.do(Delivery(name, forge(name), True, None))
    assert [event.code for event in complaints(effects)] == [code]
    assert not all_of(e.EraseExamples, effects)
    assert not all_of(e.SaveCommand, effects)


def test_its_own_words_and_cleared_topics_are_passed_over() -> None:
    """The broker echoes what the device publishes there."""
    rig = connected()
    give(rig, "report")
    for echo in (b"", *(encode(CommandProgress(status=s)) for s in ("executing", "successful", "failed", "rejected"))):
        name = topic(Kind.DEVICE_COMMAND, name="report", cid=CID)
        assert not rig.do(Delivery(name, echo, True, None))


def test_an_old_command_played_again_is_refused() -> None:
    """One that is not open any more, and a lower counter of one that is."""
    rig = connected()
    give(rig, "forget-data")
    open_commands(rig)
    effects = say(rig, "forget-data", counter=1)
    assert [event.code for event in complaints(effects)] == ["E_DOWNGRADE"]
    assert not all_of(e.EraseExamples, effects)
    open_commands(rig, **{CID: "pause"})
    say(rig, "pause", counter=5)
    effects = say(rig, "pause", counter=4)
    assert [event.code for event in complaints(effects)] == ["E_DOWNGRADE"]
    assert not all_of(e.SavePaused, effects)


def test_a_list_that_nobody_signed_opens_nothing() -> None:
    """A cleared `twin/desired` neither: commands stay as they were."""
    rig = connected()
    name = topic(Kind.DESIRED)
    rig.do(Delivery(name, seal(Desired(commands={CID: "pause"}, counter=9), STRANGERS_KEY, FLEET, name), False, None))
    assert complaints(say(rig, "pause"))[-1].code == "E_DOWNGRADE"
    open_commands(rig, **{CID: "report"})
    rig.do(Delivery(name, b"", False, None))
    assert statuses(say(rig, "report"), "report") == ["executing", "successful"]


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("make-coffee", {}, "unknown command"),
        ("pause", {"minutes": "soon"}, "minutes of pause is 'soon'"),
        ("pause", {"minutes": "0"}, "minutes of pause is '0'"),
        ("collect-logs", {"lines": "9999"}, "lines of collect-logs"),
        ("report", {"x": "1"}, "no argument 'x'"),
    ],
)
def test_what_cannot_be_is_rejected_with_the_reason(name: str, arguments: dict[str, str], why: str) -> None:
    """E_COMMAND, and nothing is done."""
    rig = connected()
    (progress,) = told(give(rig, name, **arguments), name)
    assert (progress.status, progress.code) == ("rejected", "E_COMMAND")
    assert why in progress.why


# --- once ---


def test_a_retained_command_is_carried_out_once() -> None:
    """However often the broker brings it, over connections and restarts; it is told again how it ended."""
    rig = connected()
    assert len(all_of(e.EraseExamples, give(rig, "forget-data"))) == 1
    for turn in range(2, 6):
        rig.restart() if turn % 2 else rig.disconnect()
        effects = rig.connect() + open_commands(rig, **{CID: "forget-data"}) + say(rig, "forget-data", counter=turn)
        assert not all_of(e.EraseExamples, effects)
        assert set(statuses(effects, "forget-data")) == {"successful"}


def test_commands_are_independent() -> None:
    """One that waits holds no other up; each has its own end, and is forgotten alone."""
    rig = connected()
    open_commands(rig, a="train-now", b="report", c="make-coffee")
    assert statuses(say(rig, "train-now", "a"), "train-now", "a") == ["executing"]
    assert statuses(say(rig, "report", "b"), "report", "b") == ["executing", "successful"]
    assert statuses(say(rig, "make-coffee", "c"), "make-coffee", "c") == ["rejected"]
    effects = open_commands(rig, a="train-now")
    assert {f.cid for f in all_of(e.ForgetCommand, effects)} == {"b", "c"}
    assert [c.cid for c in rig.restored.commands] == ["a"]


class KilledError(Exception):
    """kill -9, at a chosen effect."""


def run_with_a_kill(name: str, after: int, arguments: dict[str, str]) -> tuple[Rig, list[e.Effect], bool]:
    """Give a command and kill the process when it has asked for `after` effects; then start it again and reconnect.

    Also whether the disk had it at the kill.
    """
    rig = connected()
    open_commands(rig, **{CID: name})
    perform, count = rig._perform, [after]

    def dying(effect: e.Effect) -> Any:
        if count[0] == 0:
            raise KilledError
        count[0] -= 1
        return perform(effect)

    rig._perform = dying  # type: ignore[method-assign]
    before: list[e.Effect] = []
    with contextlib.suppress(KilledError):
        before = say(rig, name, counter=1, **arguments)
    rig._perform = perform  # type: ignore[method-assign]
    kept = bool(rig.restored.commands)
    rig.restart()
    after_it = rig.connect() + open_commands(rig, **{CID: name}) + say(rig, name, counter=2, **arguments)
    return rig, before + after_it, kept


@given(
    name=st.sampled_from([n for n in DEVICE_COMMANDS if n not in ("train-now", UPDATE)]),
    after=st.integers(0, 12),
)
@settings(max_examples=80, deadline=None)
def test_killed_at_any_effect_it_is_carried_out_to_its_end(name: str, after: int) -> None:
    """Idempotent commands are done again where they were interrupted: the last word is always `successful`."""
    rig, effects, _ = run_with_a_kill(name, after, {"minutes": "30"} if name == "pause" else {})
    assert statuses(effects, name)[-1] == "successful"
    assert [c.progress.status for c in rig.restored.commands] == ["successful"]
    if name == "pause":
        assert rig.restored.paused is not None


@pytest.mark.parametrize("after", range(4))
def test_a_training_that_was_asked_for_is_begun_once_at_most(after: int) -> None:
    """Killed before the disk has it, it is new; after that it has failed, and says so."""
    rig, effects, kept = run_with_a_kill("train-now", after, {})
    words = statuses(effects, "train-now")
    if not kept:
        assert words[-1] == "executing"
    else:
        assert words[-1] == "failed"
        assert "in the middle" in told(effects, "train-now")[-1].why
        assert not rig.agent._commanding.hurried


def test_with_a_full_disk_nothing_is_begun() -> None:
    """What the disk cannot keep would be done twice."""
    rig = connected()
    rig.disk_full = True
    effects = give(rig, "forget-data")
    assert not all_of(e.EraseExamples, effects)
    assert not sent(Kind.DEVICE_COMMAND, effects, name="forget-data", cid=CID)
    rig.disk_full = False
    assert statuses(rig.wait(60), "forget-data") == ["executing", "successful"]


# --- what each does ---


def test_a_pause_holds_training_and_survives_a_restart() -> None:
    """Until `resume`; a training in hand stops between two steps; the state says why."""
    rig = Rig()
    rig.ready_to_train()
    effects = give(rig, "pause")
    assert e.Pause(True) in effects
    rig.restart()
    effects = rig.connect() + rig.do(e.Measured(Reading()))
    assert states(effects)[-1].why == PAUSED
    rig.desire(TASK)
    assert not all_of(e.Train, rig.plan() + rig.announce(1) + rig.broadcast(1) + rig.wait(3600))
    effects = give(rig, "resume", "r1")
    assert all_of(e.Train, effects)
    assert rig.restored.paused is None


def test_a_pause_of_minutes_ends_by_itself() -> None:
    """By the device's own clock; another pause takes its place."""
    rig = connected()
    give(rig, "pause", minutes="30")
    give(rig, "pause", "x2", minutes="10")
    rig.wait(599)
    assert rig.agent._gate.because == PAUSED
    rig.wait(2)
    assert rig.agent._gate.may
    assert rig.restored.paused is None


@pytest.mark.parametrize(
    ("local_s", "left_s"), [(1000.0 + 1500, 300), (None, 1800), (0.0, 1800), (1000.0 + 1_000_000, 0)]
)
def test_after_a_restart_the_clock_says_what_is_left(local_s: float | None, left_s: float) -> None:
    """Without one, or with one that was set back, the minutes begin anew, and no more than that."""
    rig = connected()
    rig.do(e.Measured(Reading(local_s=1000.0)))
    give(rig, "pause", minutes="30")
    rig.restart()
    rig.do(e.Measured(Reading(local_s=local_s)))
    if left_s:
        rig.wait(left_s - 1)
        assert not rig.agent._gate.may
    rig.wait(2)
    assert rig.agent._gate.may


def test_a_paused_device_says_every_reason() -> None:
    """The operator's and the sensors'."""
    rig = connected()
    give(rig, "pause")
    rig.do(e.Measured(HOT))
    assert rig.agent._gate.because == f"{PAUSED}; too hot: above 75 °C"


def test_train_now_waits_for_no_slot_and_no_patience() -> None:
    """A device that waits for an invitation trains at once; the command ends with the training."""
    rig = connected()
    rig.desire(TASK)
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.plan(participation={"name": "invited"})
    rig.announce(0)
    assert not all_of(e.Train, rig.broadcast(0))
    effects = give(rig, "train-now")
    (order,) = all_of(e.Train, effects)
    assert statuses(effects, "train-now") == ["executing"]
    (end,) = told(rig.train(order), "train-now")
    assert (end.status, end.why) == ("successful", f"{TASK}: trained from version 0")


def test_train_now_tries_again_at_once_after_a_failure() -> None:
    """And says so when it fails again."""
    rig = Rig()
    rig.ready_to_train()
    rig.do(e.TrainingFailed(TASK, None, "out of memory"))
    effects = give(rig, "train-now")
    assert len(all_of(e.Train, effects)) == 1
    (end,) = told(rig.do(e.TrainingFailed(TASK, None, "out of memory again")), "train-now")
    assert (end.status, end.why) == ("failed", f"{TASK}: out of memory again")


def test_train_now_never_passes_the_gate() -> None:
    """Rejected, with the reason."""
    rig = connected()
    rig.do(e.Measured(HOT))
    rig.desire(TASK)
    end = told(give(rig, "train-now"), "train-now")[-1]
    assert (end.status, end.why) == ("rejected", "too hot: above 75 °C")


def test_train_now_without_anything_new_is_rejected() -> None:
    """Nobody is made to train a version twice."""
    rig = Rig()
    order = rig.ready_to_train()
    (update,) = rig.delivered(rig.train(order))
    end = told(give(rig, "train-now", "w1"), "train-now", "w1")[-1]
    assert "waits for a verdict" in end.why
    rig.verdict(update, "accepted")
    end = told(give(rig, "train-now"), "train-now")[-1]
    assert (end.status, end.code) == ("rejected", "E_COMMAND")
    assert "version 0 has been trained from already" in end.why


def test_train_now_has_a_deadline() -> None:
    """What it waited for is told."""
    rig = connected()
    give(rig, "train-now")
    (end,) = told(rig.wait(61), "train-now")
    assert (end.status, end.code) == ("failed", "E_DEADLINE")
    assert "waiting for the plan" in end.why
    assert not rig.agent._commanding.hurried


def test_a_report_is_read_now() -> None:
    """Not the last measurement."""
    rig = connected()
    rig.reading = Reading(temperature_c=55.5)
    end = told(give(rig, "report"), "report")[-1]
    assert end.health is not None
    assert end.health.temperature_c == 55.5


def test_examples_that_are_gone_are_looked_for_again() -> None:
    """`forget-data` says how many there were."""
    rig = Rig()
    rig.ready_to_train()
    effects = give(rig, "forget-data")
    assert told(effects, "forget-data")[-1].why == "100 examples erased"
    assert all_of(e.ReadExamples, effects)


def test_logs_come_with_the_answer() -> None:
    """As many as were asked for."""
    rig = connected()
    end = told(give(rig, "collect-logs", lines="3"), "collect-logs")[-1]
    assert end.lines == ("line 0", "line 1", "line 2")
    assert json.loads(encode(end))["lines"] == ["line 0", "line 1", "line 2"]
