"""Commands and desired configuration at the gateway: open until answered or too late, and no trace left behind."""

import itertools
from typing import Any

import pytest

from broker_aggregator.commanding import KEPT_COMMANDS, Commanding
from broker_aggregator.events import (
    Asked,
    Clear,
    Effect,
    Online,
    Progressed,
    Received,
    RemoveCommand,
    SaveCommand,
    SaveConfiguration,
    SaveState,
    Send,
    Tick,
)
from fl_protocol.messages import (
    MAX_COMMANDS,
    Answer,
    Ask,
    CommandProgress,
    CommandStatus,
    Desired,
    DeviceCommand,
    DeviceState,
    Reported,
)
from fl_protocol.topics import Kind, Topic
from tests.support.fleet import FLEET, Gateway, of_kind

NOW_MS = 1_800_000_000_000
counter = itertools.count(1)


def gateway() -> Gateway:
    return Gateway().add("fan-0", "fan-1")


def dated(g: Gateway, name: str, now_ms: int = NOW_MS, **arguments: object) -> tuple[Answer, list[Effect]]:
    """An operator's command, and all that comes of it."""
    g.counter += 1
    asked = Asked(Ask(name=name, arguments=arguments, counter=g.counter), f"c{g.counter}", now_ms=now_ms)
    effects = g.handle(asked)
    return next(e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Answer)), effects


def give(g: Gateway, name: str = "pause", device: str = "fan-0", cid: str = "a1", **more: Any) -> list[Effect]:
    """Tell a device something."""
    given = {"arguments": {}, "deadline_s": 60, **more}
    answer, effects = dated(g, "device-command", device=device, command=name, cid=cid, **given)
    assert answer.status == "successful", answer
    return effects


def progress(
    g: Gateway, status: CommandStatus, cid: str = "a1", device: str = "fan-0", name: str = "pause", **more: Any
) -> list[Effect]:
    """The device's word."""
    topic = Topic(Kind.DEVICE_COMMAND, FLEET, device=device, name=name, cid=cid)
    return g.handle(Progressed(topic, CommandProgress(status=status, **more), NOW_MS + 5000))


def desired(effects: list[Effect], device: str = "fan-0") -> list[Desired]:
    """What a device is told."""
    return [
        e.message
        for e in effects
        if isinstance(e, Send) and isinstance(e.message, Desired) and e.topic.device == device
    ]


def words(effects: list[Effect]) -> list[DeviceCommand]:
    """The commands' own words."""
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, DeviceCommand)]


def cleared(effects: list[Effect]) -> list[str]:
    """The commands whose topics were cleared."""
    return [e.topic.cid for e in of_kind(effects, Clear) if e.topic.kind is Kind.DEVICE_COMMAND]


def test_a_command_is_named_and_retained_until_it_is_answered() -> None:
    """Stored, named in `twin/desired`, said; then stored with its end, cleared, and named no more."""
    g = gateway()
    effects = give(g, arguments={"minutes": "30"})
    assert desired(effects)[-1].commands == {"a1": "pause"}
    assert [(w.arguments, w.deadline_s) for w in words(effects)] == [({"minutes": "30"}, 60)]
    assert next(e for e in effects if isinstance(e, Send) and isinstance(e.message, DeviceCommand)).retain
    assert of_kind(progress(g, "executing"), SaveCommand)[0].command.status == "executing"
    effects = progress(g, "successful", why="for 30 minutes")
    assert desired(effects)[-1].commands is None
    assert cleared(effects) == ["a1"]
    record = of_kind(effects, SaveCommand)[0].command
    assert (record.status, record.why, record.ended_ms) == ("successful", "for 30 minutes", NOW_MS + 5000)


def test_nobody_else_is_told() -> None:
    """And another device cannot answer."""
    g = gateway()
    assert not desired(give(g), "fan-1")
    assert cleared(progress(g, "successful", device="fan-1")) == ["a1"]  # its own topic, on which nothing is asked
    assert g.coordinator.commanding.open_of("fan-0") == {"a1": "pause"}
    assert not progress(g, "successful", device="nobody")[0:0]


def test_what_is_not_answered_in_time_has_failed() -> None:
    """With the reason; a later word changes nothing, and is taken off the topic."""
    g = gateway()
    give(g)
    give(g, "report", cid="b2")
    progress(g, "executing", "b2", name="report")
    assert not of_kind(g.handle(Tick(now_ms=NOW_MS + 59_999)), SaveCommand)
    effects = g.handle(Tick(now_ms=NOW_MS + 60_000))
    records = {s.command.id: s.command for s in of_kind(effects, SaveCommand)}
    assert {(r.status, r.code) for r in records.values()} == {("failed", "E_DEADLINE")}
    assert "did not answer within 60 s" in records["a1"].why
    assert "began, and did not end" in records["b2"].why
    assert set(cleared(effects)) == {"a1", "b2"}
    late = progress(g, "successful")
    assert cleared(late) == ["a1"]
    assert not of_kind(late, SaveCommand)


def test_a_birth_and_a_forgetful_broker_hear_it_again() -> None:
    """With the seconds that are left; another word of the same connection does not."""
    g = gateway()
    give(g)

    def born(boot: int, n: int) -> list[Effect]:
        return g.handle(Received("fan-0", DeviceState(state="ready", boot=boot, bseq=1, n=n), now_ms=NOW_MS + 20_000))

    assert [w.deadline_s for w in words(born(1, 1))] == [40]
    assert not words(born(1, 2))
    assert len(words(born(2, 1))) == 1
    effects = g.handle(Online(False, 1 << 20, "5", NOW_MS + 30_000))
    assert [w.deadline_s for w in words(effects)] == [30]
    assert desired(effects)[-1].commands == {"a1": "pause"}


def test_a_restarted_gateway_goes_on_with_what_is_open() -> None:
    """From what the store holds."""
    g = gateway()
    give(g)
    give(g, "report", cid="b2")
    progress(g, "successful", "b2", name="report")
    again = Commanding(dict(g.coordinator.commanding.commands), {})
    assert again.open_of("fan-0") == {"a1": "pause"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"command": "make-coffee"}, "unknown command"),
        ({"command": "pause", "arguments": {"minutes": "x"}}, "minutes of pause"),
        ({"command": "pause", "arguments": {"minutes": 3}}, "table of texts"),
        ({"device": "nobody"}, "no device nobody"),
        ({"deadline_s": 0}, "deadline_s = 0"),
        ({"cid": "a/b"}, "cid"),
    ],
)
def test_commands_that_cannot_be_are_refused(changes: dict[str, object], said: str) -> None:
    """Before anybody hears of them."""
    given = {"device": "fan-0", "command": "report", "cid": "x", "deadline_s": 9, "arguments": {}, **changes}
    answer, effects = dated(gateway(), "device-command", **given)
    assert (answer.status, bool(answer.hint)) == ("failed", True)
    assert said in answer.message
    assert not of_kind(effects, SaveCommand)


def test_numbers_are_bounded() -> None:
    """Open ones a device, and those that are over."""
    g = gateway()
    for number in range(MAX_COMMANDS):
        give(g, cid=f"c-{number}")
    answer, _ = dated(g, "device-command", device="fan-0", command="pause", cid="more", deadline_s=9)
    assert "16 open commands" in answer.message
    for number in range(MAX_COMMANDS):
        progress(g, "successful", f"c-{number}")
    removed = []
    for number in range(KEPT_COMMANDS):
        give(g, cid=f"d-{number}")
        removed += of_kind(progress(g, "successful", f"d-{number}"), RemoveCommand)
    assert len(removed) == MAX_COMMANDS
    assert len(g.coordinator.commanding.commands) == KEPT_COMMANDS


def test_a_revoked_device_has_no_commands() -> None:
    """They end with it."""
    g = gateway()
    give(g)
    answer, effects = dated(g, "device-revoke", device="fan-0")
    assert answer.status == "successful"
    assert [(s.command.status, s.command.code) for s in of_kind(effects, SaveCommand)] == [("failed", "E_AUTH")]
    assert cleared(effects) == ["a1"]


# --- configuration ---


def configure(g: Gateway, device: str, **settings: str | None) -> tuple[Answer, list[Effect]]:
    """Keys with two underscores for their dot."""
    changes = {key.replace("__", "."): text for key, text in settings.items()}
    return dated(g, "device-configure", device=device, settings=changes)


def test_one_devices_stands_above_what_is_wanted_of_all() -> None:
    """Key by key; each change is a higher revision for everybody whom it concerns."""
    g = gateway()
    _, effects = configure(g, "*", log__level="debug", gate__min_battery_pct="50")
    assert {desired(effects, d)[-1].revision for d in ("fan-0", "fan-1")} == {1}
    _, effects = configure(g, "fan-0", log__level="error")
    assert not desired(effects, "fan-1")
    said = desired(effects)[-1]
    assert (said.revision, said.configuration) == (2, {"log.level": "error", "gate.min_battery_pct": "50"})
    _, effects = configure(g, "*", gate__min_battery_pct=None)
    assert (desired(effects)[-1].revision, desired(effects)[-1].configuration) == (3, {"log.level": "error"})
    assert desired(effects, "fan-1")[-1].configuration == {"log.level": "debug"}
    _, effects = configure(g, "fan-0", log__level=None)
    assert (desired(effects)[-1].revision, desired(effects)[-1].configuration) == (4, {"log.level": "debug"})


def test_without_a_word_nothing_is_said_of_it() -> None:
    """A fleet that never was configured hears what it always heard."""
    g = gateway()
    said = desired(give(g))[-1]
    assert (said.configuration, said.revision) == (None, None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"log__level": "loud"}, "log.level = 'loud'"),
        ({"budget__metered": "/bin/sh"}, "cannot be set from afar"),
        ({"gate__end": None}, "cannot be taken back"),
        ({}, "`settings` is empty"),
    ],
)
def test_a_bad_configuration_is_refused_whole(settings: dict[str, str | None], said: str) -> None:
    """No device hears of it."""
    answer, effects = configure(gateway(), "fan-0", **{"health__state_s": "5", **settings} if settings else {})
    assert answer.status == "failed"
    assert said in answer.message
    assert not of_kind(effects, SaveConfiguration)
    assert not desired(effects)


def test_what_a_device_reports_is_stored() -> None:
    """Also what it refuses."""
    g = gateway()
    reported = Reported(revision=1, refused=2, code="E_SCHEMA", why="no")
    effects = g.handle(Received("fan-0", reported))
    assert SaveState("fan-0", reported) in effects
