"""Desired configuration at the device: what can be is kept and put in force; else the last good one stays."""

import contextlib
from dataclasses import fields

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge_agent.config
from edge_agent import events as e
from edge_agent.commands import Configured
from edge_agent.configuring import AgentSettings, adjusted
from edge_agent.gate import Reading
from fl_protocol.adjustable import ADJUSTABLE, Choice, ClockTime, Flag, Integers, Number
from fl_protocol.errors import ConfigError
from fl_protocol.messages import Desired, Reported
from fl_protocol.topics import Kind
from tests.edge_agent.rig import TASK, Rig, all_of, sent

GOOD = {"gate.max_temperature_c": "50", "log.level": "debug", "health.measure_s": "2.5"}


def want(rig: Rig, revision: int | None, configuration: dict[str, str] | None) -> list[e.Effect]:
    """The gateway wants it."""
    counter = rig.count(Kind.DESIRED)
    desired = Desired(tasks=(TASK,), configuration=configuration, revision=revision, counter=counter)
    return rig.hear(Kind.DESIRED, desired)


def reported(effects: list[e.Effect]) -> list[Reported]:
    """What the device told of it."""
    return [send.message for send in sent(Kind.REPORTED, effects) if isinstance(send.message, Reported)]


def test_it_is_kept_then_in_force_then_told() -> None:
    """In this order; the gate follows it at once."""
    rig = Rig()
    rig.connect()
    rig.do(e.Measured(Reading(temperature_c=60.0)))
    assert rig.agent._gate.may
    effects = want(rig, 3, GOOD)
    kinds = [type(effect) for effect in effects]
    assert kinds.index(e.SaveConfigured) < kinds.index(e.Adjust)
    assert all_of(e.Adjust, effects) == [e.Adjust(2.5, "debug")]
    (told,) = reported(effects)
    assert (told.revision, told.configuration, told.refused) == (3, GOOD, None)
    assert sent(Kind.REPORTED, effects)[0].retain
    assert rig.agent._gate.because == "too hot: above 50 °C"


def test_what_is_wanted_no_longer_is_as_the_own_file_has_it() -> None:
    """Key by key."""
    rig = Rig()
    rig.connect()
    rig.do(e.Measured(Reading(temperature_c=60.0)))
    want(rig, 1, GOOD)
    want(rig, 2, {"log.level": "debug"})
    rig.do(e.Measured(Reading(temperature_c=40.0)))
    rig.do(e.Measured(Reading(temperature_c=60.0)))
    assert rig.agent._gate.may
    (told,) = reported(want(rig, 3, {}))
    assert (told.revision, told.configuration) == (3, {})
    assert rig.agent._settings == AgentSettings(health_s=30.0, predict_s=0.0, state_s=0.0)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"gate.max_temperatur_c": "50"}, "did you mean `gate.max_temperature_c`"),
        ({"gate.min_battery_pct": "101"}, "a number from 0 to 100"),
        ({"gate.start": "25:00"}, "a local time"),
        ({"budget.metered": "/bin/sh"}, "cannot be set from afar"),
        ({"inference.tell_numbers": "true"}, "cannot be set from afar"),
        ({"broker.host": "elsewhere"}, "cannot be set from afar"),
        ({"log.level": "loud"}, "one of debug"),
        ({"health.publish_s": "nan"}, "a number from"),
        ({**GOOD, "health.publish_s": "-1"}, "a number from"),
    ],
)
def test_a_bad_one_leaves_the_last_good_one_in_force(bad: dict[str, str], why: str) -> None:
    """Whole: not a key of it. The reason is told, and the disk keeps the good one."""
    rig = Rig()
    rig.connect()
    want(rig, 1, GOOD)
    before = rig.agent._settings
    effects = want(rig, 2, bad)
    (told,) = reported(effects)
    assert (told.revision, told.configuration, told.refused, told.code) == (1, GOOD, 2, "E_SCHEMA")
    assert why in told.why
    assert rig.agent._settings == before
    assert not all_of(e.SaveConfigured, effects)
    assert rig.restored.configured.revision == 1
    (told,) = reported(want(rig, 3, {"log.level": "info"}))
    assert (told.revision, told.refused) == (3, None)


def test_a_start_without_a_network_begins_with_the_last_good_one() -> None:
    """From the first event on."""
    rig = Rig()
    rig.connect()
    want(rig, 3, GOOD)
    rig.restart()
    effects = rig.do(e.Measured(Reading(temperature_c=60.0)))
    assert all_of(e.Adjust, effects) == [e.Adjust(2.5, "debug")]
    assert rig.agent._gate.because == "too hot: above 50 °C"
    assert reported(rig.connect() + want(rig, 3, GOOD))[0].revision == 3


def test_what_this_software_no_longer_knows_is_not_in_force() -> None:
    """An older agent was installed: its own file holds, and it says so once it is asked."""
    rig = Rig()
    rig.restored = e.Restored(1, "0123456789abcdef", configured=Configured(4, {"gate.moon": "full"}))
    rig.start()
    rig.connect()
    (told,) = reported(want(rig, 4, {"gate.moon": "full"}))
    assert (told.revision, told.refused) == (0, 4)


def test_it_is_told_once_a_connection() -> None:
    """Every other word of the gateway brings the same again."""
    rig = Rig()
    rig.connect()
    assert not reported(want(rig, None, None))
    assert len(reported(want(rig, 1, GOOD))) == 1
    assert not reported(want(rig, 1, GOOD))
    rig.disconnect()
    rig.connect()
    assert len(reported(want(rig, 1, GOOD))) == 1


def test_with_a_full_disk_the_last_good_one_stays() -> None:
    """Until there is room."""
    rig = Rig()
    rig.connect()
    rig.disk_full = True
    assert not reported(want(rig, 1, GOOD))
    assert not all_of(e.Adjust, rig.asked)
    rig.disk_full = False
    assert reported(rig.wait(60))[0].revision == 1


# --- the table of keys ---

SECTIONS = {
    "gate": edge_agent.config.GateConfig,
    "budget": edge_agent.config.BudgetConfig,
    "inference": edge_agent.config.InferenceConfig,
    "health": edge_agent.config.HealthConfig,
    "log": edge_agent.config.LogConfig,
}


@given(st.data())
def test_what_the_table_takes_the_configuration_takes(data: st.DataObject) -> None:
    """For every key and value: the gateway lets nothing through that the device's own file could not say."""
    key = data.draw(st.sampled_from(sorted(ADJUSTABLE)))
    reader = ADJUSTABLE[key]
    match reader:
        case Number(least, most):
            low, high = max(least, -1e6), min(most, 1e6)
            text = f"{data.draw(st.floats(low, high)):.3f}"
        case Choice(words):
            text = data.draw(st.sampled_from(words))
        case Flag():
            text = data.draw(st.sampled_from(["true", "false"]))
        case ClockTime():
            text = f"{data.draw(st.integers(0, 23)):02d}:{data.draw(st.integers(0, 59)):02d}"
        case Integers():
            text = ",".join(str(n) for n in data.draw(st.lists(st.integers(-9, 99), min_size=1, max_size=5)))
    value = reader.read(text)
    if value is None:
        return  # rounding took it past a bound
    section, _, name = key.partition(".")
    assert getattr(msgspec.convert({name: value}, SECTIONS[section]), name) == value
    assert adjusted(AgentSettings(), {key: text}) is not None


@given(st.text(max_size=40), st.text(max_size=40))
def test_noise_is_a_config_error(key: str, text: str) -> None:
    """Any key, any value."""
    for name in (key, "gate.power_modes", "health.publish_s", "gate.start"):
        with contextlib.suppress(ConfigError):
            assert adjusted(AgentSettings(), {name: text})


def test_every_key_of_gate_may_be_set_and_no_program() -> None:
    """A new key of the gate must be thought about; what names a program stays with whoever has the file."""
    of_gate = {f"gate.{field.name}" for field in fields(edge_agent.config.GateConfig)}
    assert of_gate == {key for key in ADJUSTABLE if key.startswith("gate.")}
    of_budget = {f"budget.{field.name}" for field in fields(edge_agent.config.BudgetConfig)}
    assert of_budget - set(ADJUSTABLE) == {"budget.metered"}
