"""What both sides of bench_aggregate.py share: the same updates, the processor's time, the peak of this process.

Imports numpy alone: it also runs in the environment of Flower.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Turn = Callable[[], object]
LAYERS = ((5, 5, 1, 32), (32,), (5, 5, 32, 64), (64,), (512,), (512, 10), (10,))  # beside the large one


def shapes(size: int) -> list[tuple[int, ...]]:
    """`size` parameters in the tensors of McMahan's CNN (AISTATS 2017): one holds all but 57,000."""
    rest = sum(int(np.prod(shape)) for shape in LAYERS)
    if size < 2 * rest:
        return [(size,)]
    return [*LAYERS[:4], (size - rest,), *LAYERS[4:]]


def delta(i: int, size: int) -> Vector:
    """The i-th update: its own noise and a direction that all share. A tenth of all point away, three times as long."""
    common = np.random.default_rng(10**6).standard_normal(size, dtype=np.float32)
    own = np.random.default_rng(i).standard_normal(size, dtype=np.float32)
    sign = -3 if i % 10 == 9 else 1
    return np.float32(1e-3 * sign) * (own + np.float32(0.5) * common)


def examples(num: int, equal: bool) -> list[int]:
    """How many examples each update counts."""
    return [100] * num if equal else [50 + 7 * i % 101 for i in range(num)]


def measure(turns: Mapping[str, Turn], of: str, seconds: float, least: int) -> dict[str, Any]:
    """Turns that alternate: each one's milliseconds of processor time; and the peak (MB, 2^20 bytes) of the first `of`.

    `before_mb` is what the process holds before, `peak_mb` all that it held at once during the first turn.
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew: proc(5)
    before = _status("VmRSS")
    turns[of]()
    peak = _status("VmHWM")
    times: dict[str, list[float]] = {name: [] for name in turns}
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(times[of]) < least:
        for name, turn in turns.items():
            started = time.process_time()
            turn()
            times[name].append((time.process_time() - started) * 1e3)
    return {"ms": times, "before_mb": before, "peak_mb": peak}


def answer(result: dict[str, Any], made: Vector) -> None:
    """Say it on standard output, with some of the numbers that were made, so that both sides can be compared."""
    sample = np.asarray(made, np.float64)[:: max(1, made.size // 1000)]
    print(json.dumps({**result, "sample": sample.tolist()}))


def case() -> dict[str, Any]:
    """What this process is to do: JSON, its only argument."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    return asked


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))
