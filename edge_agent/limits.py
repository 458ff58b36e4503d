"""What this process may use of the machine: processor cores, and memory that is still to be had.

Linux tells both twice: the machine's own figures, and what the control group (a container, a systemd unit) leaves of
them. Version 2 of control groups is read; under version 1 only the machine's figures count.
"""

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_MB = 2**20


def cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Cores that may run this process: those of its affinity, or fewer where a control group's quota is smaller."""
    quota = math.inf
    for group in _groups(proc, cgroups):
        limit, _, period = _text(group / "cpu.max").partition(" ")  # "max 100000" or "150000 100000", microseconds
        if limit.isdigit() and period.strip().isdigit():
            quota = min(quota, int(limit) / int(period))
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, int(min(quota, allowed))))


def free_memory_mb(proc: Path = PROC, cgroups: Path = CGROUPS) -> float:
    """Megabytes that this process may take on top of what it has; infinite where nothing tells.

    MemAvailable, or less where a control group's `memory.max` is nearer; its page cache counts as free.
    """
    free = [_kilobytes(proc / "meminfo", "MemAvailable") / 1024]
    for group in _groups(proc, cgroups):
        most, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
        if most.isdigit() and used.isdigit():
            cached = sum(_field(group / "memory.stat", name) for name in ("inactive_file", "active_file"))
            free.append((int(most) - int(used) + cached) / _MB)
    return max(0.0, min(free))


def hold_memory(megabytes: float) -> None:
    """Let this process take so much more memory than it has, and no more: what asks for more gets an error.

    An error of one graph can be told and outlived; the kernel's killer, which comes otherwise, picks the process. It is
    the soft limit RLIMIT_DATA, which a later call moves. Nothing happens where the figures are not told.
    """
    data_mb = _kilobytes(PROC / "self/status", "VmData") / 1024
    if math.isfinite(megabytes + data_mb):
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = int((data_mb + megabytes) * _MB)
        resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _groups(proc: Path, cgroups: Path) -> Iterator[Path]:
    """This process's control group and those around it; each may hold it back."""
    for line in _text(proc / "self/cgroup").splitlines():
        if line.startswith("0::/"):
            inner = cgroups / line.removeprefix("0::/")
            yield from (path for path in (inner, *inner.parents) if path.is_relative_to(cgroups))


def _kilobytes(path: Path, name: str) -> float:
    """A field in kB, as /proc writes them; infinite if it is not there."""
    for line in _text(path).splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1])
    return math.inf


def _field(path: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in _text(path).splitlines() if line.startswith(f"{name} ")), 0)


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""
