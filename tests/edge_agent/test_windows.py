"""Messages become examples: joined channels, windows by count and by time, gaps, labels; and no payload ends it."""

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.payloads import Reason, RefusedError, label_of, number_of, time_of, value_at
from edge_agent.sensing import SensorsConfig, check_sensors
from edge_agent.windows import Example, Windows, used
from fl_protocol.errors import ConfigError

WALL = 1_800_000_000.0
RMS = {"name": "rms", "topic": "fan/sensor/rms/state"}
HEAT = {"name": "heat", "topic": "zigbee2mqtt/motor", "field": "temperature", "min": -40.0, "max": 125.0}
WET = {"name": "wet", "topic": "zigbee2mqtt/motor", "field": "humidity"}


def config(*channels: dict[str, Any], label: dict[str, Any] | None = None, **window: Any) -> SensorsConfig:
    """A `[sensors]` section, as TOML gives it."""
    table: dict[str, Any] = {"channels": list(channels), "window": window or {"count": 3}}
    if label:
        table["label"] = label
    read = msgspec.convert(table, SensorsConfig)
    check_sensors(read)
    return read


def say(windows: Windows, topic: str, payload: object, now: float, **how: Any) -> list[Example]:
    """A message; not bytes: JSON for an object, else text."""
    if not isinstance(payload, bytes):
        payload = (json.dumps(payload) if isinstance(payload, dict) else str(payload)).encode()
    return windows.handle(topic, payload, now, wall_s=WALL + now, **how)


def hear(windows: Windows, *values: float, start: float = 0.0) -> list[Example]:
    """ESPHome's numbers, a second apart."""
    return [e for i, value in enumerate(values) for e in say(windows, RMS["topic"], value, start + i)]


# --- payloads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "field", "number"),
    [
        (b"0.25", "", 0.25),
        (b" -3e2\n", "", -300.0),
        (b"ON", "", 1.0),
        (b"OFF", "", 0.0),
        (b'{"temperature": 21.5}', "temperature", 21.5),
        (b'{"accel": {"x": 1}}', "accel.x", 1.0),
        (b'{"accel.x": 2, "accel": {"x": 1}}', "accel.x", 2.0),
        (b'{"occupancy": true}', "occupancy", 1.0),
        (b'{"state": "ON"}', "state", 1.0),
        (b'{"t": "7"}', "t", 7.0),
    ],
)
def test_numbers_of_esphome_and_zigbee2mqtt(payload: bytes, field: str, number: float) -> None:
    """Plain text, a field, a field within; switches are 1 and 0."""
    assert number_of(value_at(payload, field)) == number


@pytest.mark.parametrize(
    ("payload", "field", "reason"),
    [
        (b"nan", "", Reason.NOT_A_NUMBER),
        (b"inf", "", Reason.NOT_A_NUMBER),
        (b"unavailable", "", Reason.NOT_A_NUMBER),
        (b"", "", Reason.NOT_A_NUMBER),
        (b"1_000", "", Reason.NOT_A_NUMBER),
        (b"\xff\xfe", "", Reason.NOT_A_NUMBER),
        (b"1" * 65, "", Reason.NOT_A_NUMBER),
        (b"1e39", "", Reason.OUT_OF_RANGE),
        (b"126", "", Reason.OUT_OF_RANGE),
        (b"-41", "", Reason.OUT_OF_RANGE),
        (b'{"t": null}', "t", Reason.NOT_A_NUMBER),
        (b'{"t": [1]}', "t", Reason.NOT_A_NUMBER),
        (b'{"t": {"x": 1}}', "t", Reason.NOT_A_NUMBER),
        (b'{"t": NaN}', "t", Reason.NOT_JSON),
        (b'{"t": 1', "t", Reason.NOT_JSON),
        (b"21.5", "t", Reason.NOT_JSON),
        (b"[1]", "t", Reason.NOT_JSON),
        (b'{"u": 1}', "t", Reason.NO_FIELD),
        (b'{"t": 1}', "t.x", Reason.NO_FIELD),
        (b"[" * 60_000, "t", Reason.NOT_JSON),
        (b'{"t": ' + b"9" * 5000 + b"}", "t", Reason.OUT_OF_RANGE),
        (b" " * (64 << 10) + b"1", "", Reason.TOO_LARGE),
    ],
)
def test_what_is_no_number_has_a_reason(payload: bytes, field: str, reason: Reason) -> None:
    """Each its own; infinity, words of absence, and what float32 does not hold among them."""
    with pytest.raises(RefusedError) as refused:
        number_of(value_at(payload, field), -40, 125)
    assert refused.value.reason in (reason, Reason.NOT_JSON if len(payload) > 5000 else reason)


def test_labels_and_times() -> None:
    """By class or as a number; ISO 8601, seconds and milliseconds."""
    classes = ("idle", "true", "2")
    assert [label_of(v, classes) for v in ("idle", True, 2)] == [0.0, 1.0, 2.0]
    assert label_of("3.5", ()) == 3.5
    for wrong in ("Idle", None, 1, {}, [], 1.5):
        with pytest.raises(RefusedError):
            label_of(wrong, classes)
    assert time_of(1_800_000_000) == time_of(1_800_000_000_000) == time_of("2027-01-15T08:00:00Z") == 1_800_000_000
    for wrong in ("yesterday", None, {}, []):
        with pytest.raises(RefusedError):
            time_of(wrong)


# --- windows by count --------------------------------------------------------------------------------------------


def test_a_window_of_one_channel() -> None:
    """Three values; the next window begins with the next value."""
    windows = Windows(config(RMS))
    assert windows.topics == (RMS["topic"],)
    assert hear(windows, 1, 2) == []
    (example,) = hear(windows, 3, start=2)
    np.testing.assert_array_equal(example.x, [[1, 2, 3]])
    assert (example.x.dtype, example.y, example.time_s) == (np.float32, 0.0, WALL + 2)
    assert [list(e.x[0]) for e in hear(windows, 4, 5, 6, 7, start=3)] == [[4, 5, 6]]
    assert used(windows) == {"messages": 7, "windows": 2, "examples": 2, "not used": {}}


def test_windows_overlap_by_their_step() -> None:
    """And stand the other way round where the model wants it."""
    windows = Windows(config(RMS, count=3, step=1, order="time-channel"))
    assert windows._config.form.shape == (3, 1)
    assert [list(e.x[:, 0]) for e in hear(windows, 1, 2, 3, 4, 5)] == [[1, 2, 3], [2, 3, 4], [3, 4, 5]]


def test_channels_of_one_message_are_one_row() -> None:
    """A Zigbee2MQTT object fills all of them."""
    windows = Windows(config(HEAT, WET, count=2))
    say(windows, HEAT["topic"], {"temperature": 20, "humidity": 50, "linkquality": 9}, 0)
    (example,) = say(windows, HEAT["topic"], {"temperature": 21, "humidity": 51}, 5)
    np.testing.assert_array_equal(example.x, [[20, 21], [50, 51]])


def test_channels_of_different_messages_wait_for_each_other() -> None:
    """The newest value of each counts; one whose company comes too late is no part of a row."""
    windows = Windows(config(RMS, HEAT, count=2))
    for rms, now in ((1, 0.0), (2, 1.0)):
        say(windows, RMS["topic"], rms, now)
    say(windows, HEAT["topic"], {"temperature": 20}, 1.5)
    say(windows, RMS["topic"], 3, 2.0)
    (example,) = say(windows, HEAT["topic"], {"temperature": 21}, 3.0)
    np.testing.assert_array_equal(example.x, [[2, 3], [20, 21]])
    assert windows.counts == {Reason.REPLACED: 1}
    say(windows, RMS["topic"], 4, 5.0)
    say(windows, HEAT["topic"], {"temperature": 22}, 15.5)
    assert windows.counts[Reason.LATE] == 1


def test_a_gap_drops_the_window_in_hand_and_is_counted() -> None:
    """Eleven seconds of silence; so does a broker that was gone."""
    windows = Windows(config(RMS))
    hear(windows, 1, 2)
    assert [list(e.x[0]) for e in hear(windows, 3, 4, 5, start=12.1)] == [[3, 4, 5]]
    assert windows.counts == {Reason.GAP: 1}
    hear(windows, 6, start=15)
    windows.interrupted()
    assert [list(e.x[0]) for e in hear(windows, 7, 8, 9, start=16)] == [[7, 8, 9]]
    assert windows.counts == {Reason.GAP: 2}


def test_messages_that_are_not_used_are_counted_and_change_nothing() -> None:
    """Range, age, retained, junk: the window is made of the others."""
    windows = Windows(config({**HEAT, "time_field": "last_seen"}))
    topic = HEAT["topic"]
    fresh = lambda now, value: {"temperature": value, "last_seen": (WALL + now) * 1000}  # noqa: E731
    say(windows, topic, fresh(0, 1), 0, retained=True)
    say(windows, topic, fresh(0, 1), 0)
    say(windows, topic, fresh(1, 200), 1)
    say(windows, topic, fresh(-60, 7), 1)
    say(windows, topic, {"temperature": 3}, 1)
    say(windows, topic, {"temperature": 3, "last_seen": "long ago"}, 1)
    say(windows, topic, "unavailable", 1)
    say(windows, "zigbee2mqtt/other", fresh(1, 3), 1)
    say(windows, topic, fresh(2, 2), 2)
    (example,) = say(windows, topic, fresh(3, 3), 3)
    assert list(example.x[0]) == [1, 2, 3]
    assert windows.counts == {
        Reason.RETAINED: 1,
        Reason.OUT_OF_RANGE: 1,
        Reason.TOO_OLD: 2,
        Reason.NO_FIELD: 1,
        Reason.NOT_JSON: 1,
    }
    assert windows.handle(topic, b'{"temperature": 1, "last_seen": 0}', 4.0) == []  # no clock: no age
    assert windows.counts[Reason.TOO_OLD] == 2


# --- windows by time ---------------------------------------------------------------------------------------------


def test_slots_are_means_and_hold_the_last_value() -> None:
    """Four slots of a second; the third has nothing new; the window ends with its time, not with a message."""
    windows = Windows(config(RMS, seconds=4, samples=4))
    for value, now in ((1, 0.0), (3, 0.5), (5, 1.2), (7, 3.9)):
        assert say(windows, RMS["topic"], value, now) == []
    assert windows.wake_at == 4.0
    (example,) = windows.tick(4.0, wall_s=WALL + 4)
    np.testing.assert_array_equal(example.x, [[2, 5, 5, 7]])
    assert example.time_s == WALL + 4


def test_windows_by_time_overlap_by_whole_slots() -> None:
    """A step of a second."""
    windows = Windows(config(RMS, seconds=2, samples=2, step=1))
    found = hear(windows, *range(6)) + windows.tick(6.0)
    assert [list(e.x[0]) for e in found] == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]


def test_a_silent_channel_is_a_gap_in_time() -> None:
    """What is held too long is no value: the window goes, and time begins anew with the next word."""
    windows = Windows(config(RMS, seconds=10, samples=10, max_gap_s=2.5))
    hear(windows, 1, 2)
    assert windows.tick(1e9) == []
    assert windows.counts == {Reason.GAP: 1, Reason.SILENT: 1}
    assert windows.wake_at == float("inf")
    found = hear(windows, *range(10), start=2e9) + windows.tick(2e9 + 10)
    assert [list(e.x[0]) for e in found] == [list(range(10))]


def test_one_silent_channel_of_two() -> None:
    """No window as long as it is silent; the other one speaks."""
    windows = Windows(config(RMS, HEAT, seconds=3, samples=3, max_gap_s=1.5))
    for now in range(20):
        say(windows, RMS["topic"], now, now)
        if now < 3 or now > 10:
            say(windows, HEAT["topic"], {"temperature": 1}, now)
    assert windows.windows == 1 + 2
    assert windows.counts == {Reason.SILENT: 8}


# --- labels ------------------------------------------------------------------------------------------------------


LABEL = {"topic": "plant/state", "classes": ["normal", "worn"]}


def test_the_value_in_force_when_the_window_ends_is_the_label() -> None:
    """Also a retained one; without any the window goes, or has the default."""
    windows = Windows(config(RMS, label=LABEL))
    assert hear(windows, 1, 2, 3) == []
    assert windows.counts == {Reason.UNLABELED: 1}
    say(windows, "plant/state", "normal", 3, retained=True)
    assert [e.y for e in hear(windows, 4, 5, 6, start=4)] == [0.0]
    hear(windows, 7, start=7)
    say(windows, "plant/state", "worn", 7.5)
    say(windows, "plant/state", "broken", 7.6)
    assert [e.y for e in hear(windows, 8, 9, start=8)] == [1.0]
    assert windows.counts[Reason.UNKNOWN_LABEL] == 1
    windows.interrupted()
    assert hear(windows, 1, 2, 3, start=20) == []  # nobody knows what was said meanwhile
    assert [e.y for e in hear(Windows(config(RMS, label={**LABEL, "default": 1})), 1, 2, 3)] == [1.0]


def test_a_later_event_labels_what_waits_for_it() -> None:
    """Within the horizon; past it the window is dropped, or has the default."""
    label = {**LABEL, "horizon_s": 60, "field": "condition"}
    windows = Windows(config(RMS, count=1, label=label))
    assert hear(windows, 1, 2) == []
    assert windows.wake_at == 60
    examples = say(windows, "plant/state", {"condition": "worn"}, 59.9)
    assert [(list(e.x[0]), e.y, e.time_s) for e in examples] == [([1], 1.0, WALL), ([2], 1.0, WALL + 1)]
    assert say(windows, "plant/state", {"condition": "worn"}, 60, retained=True) == []
    hear(windows, 3, start=100)
    assert windows.tick(160) == []
    assert windows.counts == {Reason.RETAINED: 1, Reason.UNLABELED: 1}
    windows = Windows(config(RMS, count=1, label={**label, "default": 0}))
    hear(windows, 1, 2)
    assert [e.y for e in windows.tick(60.0)] == [0.0]
    assert [e.y for e in windows.tick(61.0)] == [0.0]


def test_windows_that_wait_are_bounded() -> None:
    """The oldest goes, counted."""
    windows = Windows(config(RMS, count=1, label={**LABEL, "horizon_s": 1e6, "max_waiting": 2}))
    hear(windows, 1, 2, 3)
    assert [list(e.x[0]) for e in say(windows, "plant/state", "worn", 9)] == [[2], [3]]
    assert windows.counts == {Reason.WAITING: 1}


def test_forgetting_leaves_no_value() -> None:
    """Neither in a window in hand, nor one that waits, nor the newest."""
    windows = Windows(config(RMS, count=2, label={**LABEL, "horizon_s": 60}))
    hear(windows, 1, 2, 3)
    windows.forget()
    assert windows.newest is None
    assert hear(windows, 4, start=4) == []
    assert say(windows, "plant/state", "worn", 5) == []


# --- configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": 0}, "set one of the two"),
        ({"count": 3, "seconds": 3}, "set one of the two"),
        ({"count": 3, "step": 4}, "no more than the window"),
        ({"count": 3, "step": 1.5}, "a multiple of 1"),
        ({"seconds": 6, "samples": 3, "step": 3}, "a multiple of 2"),
        ({"count": 65536, "channels": 20}, "too many"),
        ({"topic": "a/+/b"}, "without + and #"),
        ({"topic": "a/#"}, "without + and #"),
        ({"twice": True}, "two are called"),
        ({"min": 3, "max": 2}, "above max"),
        ({"time_field": "t"}, "name the `field`"),
        ({"label": {"topic": "x/#"}}, "without + and #"),
        ({"label": {"topic": "x", "classes": ["a"], "default": 1}}, "one of 0 to 0"),
    ],
)
def test_what_can_never_work_is_said(change: dict[str, Any], said: str) -> None:
    """Field, value and mend."""
    channel = {**RMS, **{k: v for k, v in change.items() if k in ("topic", "min", "max", "time_field")}}
    window = {k: v for k, v in change.items() if k in ("count", "seconds", "samples", "step")} or {"count": 1}
    channels = [{**channel, "name": f"c{i}"} for i in range(change.get("channels", 1))] + [channel] * (
        "twice" in change
    )
    channels += [channel] * ("twice" in change)
    with pytest.raises(ConfigError) as caught:
        config(*channels, label=change.get("label"), **window)
    assert said in f"{caught.value}"


# --- nothing crashes ---------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["temperature", "t", "x"]), inner),
    max_leaves=8,
)
PAYLOADS = st.one_of(
    st.binary(max_size=80),
    st.floats().map(lambda f: str(f).encode()),
    st.integers(-(10**60), 10**60).map(lambda i: str(i).encode()),
    st.text(max_size=70).map(lambda s: s.encode("utf-8", "surrogatepass")),
    JSON.map(lambda v: json.dumps(v).encode()),
    JSON.map(lambda v: json.dumps({"temperature": v, "last_seen": v, "condition": v}).encode()),
)
MESSAGES = st.lists(
    st.tuples(
        st.sampled_from([RMS["topic"], HEAT["topic"], "plant/state", "else"]),
        PAYLOADS,
        st.floats(0, 1e6),
        st.booleans(),
    ),
    max_size=30,
)
CONFIGS = st.sampled_from(
    [
        config(RMS, count=2),
        config(RMS, {**HEAT, "time_field": "last_seen"}, count=2, step=1),
        config(RMS, HEAT, seconds=4, samples=2, max_gap_s=1e4),
        config(RMS, count=1, label={**LABEL, "horizon_s": 50}),
        config(RMS, count=1, label={"topic": "plant/state", "field": "condition", "default": 0}),
    ]
)


@given(CONFIGS, MESSAGES)
def test_no_message_ends_it(settings: SensorsConfig, messages: list[tuple[str, bytes, float, bool]]) -> None:
    """Whatever comes: an example of the ring's shape, finite, or a count."""
    windows, now = Windows(settings), 0.0
    for topic, payload, passed, retained in messages:
        now += passed
        for example in windows.handle(topic, payload, now, wall_s=WALL + now, retained=retained):
            assert example.x.shape == settings.form.shape
            assert example.x.dtype == np.float32
            assert np.isfinite(example.x).all()
            assert math.isfinite(example.y)
    windows.tick(now + 1e7)
    assert windows.messages == len(messages)


@given(st.lists(st.floats(-100, 100, width=32), max_size=60), st.integers(1, 7), st.data())
def test_windows_are_slices_of_what_was_said(values: list[float], count: int, data: st.DataObject) -> None:
    """Without gaps: every window is values[i * step : i * step + count], none is missing."""
    step = data.draw(st.integers(1, count))
    found = hear(Windows(config(RMS, count=count, step=step)), *values)
    starts = range(0, len(values) - count + 1, step)
    assert [list(e.x[0]) for e in found] == [list(np.float32(values[i : i + count])) for i in starts]
