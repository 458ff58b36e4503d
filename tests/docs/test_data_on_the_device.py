"""docs/data-on-the-device.md: its configurations are read, fed as the page says, and make the examples that it says."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from edge_agent.config import AgentConfig, load_config
from edge_agent.gate import GateConfig, Reading, may_train
from edge_agent.leaving import LEAVING
from edge_agent.ring import Ring
from edge_agent.sensing import ChannelConfig, LabelConfig, WindowConfig
from edge_agent.sources import InputSpec
from edge_agent.sources.ring_source import RingSource
from edge_agent.windows import Windows
from tests.docs.pages import DOCS, blocks, tables
from tests.docs.test_tables import fields_of, rows_of
from tests.edge_agent.rig import BUNDLE, FLEET_KEY

PAGE = DOCS / "data-on-the-device.md"
WALL = 1_800_000_000.0


def read(name: str, tmp_path: Path) -> AgentConfig:
    """The page's block as a part of a device's configuration."""
    (text,) = [block.body for block in blocks(PAGE) if block.file == name]
    path = tmp_path / "agent.toml"
    head = (
        f'[device]\nid = "fan-40"\nfleet = "plant"\nstate_dir = "state"\n[gateway]\npublic_key = "{FLEET_KEY.public}"\n'
    )
    path.write_text(head + text)
    return load_config(path, {})


def test_the_esphome_sensor_makes_what_the_shipped_model_learns_from(tmp_path: Path) -> None:
    """Three axes, 200 values: the examples fit the bundle, with the labels in its order."""
    config = read("esphome.toml", tmp_path)
    assert config.sensors.label is not None
    assert config.sensors.label.classes == BUNDLE.labels
    windows = Windows(config.sensors)
    ring = Ring(tmp_path / "ring", config.sensors.form, config.ring)
    spec, rng, now = InputSpec.of(BUNDLE), np.random.default_rng(0), 0.0
    for label in ("normal", "opposite weights"):
        windows.handle("plant/fan-40/condition", label.encode(), now, retained=True)
        for _ in range(200 * 10):
            now += 0.02
            for axis in "xyz":
                payload = f"{rng.normal():.5f}".encode()
                for example in windows.handle(f"fan-40/sensor/accel_{axis}/state", payload, now, wall_s=WALL + now):
                    ring.append(example.x, example.y, example.time_s)
    ring.flush()
    dataset = RingSource(ring).load(spec)
    assert dataset.train.x.shape == (18, 200, 3)
    assert [*dataset.train.y, *dataset.validation.y] == [0] * 10 + [2] * 10
    assert not windows.counts


def test_the_zigbee2mqtt_window_waits_for_the_button(tmp_path: Path) -> None:
    """An hour in 60 slots; a press labels those of the last day, a day without one makes them 0."""
    config = read("zigbee2mqtt.toml", tmp_path)
    windows, examples = Windows(config.sensors), []
    last_seen = "2027-01-15T08:00:00+00:00"
    for minute in range(0, 3 * 60 + 1, 2):
        now = 60.0 * minute
        plug = {"power": 41.2, "voltage": 229, "last_seen": last_seen, "linkquality": 80}
        climate = {"temperature": 20.0 + minute / 8, "humidity": 41}
        for topic, payload in (("zigbee2mqtt/pump-plug", plug), ("zigbee2mqtt/pump-climate", climate)):
            examples += windows.handle(topic, json.dumps(payload).encode(), now, wall_s=WALL)
    assert (windows.windows, examples) == (3, [])
    examples += windows.handle("zigbee2mqtt/mechanics-button", b'{"action": "double"}', 11_000, wall_s=WALL)
    assert [(example.x.shape, example.y) for example in examples] == [((3, 60), 1.0)] * 3
    assert list(examples[0].x[2, :4]) == [20, 20, 20.25, 20.25]
    old = json.dumps({"power": 1.0, "voltage": 1, "last_seen": last_seen}).encode()
    windows.handle("zigbee2mqtt/pump-plug", old, 11_001, wall_s=WALL + 31)
    assert sum(windows.counts.values()) >= 2


@pytest.mark.parametrize(
    ("heading", "before", "cls"),
    [
        ("Windows", "An example is", WindowConfig),
        ("Windows", "[[sensors.channels]]", ChannelConfig),
        ("Labels", "", LabelConfig),
    ],
)
def test_the_tables_are_those_of_the_code(heading: str, before: str, cls: type) -> None:
    """Every key with its default."""
    (found,) = [t for t in tables(PAGE) if t.heading == heading and before in t.before and t.heads[0] == "key"]
    assert rows_of(found) == fields_of(cls)


def test_every_reason_of_the_gate_is_on_the_page() -> None:
    """One that closes it for everything names nothing that the table lacks."""
    config = GateConfig(allow_metered=False, power_modes=(0,), start="22:00", end="06:00")
    everything = Reading(
        temperature_c=99.0,
        throttled=True,
        under_voltage=True,
        battery_pct=1.0,
        power_mode=3,
        metered=True,
        disk_free_mb=1.0,
        disk_wear_pct=110.0,
        minute_of_day=720,
    )
    assert all(
        getattr(everything, f.name) is not None
        for f in dataclasses.fields(Reading)
        if f.name not in ("charging", "local_s")
    )
    reasons = may_train(config, everything).because.split("; ")
    (table,) = [t for t in tables(PAGE) if t.heads[0] == "reason"]
    rows = " ".join(table.column("reason"))
    assert len(reasons) == 9
    for reason in reasons:
        words = {"trains": "hours", "less": "disk", "more": "disk"}
        assert words.get(reason.split()[0], re.split(r"[:0-9]| below", reason)[0].strip()) in rows, reason


def test_everything_that_leaves_is_on_the_page() -> None:
    """By the words of the table, each kind once."""
    (table,) = [t for t in tables(PAGE) if t.heads[0] == "what"]
    words = " ".join(table.column("what"))
    named = {
        "UPDATE": "update",
        "OFFER": "offer",
        "CHUNK_UP": "chunks",
        "PREDICTION": "prediction",
        "INFO": "info",
        "STATE": "state",
        "HEALTH": "health",
        "EVENT": "event",
        "WANT": "want",
        "GET": "get",
        "SLOT_ANSWER": "answers to invitations",
        "ENROLL": "enroll",
        "RENEW": "renew",
        "DEVICE_COMMAND": "progress of commands",
        "REPORTED": "configuration applied",
    }
    assert {kind.name for kind in LEAVING} == set(named)
    for word in named.values():
        assert word in words
