"""Millions of damaged inputs for every decoder that a peer can reach: each is read, or refused with `ProtocolError`.

Targets are all codecs with all coders, every kind of message, updates, statistics, bitmaps and chunks. An input is an
honest one with bits turned, and bytes overwritten, cut off, put in or on, or taken from another input; one in sixteen
is noise. A decoder that raises anything else, warns, gives numbers that are not finite, or takes more memory than its
layout and input allow (looked at now and then, which is slow) is a fault: the input is printed, and the exit status is
1. The same seed gives the same inputs.
"""

import argparse
import sys
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fl_protocol.chunks import Incoming, Outgoing, decode_bitmap, encode_bitmap
from fl_protocol.codec import MESSAGE_OF, decode, decode_as, encode
from fl_protocol.compression import decode_statistics, encode_statistics, make_compressor
from fl_protocol.compression.coders import NAMES
from fl_protocol.errors import ProtocolError
from fl_protocol.messages import Chunk, Envelope, Update
from fl_protocol.tensors import ModelLayout, TensorEntry

MESSAGES = Path(__file__).resolve().parents[1] / "tests" / "wire" / "messages"
SHAPES = ((12, 24), (24,), (), (24, 3))
LAYOUT = ModelLayout(
    (TensorEntry("range", (4,), "statistic"), *(TensorEntry(f"t{i}", s, "parameter") for i, s in enumerate(SHAPES)))
)
MEMORY = 20 * 4 * LAYOUT.num_parameters + (1 << 20)  # 20 vectors and a megabyte, and 20 times the input
SLOW = 20  # a target with rANS gets so many times fewer inputs
CODECS = (
    *({"name": "uq", "step": step, "coder": coder} for step in ("0.5", "3") for coder in ("rice", "range", "deflate")),
    *({"name": "qsgd", "bits": bits, "coder": coder} for bits in ("1", "2", "4", "8") for coder in NAMES),
    *({"name": "topk", "share": "0.1", "values": v, "coder": c} for v in ("4", "16") for c in ("rice", "deflate")),
    {"name": "none"},
    {"name": "float16"},
    {"name": "ternary", "share": "0.1"},
    {"name": "sign"},
    {"name": "threshold"},
    {"name": "randomk"},
    {"name": "randomk", "values": "4", "gain": "unbiased"},
    {"name": "eden", "bits": "1"},
    {"name": "eden", "bits": "2"},
    {"name": "powersgd", "rank": "3"},
)


@dataclass(frozen=True)
class Target:
    """A decoder, and honest inputs to damage."""

    name: str
    honest: Sequence[bytes]
    read: Callable[[bytes], object]
    share: float = 1.0


@dataclass
class Tally:
    """What became of the inputs of one target."""

    inputs: int = 0
    read: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    most_memory: int = 0
    faults: list[str] = field(default_factory=list)


def targets() -> Iterator[Target]:
    """All of them."""
    rng = np.random.default_rng(0)
    size = LAYOUT.num_parameters
    drawn = [rng.standard_normal(size), rng.standard_t(1.5, size), np.eye(1, size)[0], np.zeros(size)]
    vectors = [vector.astype(np.float32) for vector in drawn]
    for settings in CODECS:
        codec = make_compressor(settings, LAYOUT)
        name = " ".join([settings["name"], *(f"{k}={v}" for k, v in settings.items() if k != "name")])
        share = 1 / SLOW if settings.get("coder") == "range" else 1.0
        yield Target(name, [codec.compress(v, rng) for v in vectors], _finite(codec.decompress), share)
    statistics = encode_statistics(np.ones(LAYOUT.num_statistics, np.float32))
    yield Target("statistics", [statistics], lambda payload: decode_statistics(payload, LAYOUT))
    honest = [path.read_bytes() for path in sorted(MESSAGES.glob("*.bin"))]
    for kind in MESSAGE_OF:
        read = partial(decode, kind)
        yield Target(f"message {kind.value}", [payload for payload in honest if _reads(read, payload)], read)
    envelopes = [payload for payload in honest if _reads(partial(decode_as, Envelope), payload)]
    updates = [decode_as(Envelope, payload).body for payload in envelopes]
    yield Target("update", updates, partial(decode_as, Update))
    flags = [encode_bitmap(rng.random(20) < 0.5) for _ in range(4)]
    yield Target("bitmap", flags, lambda payload: decode_bitmap(payload, 20))
    outgoing = Outgoing(bytes(range(256)) * 8, 200)
    yield Target("chunk", [encode(outgoing.chunk(i)) for i in range(4)], lambda payload: _add(outgoing, payload))


def _reads(read: Callable[[bytes], object], payload: bytes) -> bool:
    try:
        read(payload)
    except ProtocolError:
        return False
    return True


def _finite(read: Callable[[bytes], np.ndarray]) -> Callable[[bytes], object]:
    def checked(payload: bytes) -> object:
        vector = read(payload)
        if vector.shape != (LAYOUT.num_parameters,) or not np.isfinite(vector).all():
            raise AssertionError("not a finite vector of the layout")
        return vector

    return checked


def _add(outgoing: Outgoing, payload: bytes) -> bool:
    """A chunk for an object in the making."""
    incoming = Incoming(outgoing.sha256, 2048, 200)
    return incoming.add(decode_as(Chunk, payload))


def damaged(honest: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """One honest input, no longer so."""
    if rng.integers(16) == 0:
        return rng.bytes(int(rng.integers(0, 400)))
    data = bytearray(honest[int(rng.integers(len(honest)))])
    for _ in range(int(rng.integers(1, 5))):
        at, way = int(rng.integers(len(data) + 1)), int(rng.integers(7))
        if way == 0:
            data = data[:at]
        elif way == 1:
            data += rng.bytes(int(rng.integers(1, 9)))
        elif way == 2:
            other = honest[int(rng.integers(len(honest)))]
            data = data[:at] + bytearray(other[int(rng.integers(len(other) + 1)) :])
        elif way == 3:
            data[at:at] = rng.bytes(int(rng.integers(1, 5)))
        elif at < len(data):
            data[at] = (data[at] ^ 1 << int(rng.integers(8))) if way < 6 else (0, 255, 127, 128)[int(rng.integers(4))]
    return bytes(data)


def fuzz(target: Target, count: int, seed: int, measure_every: int) -> Tally:
    """`count` inputs for one target; the memory of one in `measure_every` is measured."""
    tally, rng = Tally(), np.random.default_rng([seed, *target.name.encode()])
    for i in range(count):
        payload = damaged(target.honest, rng)
        measured = i % measure_every == 0
        if measured:
            tracemalloc.start()
        tally.inputs += 1
        try:
            target.read(payload)
            tally.read += 1
        except ProtocolError as error:
            tally.refused[str(error.code)] += 1
        except Exception as error:  # whatever it is, it is what we look for
            tally.faults.append(f"{target.name}: {type(error).__name__}: {error}: {payload!r}")
        if measured:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            tally.most_memory = max(tally.most_memory, peak)
            if peak > MEMORY + 20 * len(payload):
                tally.faults.append(f"{target.name}: {peak} bytes of memory: {payload!r}")
    return tally


def main() -> int:
    """Fuzz all targets and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2_000_000, help="over all targets, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets whose name contains this")
    options = parser.parse_args()
    warnings.simplefilter("error")
    chosen = [target for target in targets() if options.only in target.name]
    if not chosen:
        parser.error(f"no target's name contains {options.only!r}")
    each = options.inputs / sum(target.share for target in chosen)
    started, total, faults = time.monotonic(), Tally(), 0
    print(f"{'target':34}{'inputs':>10}{'read':>9}{'peak kB':>9}{'µs each':>9}  refused")
    for target in chosen:
        began = time.process_time()
        tally = fuzz(target, max(1, round(each * target.share)), options.seed, measure_every=200)
        pace = 1e6 * (time.process_time() - began) / tally.inputs
        refused = ", ".join(f"{code} {count}" for code, count in tally.refused.most_common())
        print(f"{target.name:34}{tally.inputs:10,}{tally.read:9,}{tally.most_memory / 1000:9.0f}{pace:9.0f}  {refused}")
        for fault in tally.faults[:5]:
            print(f"  FAULT {fault}", flush=True)
        faults += len(tally.faults)
        total.inputs += tally.inputs
        total.read += tally.read
        total.most_memory = max(total.most_memory, tally.most_memory)
    print(
        f"{total.inputs:,} inputs, seed {options.seed}: {total.read:,} read, {total.inputs - total.read - faults:,} "
        f"refused, {faults} faults; peak {total.most_memory / 1000:.0f} kB; {time.monotonic() - started:.0f} s"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
