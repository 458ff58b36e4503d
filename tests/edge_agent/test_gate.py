"""May the device train? A table of readings and answers; and the sensors they come from."""

from pathlib import Path

import pytest

from edge_agent.board import Board
from edge_agent.gate import GateConfig, Reading, may_train
from edge_agent.health import machine_memory_mb, read_sensors, read_vitals


@pytest.mark.parametrize(
    ("config", "reading", "because"),
    [
        ({}, {}, ""),
        ({}, {"battery_pct": 10}, "battery below 30 %"),
        ({}, {"battery_pct": 10, "charging": True}, ""),
        ({}, {"battery_pct": 10, "charging": False}, "battery below 30 %"),
        ({}, {"battery_pct": 30}, ""),
        ({}, {"temperature_c": 75}, ""),
        ({}, {"temperature_c": 75.1}, "too hot: above 75 °C"),
        ({}, {"throttled": True}, "the processor is throttled"),
        ({"allow_throttled": True}, {"throttled": True}, ""),
        ({}, {"metered": True}, ""),
        ({"allow_metered": False}, {"metered": True}, "the link is metered"),
        ({"allow_metered": False}, {"metered": None}, ""),
        ({}, {"disk_free_mb": 49}, "less than 50 MB free on the disk"),
        ({"start": "22:00", "end": "06:00"}, {"minute_of_day": 23 * 60}, ""),
        ({"start": "22:00", "end": "06:00"}, {"minute_of_day": 5 * 60 + 59}, ""),
        ({"start": "22:00", "end": "06:00"}, {"minute_of_day": 6 * 60}, "trains from 22:00 to 06:00"),
        ({"start": "09:30", "end": "10:00"}, {"minute_of_day": 9 * 60 + 29}, "trains from 09:30 to 10:00"),
        ({"start": "09:30", "end": "10:00"}, {"minute_of_day": 9 * 60 + 30}, ""),
        ({"start": "09:30", "end": "10:00"}, {"minute_of_day": None}, ""),
    ],
)
def test_the_gate(config: dict[str, object], reading: dict[str, object], because: str) -> None:
    """Each sensor may forbid; a missing one never does."""
    answer = may_train(GateConfig(**config), Reading(**reading))  # type: ignore[arg-type]
    assert (answer.may, answer.because) == (not because, because)


def test_a_device_that_was_hot_cools_down_first() -> None:
    """Else it would begin and stop every few seconds at the limit."""
    config = GateConfig(max_temperature_c=70, cool_down_c=4)
    assert not may_train(config, Reading(temperature_c=67), was_hot=True).may
    assert may_train(config, Reading(temperature_c=66), was_hot=True).may
    assert may_train(config, Reading(temperature_c=67), was_hot=False).may


def test_the_sensors_of_a_raspberry_pi_on_a_battery(tmp_path: Path) -> None:
    """The hottest zone, the battery that feeds the machine (not a mouse's), the firmware's throttling of now."""
    files = {
        "class/thermal/thermal_zone0/temp": "48312",
        "class/thermal/thermal_zone1/temp": "51001",
        "class/thermal/thermal_zone2/temp": "-273000",
        "class/thermal/cooling_device0/cur_state": "1",
        "class/power_supply/hidpp/type": "Battery",
        "class/power_supply/hidpp/scope": "Device",
        "class/power_supply/hidpp/capacity": "3",
        "class/power_supply/main/type": "Battery",
        "class/power_supply/main/capacity": "64",
        "class/power_supply/main/status": "Discharging",
        "devices/platform/soc/soc:firmware/get_throttled": "50005",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    reading = read_sensors(Board(tmp_path, tmp_path))
    assert (reading.temperature_c, reading.battery_pct, reading.charging) == (51.001, 64.0, False)
    assert reading.throttled is True
    assert reading.disk_free_mb is not None
    (tmp_path / "devices/platform/soc/soc:firmware/get_throttled").write_text("50000\n")  # once, since boot
    assert read_sensors(Board(tmp_path, tmp_path)).throttled is False


def test_a_machine_without_sensors_reads_none(tmp_path: Path) -> None:
    """No file, no opinion, no exception."""
    reading = read_sensors(Board(tmp_path / "gone", tmp_path, tmp_path / "none"))
    assert reading == Reading(minute_of_day=reading.minute_of_day, local_s=reading.local_s)
    assert reading.local_s is not None
    assert reading.minute_of_day == int(reading.local_s % 86400 // 60)
    assert may_train(GateConfig(), reading).may


def test_vitals_of_this_process() -> None:
    """Resident and peak memory from /proc, processor time from the kernel."""
    vitals = read_vitals()
    assert 5 < vitals.memory_mb <= vitals.peak_memory_mb
    assert vitals.cpu_s > 0
    assert machine_memory_mb() > vitals.memory_mb
    assert read_vitals(Path("/nonexistent")).memory_mb == 0
