"""Traces of what sysfs says, step by step, and why a device does not train then; written after the kernel's papers.

`[[step]]` changes `files` below `sys/` and `var/`, what `firmware` answers, the link, the clock, the room on the disk;
`why` is what health says after it.
"""

import os
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_agent import events as e
from edge_agent.agent import Agent
from edge_agent.board import USED_UP_PCT, Board
from edge_agent.gate import GateConfig, Reading, may_train
from edge_agent.health import read_sensors
from fl_protocol.messages import DeviceState, Health
from tests.edge_agent.rig import Rig

TRACES = sorted((Path(__file__).parent / "traces").glob("*.toml"))


def replay(trace: dict[str, Any], directory: Path) -> Iterator[tuple[dict[str, Any], Reading]]:
    """Each step with what the sensors say after it."""
    number = directory.stat().st_dev
    said = {"firmware": ""}
    board = Board(directory, directory / "sys", directory / "var/nvpmodel", lambda: said["firmware"])
    metered, clock, free = None, "12:00", 1000.0
    for step in trace["step"]:
        for name, text in step.get("files", {}).items():
            path = directory / name.replace("DISK", f"{os.major(number)}:{os.minor(number)}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        said["firmware"] = step.get("firmware", said["firmware"])
        metered, clock = step.get("metered", metered), step.get("clock", clock)
        free = step.get("free_mb", 1000.0)
        minute = int(clock[:2]) * 60 + int(clock[3:]) if clock else None
        yield step, replace(read_sensors(board, metered), disk_free_mb=free, minute_of_day=minute)


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_a_trace(path: Path, tmp_path: Path) -> None:
    """Every step closes the gate for the reasons that it names, or opens it."""
    trace = tomllib.loads(path.read_text())
    config, hot = GateConfig(**trace.get("gate", {})), False
    for number, (step, reading) in enumerate(replay(trace, tmp_path), start=1):
        answer = may_train(config, reading, hot)
        assert (answer.because, answer.may) == (step["why"], not step["why"]), f"step {number}: {reading}"
        hot = answer.hot


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_a_device_tells_every_reason_of_a_trace(path: Path, tmp_path: Path) -> None:
    """In its health, and in its state."""
    trace = tomllib.loads(path.read_text())
    rig = Rig()
    settings = replace(rig.agent._settings, gate=GateConfig(**trace.get("gate", {})))
    rig.agent = _with_settings(rig, settings)
    rig.connect()
    for step, reading in replay(trace, tmp_path):
        rig.do(e.Measured(reading))
        sent = [effect.message for effect in rig.wait(31.0) if isinstance(effect, e.Send)]
        health = [message for message in sent if isinstance(message, Health)]
        assert (health[-1].why_not, health[-1].may_train) == (step["why"], not step["why"])
        states = [s.message for s in rig.asked if isinstance(s, e.Send) and isinstance(s.message, DeviceState)]
        assert states[-1].why == step["why"] or not step["why"]
        assert (states[-1].state == "sleeping") == bool(step["why"])


def _with_settings(rig: Rig, settings: Any) -> Agent:
    agent = rig.agent
    agent._configuring.settings = settings
    return agent


def test_a_trace_names_every_reason() -> None:
    """Each of the nine closes the gate at least once."""
    words = "\n".join(step["why"] for path in TRACES for step in tomllib.loads(path.read_text())["step"])
    for reason in (
        "too hot",
        "throttled",
        "under-voltage",
        "battery",
        "power mode",
        "metered",
        "free",
        "life",
        "trains",
    ):
        assert reason in words


@pytest.mark.parametrize(
    ("setting", "reading"),
    [
        ({"allow_under_voltage": True}, {"under_voltage": True}),
        ({"allow_throttled": True}, {"throttled": True}),
        ({"max_disk_wear_pct": USED_UP_PCT}, {"disk_wear_pct": USED_UP_PCT}),
        ({}, {"power_mode": 7}),
        ({"power_modes": (1,)}, {"power_mode": None}),
    ],
)
def test_each_may_be_allowed(setting: dict[str, Any], reading: dict[str, Any]) -> None:
    """The operator has the last word; what a board does not say never blocks."""
    assert may_train(GateConfig(**setting), Reading(**reading)).may


def test_a_partition_is_worn_as_its_disk(tmp_path: Path) -> None:
    """`/sys/dev/block` leads to the partition; the estimate is its parent's."""
    number = tmp_path.stat().st_dev
    disk = tmp_path / "sys/devices/mmc0/block/mmcblk0"
    (disk / "mmcblk0p2").mkdir(parents=True)
    (disk / "mmcblk0p2/partition").write_text("2\n")
    (disk / "device").mkdir()
    (disk / "device/life_time").write_text("0x01 0x0b\n")
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    (tmp_path / f"sys/dev/block/{os.major(number)}:{os.minor(number)}").symlink_to(disk / "mmcblk0p2")
    assert Board(tmp_path, tmp_path / "sys").read().disk_wear_pct == USED_UP_PCT


def test_a_firmware_program_that_hangs_is_asked_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The loop of the agent does not wait a second for it every ten."""
    asked = []

    def hang() -> str:
        asked.append(1)
        raise TimeoutError("no answer from vcgencmd")

    board = Board(tmp_path, tmp_path, tmp_path, hang)
    assert [board.read().throttled for _ in range(3)] == [None] * 3
    assert len(asked) == 1
    assert "no answer" in caplog.text


@pytest.mark.parametrize("text", ["", "\n", "x", "0x", "999999999999999999999999", "\x00\xff", "-1", "0x0 zz"])
def test_no_file_of_sysfs_raises(tmp_path: Path, text: str) -> None:
    """Whatever a driver writes: an answer, or none."""
    names = {name for path in TRACES for s in tomllib.loads(path.read_text())["step"] for name in s.get("files", {})}
    number = tmp_path.stat().st_dev
    for name in names:
        path = tmp_path / name.replace("DISK", f"{os.major(number)}:{os.minor(number)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if path.name not in ("name", "type") else "soctherm_oc")
    board = Board(tmp_path, tmp_path / "sys", tmp_path / "var/nvpmodel", lambda: text)
    for _ in range(2):
        may_train(GateConfig(), read_sensors(board))
