"""What the machine says of itself, from /sys and /proc; a sensor that is not there reads None."""

import os
import platform
import shutil
import time
from pathlib import Path

from edge_agent.board import Board, entries, text_of
from edge_agent.gate import Reading, Vitals

_CLOCK_SET = 1_700_000_000  # seconds since 1970; a Pi without a network starts before this
_NO_SENSOR = {"PMIC-Die", "pmic-die"}  # a Jetson's zone that says 100 °C whatever happens


def read_sensors(board: Board, metered: bool | None = None) -> Reading:
    """All sensors that the gate asks about; never raises."""
    sys, supply = board.sys, board.read()
    battery_pct, charging = _battery(sys / "class/power_supply")
    now = time.time()
    local = time.localtime(now)
    return Reading(
        battery_pct=battery_pct,
        charging=charging,
        temperature_c=_temperature(sys / "class/thermal"),
        throttled=supply.throttled,
        under_voltage=supply.under_voltage,
        power_mode=supply.power_mode,
        disk_wear_pct=supply.disk_wear_pct,
        metered=metered,
        disk_free_mb=_disk_free_mb(board.state_dir),
        minute_of_day=local.tm_hour * 60 + local.tm_min if now > _CLOCK_SET else None,
        local_s=now + local.tm_gmtoff if now > _CLOCK_SET else None,
    )


def read_vitals(status: Path = Path("/proc/self/status")) -> Vitals:
    """Memory and processor time of this process."""
    fields = dict(line.split(":", 1) for line in text_of(status).splitlines() if ":" in line)
    times = os.times()
    return Vitals(_kb(fields.get("VmRSS")) / 1024, _kb(fields.get("VmHWM")) / 1024, times.user + times.system)


def machine_memory_mb(meminfo: Path = Path("/proc/meminfo")) -> int:
    """The machine's memory in megabytes, 0 where it is not told."""
    fields = dict(line.split(":", 1) for line in text_of(meminfo).splitlines() if ":" in line)
    return int(_kb(fields.get("MemTotal")) / 1024)


def machine_name(model: Path = Path("/proc/device-tree/model")) -> str:
    """The board where the device tree names it ("Raspberry Pi 4 Model B"), else the architecture."""
    return (text_of(model).strip("\0\n ") or platform.machine())[:64]


def serial_number(tree: Path = Path("/proc/device-tree/serial-number")) -> str:
    """The board's serial number where its device tree has one; empty elsewhere."""
    return text_of(tree).strip("\0\n ")[:64]


def _temperature(zones: Path) -> float | None:
    """The hottest thermal zone that makes sense, in Celsius."""
    real = [zone for zone in entries(zones, "thermal_zone") if text_of(zone / "type").strip() not in _NO_SENSOR]
    degrees = [_number(zone / "temp") for zone in real]
    return max((d / 1000 for d in degrees if d is not None and -50_000 < d < 200_000), default=None)


def _battery(supplies: Path) -> tuple[float | None, bool | None]:
    """Of the battery that feeds the machine: per cent, and whether it need not be spared."""
    found = entries(supplies, "")
    on_mains = any(text_of(s / "type").strip() == "Mains" and text_of(s / "online").strip() == "1" for s in found)
    for supply in found:
        if text_of(supply / "type").strip() == "Battery" and text_of(supply / "scope").strip() != "Device":
            status = text_of(supply / "status").strip()
            return _number(supply / "capacity"), on_mains or status in ("Charging", "Full")
    return None, None


def _disk_free_mb(path: Path) -> float | None:
    try:
        return shutil.disk_usage(path).free / 2**20
    except OSError:
        return None


def _number(path: Path) -> float | None:
    try:
        return float(text_of(path))
    except ValueError:
        return None


def _kb(field: str | None) -> float:
    return float(field.split()[0]) if field else 0.0
