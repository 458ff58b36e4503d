"""What a board says of its supply, its clock and its flash, where it says so: Raspberry Pi, Jetson, boards with eMMC.

    throttled      Pi: firmware bits 1-3; Jetson: over-current events (OC2); any: the kernel slows it to cool it
    under-voltage  Pi: firmware bit 0, or the hwmon alarm of mainline kernels; Jetson: under-voltage events (OC1)
    power mode     Jetson: what `nvpmodel` was set to
    disk wear      eMMC: its own estimate of the life that is used, in tenths

Sources: Raspberry Pi documentation, "get_throttled"; Linux Documentation/hwmon/raspberrypi-hwmon.rst; NVIDIA Jetson
Linux Developer Guide, "Platform Power and Performance"; JEDEC JESD84-B51, EXT_CSD bytes 267-269. A Jetson's OC3 counts
peaks of an instant, which a sound one has at work: it is left out.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.logs import LEAVES

log = logging.getLogger("edge_agent")

_PI_THROTTLED = "devices/platform/soc/soc:firmware/get_throttled"  # of the Pi's own kernels; else `vcgencmd` is asked
_UNDER_VOLTAGE, _SLOWED = 0x1, 0xE  # bits of now; those of "since the start" are 16 higher
_SLOWING = re.compile(r"Processor|(thermal-)?(cpufreq|devfreq)-.*")  # types of cooling devices that take speed away
_ASK_S = 1.0
_MODE = re.compile(r"pmode:([0-9]{1,4})")
_URGENT = 3  # JEDEC's PRE_EOL_INFO: nine tenths of the reserved blocks are used
USED_UP_PCT = 110.0  # beyond the life that the maker vouches for


@dataclass(frozen=True)
class Supply:
    """What a board says now; None where it does not."""

    throttled: bool | None = None
    under_voltage: bool | None = None
    power_mode: int | None = None
    disk_wear_pct: float | None = None


def ask_firmware() -> str:
    """What the Pi's firmware says by its own program; empty on other machines. Raises `OSError`, `TimeoutError`."""
    program = shutil.which("vcgencmd")
    if program is None or not Path("/dev/vcio").exists():
        return ""
    import subprocess  # a device without it does without its memory

    try:
        done = subprocess.run(
            [program, "get_throttled"],
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError("no answer from vcgencmd") from None
    return done.stdout.strip().removeprefix("throttled=") if done.returncode == 0 else ""


@dataclass
class Board:
    """One board, looked at again and again: event counters tell by growing. `read` never raises."""

    state_dir: Path
    sys: Path = Path("/sys")
    nvpmodel: Path = Path("/var/lib/nvpmodel/status")
    firmware: Callable[[], str] | None = ask_firmware
    _events: dict[Path, int] = field(default_factory=dict)

    def read(self) -> Supply:
        """What it says now."""
        bits = self._pi_bits()
        slowed = [self._grown("soctherm_oc", "oc2_event_cnt"), self._cooling()]
        low = [self._grown("soctherm_oc", "oc1_event_cnt"), self._alarm("rpi_volt", "in0_lcrit_alarm")]
        if bits is not None:
            slowed.append(bool(bits & _SLOWED))
            low.append(bool(bits & _UNDER_VOLTAGE))
        return Supply(_any(slowed), _any(low), self._power_mode(), self._disk_wear())

    def _pi_bits(self) -> int | None:
        said = text_of(self.sys / _PI_THROTTLED).strip()
        if not said and self.firmware is not None:
            try:
                said = self.firmware()
            except OSError as error:  # TimeoutError is one
                log.warning("vcgencmd: %s; it is not asked again", error, extra=LEAVES)
                self.firmware = None
        try:
            return int(said, 16)
        except ValueError:
            return None

    def _hwmon(self, chip: str, name: str) -> list[Path]:
        chips = entries(self.sys / "class/hwmon", "hwmon")
        return [path / name for path in chips if text_of(path / "name").strip() == chip and (path / name).exists()]

    def _alarm(self, chip: str, name: str) -> bool | None:
        return _any([_int(path) == 1 for path in self._hwmon(chip, name)])

    def _grown(self, chip: str, name: str) -> bool | None:
        """Whether an event was counted since the last look; None where nothing counts."""
        found: list[bool | None] = []
        for path in self._hwmon(chip, name):
            count = _int(path)
            if count is not None:
                found.append(count > self._events.get(path, count))
                self._events[path] = count
        return _any(found)

    def _cooling(self) -> bool | None:
        """Whether the kernel takes speed away to cool; a fan does not."""
        devices = entries(self.sys / "class/thermal", "cooling_device")
        slowing = [path for path in devices if _SLOWING.fullmatch(text_of(path / "type").strip())]
        return _any([(_int(path / "cur_state") or 0) > 0 for path in slowing])

    def _power_mode(self) -> int | None:
        found = _MODE.search(text_of(self.nvpmodel))
        return int(found[1]) if found else None

    def _disk_wear(self) -> float | None:
        """Per cent of its life that the eMMC under `state_dir` has used, rounded up to tenths."""
        try:
            number = self.state_dir.stat().st_dev
            block = (self.sys / f"dev/block/{os.major(number)}:{os.minor(number)}").resolve(strict=True)
        except OSError:
            return None
        device = (block.parent if (block / "partition").exists() else block) / "device"
        tenths = [
            int(word, 16) for word in text_of(device / "life_time").split() if re.fullmatch("0x[0-9a-fA-F]+", word)
        ]
        if _int(device / "pre_eol_info", 16) == _URGENT:
            return USED_UP_PCT
        return min(USED_UP_PCT, 10.0 * max(tenths)) if any(tenths) else None


def entries(directory: Path, prefix: str) -> list[Path]:
    """What is in a directory under names that begin so; nothing where it cannot be read."""
    try:
        return sorted(path for path in directory.iterdir() if path.name.startswith(prefix))
    except OSError:
        return []


def text_of(path: Path) -> str:
    """A small file's text; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(65536).decode("utf-8", "replace")
    except OSError:
        return ""


def _int(path: Path, base: int = 10) -> int | None:
    try:
        return int(text_of(path), base)
    except ValueError:
        return None


def _any(answers: list[bool | None]) -> bool | None:
    known = [answer for answer in answers if answer is not None]
    return any(known) if known else None
