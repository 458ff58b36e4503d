"""The programs that the demo runs: each in a session of its own, with its log, and none outlives the demo."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fl_protocol.errors import ConfigError
from fl_protocol.settings import PREFIX

GRACE_S = 5.0  # what a program gets to end after SIGTERM
_PR_SET_PDEATHSIG = 1  # prctl(2)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """What a process has used: megabytes at its peak (VmHWM), seconds of processor."""

    peak_mb: float
    cpu_s: float


@dataclass(frozen=True)
class Ended:
    """A program that ended: its exit code (negative: the signal), and the last line that it wrote."""

    name: str
    code: int
    last_words: str


class Processes:
    """Starts programs by name and ends them: gently, or by `kill -9`. Leaving the context ends all, newest first."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()

    def start(self, name: str, command: Sequence[str]) -> None:
        """Run `command`; what it prints goes to `logs/NAME.log`. Call it from the main thread, whose end ends it."""
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the demo alone, and the demo decides
                env=_environment(),
                preexec_fn=_die_with_parent(),
            )

    def log(self, name: str) -> Path:
        """Where a program's output goes."""
        return self.logs / f"{name}.log"

    def pid(self, name: str) -> int:
        """The process id of a running program."""
        return self._running[name].pid

    def runs(self, name: str) -> bool:
        """Whether the program was started and not ended by us."""
        return name in self._running

    def kill(self, name: str) -> None:
        """`kill -9`: no goodbye."""
        process = self._running.pop(name)
        _signal(process, signal.SIGKILL)
        process.wait()

    def stop(self, names: Iterable[str]) -> list[Ended]:
        """End these programs by SIGTERM, all at once, and say how they ended; those that do not are killed."""
        ending = {name: self._running[name] for name in names if name in self._running}
        try:
            for process in ending.values():
                _signal(process, signal.SIGTERM)
            until = time.monotonic() + GRACE_S
            for process in ending.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, until - time.monotonic()))
        finally:  # also when the person at the keyboard has lost patience
            for name in ending:
                self.kill(name)
        return [Ended(name, process.returncode, self.last_words(name)) for name, process in ending.items()]

    def stop_all(self) -> None:
        """End all: the agents together, then the gateway, then the broker that they say goodbye to."""
        servers = ("gateway", "broker")
        try:
            for names in ([name for name in self._running if name not in servers], *([name] for name in servers)):
                self.stop(names)
        finally:
            for name in list(self._running):
                self.kill(name)

    def run(self, name: str, command: Sequence[str], timeout: float) -> None:
        """Run a program to its end. Raises `ConfigError` with its last words when that is not a good one."""
        self.start(name, command)
        process = self._running[name]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
        code = process.poll()
        self.kill(name)
        if code != 0:
            how = f"exit code {code}" if code is not None else f"no end within {timeout:.0f} s"
            raise ConfigError(f"{name}: {how}: {self.last_words(name)}", f"see {self.log(name)}")

    def fallen(self) -> list[Ended]:
        """Programs that ended without being asked since the last call."""
        found = [Ended(n, p.returncode, self.last_words(n)) for n, p in self._running.items() if p.poll() is not None]
        for program in found:
            del self._running[program.name]
        return found

    def last_words(self, name: str) -> str:
        """The last line of a program's log."""
        with contextlib.suppress(OSError, IndexError):
            return self.log(name).read_text("utf-8", "replace").strip().splitlines()[-1][-300:]
        return ""

    def usage(self, name: str) -> Usage | None:
        """What a running program has used so far; None for one that is not there, or where there is no /proc."""
        if name not in self._running:
            return None
        proc = Path("/proc") / str(self.pid(name))
        try:
            status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
            times = (proc / "stat").read_text().rpartition(")")[2].split()  # field 3 onwards
            return Usage(
                peak_mb=float(status["VmHWM"].split()[0]) / 1024,
                cpu_s=(int(times[11]) + int(times[12])) / _TICKS_PER_S,  # utime, stime: proc(5)
            )
        except (OSError, KeyError, ValueError):
            return None


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Signal a program and whatever it started: it leads its own group."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _environment() -> dict[str, str]:
    """Ours, without settings of another fleet that would win over the demo's files."""
    return {k: v for k, v in os.environ.items() if not (k.startswith(PREFIX) and "__" in k)}


def _die_with_parent() -> Callable[[], None] | None:
    """What a child does first, so that it ends even when the demo itself is killed with -9 (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()  # looked up before the fork

    def promise() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return promise
