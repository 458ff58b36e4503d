"""What the machine says of itself, from /sys and /proc; a sensor that is not there reads None."""

import os
import platform
import shutil
import time
from pathlib import Path

from edge_agent.gate import Reading, Vitals

# The Raspberry Pi's firmware; bits 0-3: under-voltage, frequency capped, throttled, soft temperature limit, all now.
# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
_PI_THROTTLED = "devices/platform/soc/soc:firmware/get_throttled"
_NOW = 0xF
_CLOCK_SET = 1_700_000_000  # seconds since 1970; a Pi without a network starts before this


def read_sensors(state_dir: Path, sys: Path = Path("/sys"), metered: bool | None = None) -> Reading:
    """All sensors that the gate asks about; never raises."""
    battery_pct, charging = _battery(sys / "class/power_supply")
    now = time.time()
    local = time.localtime(now)
    return Reading(
        battery_pct=battery_pct,
        charging=charging,
        temperature_c=_temperature(sys / "class/thermal"),
        throttled=_throttled(sys / _PI_THROTTLED),
        metered=metered,
        disk_free_mb=_disk_free_mb(state_dir),
        minute_of_day=local.tm_hour * 60 + local.tm_min if now > _CLOCK_SET else None,
        local_s=now + local.tm_gmtoff if now > _CLOCK_SET else None,
    )


def read_vitals(status: Path = Path("/proc/self/status")) -> Vitals:
    """Memory and processor time of this process."""
    fields = dict(line.split(":", 1) for line in _text(status).splitlines() if ":" in line)
    times = os.times()
    return Vitals(_kb(fields.get("VmRSS")) / 1024, _kb(fields.get("VmHWM")) / 1024, times.user + times.system)


def machine_memory_mb(meminfo: Path = Path("/proc/meminfo")) -> int:
    """The machine's memory in megabytes, 0 where it is not told."""
    fields = dict(line.split(":", 1) for line in _text(meminfo).splitlines() if ":" in line)
    return int(_kb(fields.get("MemTotal")) / 1024)


def machine_name(model: Path = Path("/proc/device-tree/model")) -> str:
    """The board where the device tree names it ("Raspberry Pi 4 Model B"), else the architecture."""
    return (_text(model).strip("\0\n ") or platform.machine())[:64]


def serial_number(tree: Path = Path("/proc/device-tree/serial-number")) -> str:
    """The board's serial number where its device tree has one; empty elsewhere."""
    return _text(tree).strip("\0\n ")[:64]


def _temperature(zones: Path) -> float | None:
    """The hottest thermal zone that makes sense, in Celsius."""
    degrees = [_number(zone / "temp") for zone in _entries(zones, "thermal_zone")]
    return max((d / 1000 for d in degrees if d is not None and -50_000 < d < 200_000), default=None)


def _battery(supplies: Path) -> tuple[float | None, bool | None]:
    for supply in _entries(supplies, ""):
        if _text(supply / "type").strip() == "Battery" and _text(supply / "scope").strip() != "Device":
            return _number(supply / "capacity"), _text(supply / "status").strip() in ("Charging", "Full")
    return None, None


def _throttled(path: Path) -> bool | None:
    try:
        return bool(int(_text(path).strip(), 16) & _NOW)
    except ValueError:
        return None


def _disk_free_mb(path: Path) -> float | None:
    try:
        return shutil.disk_usage(path).free / 2**20
    except OSError:
        return None


def _entries(directory: Path, prefix: str) -> list[Path]:
    try:
        return sorted(p for p in directory.iterdir() if p.name.startswith(prefix))
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(65536).decode("utf-8", "replace")
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None


def _kb(field: str | None) -> float:
    return float(field.split()[0]) if field else 0.0
