"""What codecs make of real deltas: bits a parameter, and how fast, on one thread.

The deltas are those of a small federation (FedAvg, four devices, a few versions) that begins with the model's initial
parameters and has learnt for a while; they are recorded once, and every codec is given the same ones, with its own
residual, as a device would. Time is the processor's, of calls that take turns with `np.copy`: whatever else the
machine does falls on all.
"""

import cProfile
import pstats
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from figures import spread

from edge_agent.sources import Dataset, Examples
from edge_agent.trainer import OnnxTrainer
from edge_agent.training import WorkOrder
from fl_protocol.bundle import Bundle
from fl_protocol.compression import make_compressor, prepare
from fl_protocol.tensors import ModelLayout, Vector

DEVICES = 4
EXAMPLES = 320  # of a device: ten batches of 32
SETTLED = 3  # of a codec's first versions, whose residuals are not yet what they will be
COPIES = 20  # np.copy is so quick that one is not measured well

Settings = Mapping[str, str]


@dataclass(frozen=True)
class Recorded:
    """A model's deltas: `by_device[d][version]`, each of shape (P,)."""

    layout: ModelLayout
    by_device: tuple[tuple[Vector, ...], ...]


@dataclass(frozen=True)
class Cost:
    """Of one codec on one model: bits a parameter (payload alone), and the error of one update with its residual.

    `error` is |a - q|^2 / |a|^2: what stays in the residual for a later update. Seconds are of the fastest calls and of
    the median one, `copy` that of np.copy of the same vector.
    """

    bits: float
    error: float
    encode: Mapping[str, float]
    decode: Mapping[str, float]
    copy: Mapping[str, float]


def record(bundle: Bundle, x: Any, y: Any, warm: int, versions: int, seed: int = 0) -> Recorded:
    """Deltas of `versions` versions, after `warm` versions that nobody records. `x`, `y`: examples to train with."""
    rng = np.random.default_rng(seed)
    trainer, layout = OnnxTrainer(bundle), bundle.layout
    rows = rng.permutation(len(x))[: DEVICES * EXAMPLES]
    none = Examples(x[:0], y[:0])
    shares = [Dataset(Examples(x[part], y[part]), none, x[:1]) for part in np.array_split(rows, DEVICES)]
    order = WorkOrder(bundle.batch_size, 1, 1000, dict(bundle.hyper))
    vector, personal = bundle.initial, bundle.personal
    found: list[list[Vector]] = [[] for _ in shares]
    for version in range(warm + versions):
        results = [trainer.train(vector, share, order, personal, rng, lambda: False) for share in shares]
        deltas = [result.parameters - vector[: layout.num_parameters] for result in results]
        if version >= warm:
            for device, delta in zip(found, deltas, strict=True):
                device.append(delta)
        step = np.mean(deltas, axis=0, dtype=np.float32)
        statistics = np.mean([result.statistics for result in results], axis=0, dtype=np.float32)
        vector = np.concatenate([vector[: layout.num_parameters] + step, statistics])
    return Recorded(layout, tuple(map(tuple, found)))


def measure(recorded: Recorded, settings: Settings, seconds: float) -> Cost:
    """What a codec with these settings makes of them; about `seconds` for its times."""
    compressor = make_compressor(settings, recorded.layout)
    size, rng = recorded.layout.num_parameters, np.random.default_rng(1)
    payloads, wanted, errors = [], [], []
    for deltas in recorded.by_device:
        residual = np.zeros(size, np.float32)
        for version, delta in enumerate(deltas):
            a = delta + residual
            prepared = prepare(compressor, delta, residual, clip_norm=None, rng=rng)
            residual = prepared.if_accepted
            if version >= SETTLED or len(deltas) <= SETTLED:
                payloads.append(prepared.payload)
                wanted.append(a)
                errors.append(float(np.square(a - prepared.sent).sum() / max(np.square(a).sum(), 1e-30)))
    vector, payload = wanted[-1], payloads[-1]
    turns: dict[str, Callable[[], object]] = {
        "copy": lambda: [np.copy(vector) for _ in range(COPIES)],
        "encode": lambda: compressor.compress(vector, rng),
        "decode": lambda: compressor.decompress(payload),
    }
    times = take_turns(turns, seconds)
    times["copy"] = [t / COPIES for t in times["copy"]]
    bits = 8 * float(np.mean([len(payload) for payload in payloads])) / size
    return Cost(bits, float(np.mean(errors)), *(spread(times[name]) for name in ("encode", "decode", "copy")))


def take_turns(turns: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of processor of each call, all in turn, for about `seconds` in all and five times at least."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(times[next(iter(turns))]) < 5:
        for name, turn in turns.items():
            started = time.process_time()
            turn()
            times[name].append(time.process_time() - started)
    return times


def profile(call: Callable[[], object], times: int = 20, rows: int = 8) -> list[tuple[str, float, int]]:
    """Where a call's time goes: (function, milliseconds of its own in one call, how often), the largest first."""
    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    for _ in range(times):
        call()
    profiler.disable()
    stats: Any = pstats.Stats(profiler)
    found = []
    for (path, _, name), (_, calls, own, _, _) in stats.stats.items():
        where = name if path == "~" else f"{path.rsplit('/', 1)[-1]}: {name}"
        found.append((where, own / times * 1e3, calls // times))
    return sorted(found, key=lambda row: -row[1])[:rows]


def megabytes_per_s(size: int, seconds: float) -> float:
    """Of float32, 10^6 bytes."""
    return 4 * size / seconds / 1e6


def codec_rows(name: str, recorded: Recorded, costs: Mapping[str, Cost]) -> list[list[object]]:
    """A model's rows of the table: a codec each."""
    rows: list[list[object]] = []
    size = recorded.layout.num_parameters
    for codec, cost in costs.items():
        speeds = [megabytes_per_s(size, t["min"]) for t in (cost.encode, cost.decode)]
        over = [t["min"] / cost.copy["min"] for t in (cost.encode, cost.decode)]
        cells = [f"{cost.bits:.3f}", f"{32 / cost.bits:,.1f}", f"{cost.error:.2f}", *(f"{s:,.0f}" for s in speeds)]
        rows.append([name, f"{size:,}", codec, *cells, *(f"{r:,.0f}" for r in over)])
    return rows


def label(settings: Settings) -> str:
    """As a person would say it: `uq step=2.0`."""
    others: Sequence[str] = [f"{key}={value}" for key, value in settings.items() if key != "name"]
    return " ".join([settings["name"], *others])
