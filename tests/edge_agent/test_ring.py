"""The ring: bounded by bytes and by days, oldest first out, whole after kill -9, power cuts and full disks."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anabranch.simulator.files import MemoryFiles
from anabranch.simulator.power import Death, PowerCut, never
from edge_agent.ring import DAY_S, Ring
from edge_agent.ring_files import ERASING, Held, erase, look
from edge_agent.segments import Form
from edge_agent.sensing import RingConfig
from edge_agent.sources import InputSpec
from edge_agent.sources.ring_source import RingSource
from fl_protocol.durable import OS_FILES, Files
from fl_protocol.errors import ConfigError
from tests.edge_agent.rig import ROOT
from tests.support.small_disk import SmallDisk, on_a_small_disk
from tests.support.waiting import wait_until

FORM = Form((2, 3), "ax,ay; 3 values")
NOW = 1_800_000_000.0
DIRECTORY = Path("/ring")
SPEC = InputSpec((2, 3), "float32", (), "int64", ("a", "b"))


class Bench:
    """A ring on either disk, with clocks that the test turns."""

    def __init__(self, files: Files, directory: Path) -> None:
        self.files, self.directory = files, directory
        self.wall, self.clock = NOW, 0.0

    def open(self, form: Form = FORM, **config: float) -> Ring:
        settings = RingConfig(**{"max_mb": 0.0625, "flush_kb": 1.0, "days": 0.0, **config})  # type: ignore[arg-type]
        return Ring(self.directory, form, settings, wall=lambda: self.wall, clock=lambda: self.clock, files=self.files)

    def bytes(self) -> int:
        return sum(self.files.size(self.directory / n) for n in self.files.names(self.directory))


@pytest.fixture(params=["os", "memory"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return Bench(OS_FILES, tmp_path / "ring") if request.param == "os" else Bench(MemoryFiles(), DIRECTORY)


def put(ring: Ring, *numbers: int, time_s: float = NOW) -> None:
    """Examples that say which they are."""
    for number in numbers:
        ring.append(np.full(FORM.shape, number, np.float32), number % 2, time_s)


def numbers(ring: Ring, max_bytes: int = 1 << 20) -> list[int]:
    """Which examples are there, in order; each is whole and has its own label."""
    x, y = ring.read(max_bytes)
    assert (x == x[:, :1, :1]).all()
    assert (y == x[:, 0, 0] % 2).all()
    return [int(each[0, 0]) for each in x]


def test_examples_come_back_in_order_over_restarts(bench: Bench) -> None:
    """What was flushed, and what waits is not there until it is."""
    ring = bench.open()
    put(ring, *range(5))
    assert numbers(ring) == []
    ring.flush()
    assert numbers(ring) == [0, 1, 2, 3, 4]
    put(ring, 5)
    ring.close()
    assert numbers(bench.open()) == list(range(6))
    held = bench.open().held()
    assert (held.examples, held.shape, held.newest_s, held.damaged) == (6, (2, 3), NOW, 0)
    assert held == look(bench.directory, bench.files)


def test_a_batch_is_written_when_it_is_large_or_old_enough(bench: Bench) -> None:
    """One write of a kilobyte; or what there is after `flush_s`."""
    ring = bench.open(flush_s=60)
    rows = 1024 // FORM.dtype.itemsize
    put(ring, *range(rows - 1))
    ring.tick()
    assert ring.written == 0
    put(ring, rows - 1)
    assert numbers(ring) == list(range(rows))
    put(ring, 100)
    assert ring.wake_at == 60
    bench.clock = 59.0
    ring.tick()
    assert len(numbers(ring)) == rows
    bench.clock = 60.0
    ring.tick()
    assert numbers(ring)[-1] == 100
    assert ring.wake_at == float("inf")


def test_bytes_are_bounded_and_the_oldest_go_first(bench: Bench) -> None:
    """At each moment; a full ring holds at least seven eighths of what it may, headers included."""
    ring = bench.open()
    for number in range(2500):
        put(ring, number)
        assert bench.bytes() <= 65536
    ring.close()
    kept = numbers(ring)
    assert kept == list(range(kept[0], 2500))
    assert len(kept) * FORM.dtype.itemsize > 65536 * 7 / 8
    assert numbers(bench.open()) == kept
    smaller = bench.open(max_mb=0.0625, flush_kb=1.0)
    assert smaller.held().num_bytes <= 65536


def test_a_smaller_limit_holds_from_the_next_start(bench: Bench) -> None:
    """The oldest go at once."""
    ring = bench.open(max_mb=0.25)
    put(ring, *range(5000))
    ring.close()
    assert bench.bytes() > 65536
    kept = numbers(bench.open(max_mb=0.0625))
    assert kept == list(range(kept[0], 5000))
    assert bench.bytes() <= 65536


def test_days_are_bounded_too(bench: Bench) -> None:
    """To the example in what is read, to the segment on the disk; one without a time is as old as what follows."""
    ring = bench.open(days=2)
    for day in range(4):
        put(ring, *range(100 * day, 100 * day + 100), time_s=NOW + day * DAY_S)
        ring.flush()
    bench.wall = NOW + 4.5 * DAY_S
    assert numbers(ring) == list(range(300, 400))
    put(ring, 400, time_s=0.0)
    put(ring, 401, time_s=NOW + 3.1 * DAY_S)
    ring.flush()
    assert numbers(ring) == list(range(300, 402))
    bench.wall = NOW + 5.05 * DAY_S
    assert numbers(ring) == [400, 401]
    bench.wall = NOW + 9 * DAY_S
    assert numbers(ring) == []
    assert bench.bytes() == 0


def test_without_a_clock_nothing_grows_old(bench: Bench) -> None:
    """A Pi starts in 1970: that is no reason to forget, and no time to keep."""
    ring = bench.open(days=2)
    put(ring, 1, 2, time_s=0.0)
    ring.flush()
    bench.wall = 100.0
    assert numbers(bench.open(days=2)) == [1, 2]
    assert look(bench.directory, bench.files).newest_s is None
    bench.wall = NOW
    assert numbers(bench.open(days=2)) == [1, 2]


def test_reading_is_bounded_by_memory(bench: Bench) -> None:
    """The newest that fit."""
    ring = bench.open()
    put(ring, *range(1000))
    ring.flush()
    assert numbers(ring, 10 * FORM.dtype.itemsize) == list(range(990, 1000))


def test_another_form_is_refused_with_both_ways_out(bench: Bench) -> None:
    """Other channels under the old examples would teach nonsense."""
    ring = bench.open()
    put(ring, 1)
    ring.close()
    with pytest.raises(ConfigError, match=r"shape \(2, 3\) \(ax,ay; 3 values\).*\(2, 4\)") as caught:
        bench.open(Form((2, 4), "ax,ay; 4 values"))
    assert "data forget" in caught.value.hint
    with pytest.raises(ConfigError, match="ax,ay"):
        bench.open(Form((2, 3), "az,ay; 3 values"))


def test_an_example_that_is_too_large_for_the_ring(bench: Bench) -> None:
    """Said with the least that would do."""
    with pytest.raises(ConfigError, match=r"ring\.max_mb is 0\.0625") as caught:
        bench.open(Form((1000, 10), "large"))
    assert "max_mb of at least 0.67, and flush_kb of at least 40" in caught.value.hint


def test_damage_costs_its_segment_alone(bench: Bench) -> None:
    """A byte of rotten flash: that segment goes, the others are read."""
    ring = bench.open()
    for first in (0, 10, 20):
        put(ring, *range(first, first + 10))
        ring.flush()
    path = bench.directory / sorted(n for n in bench.files.names(bench.directory) if n.endswith(".ring"))[1]
    size = bench.files.size(path)
    bench.files.write_at(path, size // 2, b"\xff\xff\xff")
    assert numbers(ring) == [*range(10), *range(20, 30)]
    ring = bench.open()
    assert (numbers(ring), ring.damaged) == ([*range(10), *range(20, 30)], size)


def test_small_segments_are_joined(bench: Bench) -> None:
    """A device that hears little would else have a file for every `flush_s`; nothing is lost or doubled by it."""
    ring = bench.open(flush_kb=4, max_mb=1)
    for number in range(400):
        put(ring, number)
        ring.flush()
        assert numbers(ring)[-1] == number
    assert numbers(ring) == list(range(400))
    held = ring.held()
    assert held.segments < 3 * 16
    assert held == look(bench.directory, bench.files)
    assert numbers(bench.open(flush_kb=4, max_mb=1)) == list(range(400))


def test_forgetting_leaves_nothing(bench: Bench) -> None:
    """Neither on the disk, nor in memory; and the ring goes on."""
    ring = bench.open()
    put(ring, *range(200))
    ring.see(np.full(FORM.shape, 7, np.float32))
    put(ring, 1, 2)
    source = RingSource(ring)
    assert len(source.load(SPEC).train)
    gone = source.forget()
    assert gone.examples > 100
    assert numbers(ring) == []
    assert ring.newest is None
    assert not ring._rows["x"].any()
    assert bench.files.names(bench.directory) == []
    with pytest.raises(ConfigError, match="no example yet"):
        source.load(SPEC)
    put(ring, 9)
    ring.flush()
    assert numbers(ring) == [9]
    assert numbers(bench.open()) == [9]


def test_what_is_erased_is_overwritten_first(tmp_path: Path) -> None:
    """A descriptor that was open before sees zeros."""
    bench = Bench(OS_FILES, tmp_path / "ring")
    ring = bench.open()
    put(ring, *range(1, 20))
    ring.flush()
    (path,) = bench.directory.glob("*.ring")
    with path.open("rb") as before:
        assert erase(bench.directory).examples == 19
        assert not any(before.read())
    assert erase(tmp_path / "gone") == Held()


# --- the disk dies -----------------------------------------------------------------------------------------------


FILLED = 1700


def fill(ring: Ring, first: int, count: int = FILLED) -> None:
    """Segments enough to go round the ring."""
    for number in range(first, first + count):
        put(ring, number)
    ring.close()


def crash_points(work: Callable[[Bench], None], prepare: Callable[[Bench], None]) -> int:
    """How many effects `work` has on the disk."""
    files, count = MemoryFiles(), 0
    bench = Bench(files, DIRECTORY)
    prepare(bench)

    def tick(label: str) -> None:
        nonlocal count
        count += 1

    files.crash_point = tick
    work(bench)
    return count


def dies_at(point: int, death: Death, work: Callable[[Bench], None], prepare: Callable[[Bench], None]) -> Bench:
    """A disk on which `work` died just before its effect number `point`, after the reboot."""
    files = MemoryFiles()
    bench = Bench(files, DIRECTORY)
    prepare(bench)
    left = point

    def cut(label: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise PowerCut(death)

    files.crash_point = cut
    with pytest.raises(PowerCut):
        work(bench)
    files.crash_point = never
    files.die(death, np.random.default_rng(point))
    files.reboot()
    return bench


@pytest.mark.parametrize("death", ["kill", "power"])
def test_what_was_flushed_survives_death_at_every_effect(death: Death) -> None:
    """Nothing torn is read, nothing that a flush has promised is missing, and the next process goes on."""
    promised = [FILLED]

    def prepare(bench: Bench) -> None:
        fill(bench.open(), 1)

    def work(bench: Bench) -> None:
        ring = bench.open()
        promised[0] = FILLED
        for number in range(FILLED + 1, FILLED + 300):
            put(ring, number)
            if not number % 25:
                assert ring.flush()
                promised[0] = number

    points = crash_points(work, prepare)
    assert points > 30
    for point in range(points):
        bench = dies_at(point, death, work, prepare)
        ring = bench.open()
        kept = numbers(ring)
        assert kept == list(range(kept[0], kept[-1] + 1)), point
        assert kept[-1] >= promised[0], (point, kept[-1], promised)
        assert ring.held().num_bytes <= 65536
        put(ring, kept[-1] + 1)
        ring.close()
        assert numbers(bench.open()) == [*kept, kept[-1] + 1][-len(numbers(bench.open())) :]


@pytest.mark.parametrize("death", ["kill", "power"])
def test_an_erasure_that_was_begun_is_ended(death: Death) -> None:
    """Power cut at any effect of it: all is there, as if it had not begun, or the next start leaves nothing."""

    def work(bench: Bench) -> None:
        bench.open().forget()

    outcomes = set()
    for point in range(crash_points(work, lambda bench: fill(bench.open(), 1, 300))):
        bench = dies_at(point, death, work, lambda bench: fill(bench.open(), 1, 300))
        begun = bench.files.is_file(bench.directory / ERASING)
        kept = numbers(bench.open())
        assert kept in ([], list(range(kept[0] if kept else 0, 301)))
        assert not (begun and kept)
        assert not bench.files.is_file(bench.directory / ERASING)
        outcomes.add(bool(kept))
    assert outcomes == {True, False}


@on_a_small_disk(kilobytes=256)
def test_a_full_disk_is_waited_for(disk: SmallDisk) -> None:
    """What waits is kept as far as memory allows; the oldest of it goes, counted; and nothing is half-written."""
    bench = Bench(OS_FILES, disk.path / "ring")
    ring = bench.open(flush_s=10)
    put(ring, *range(100))
    ring.flush()
    disk.fill(0)
    put(ring, *range(100, 400))
    assert ring.dropped > 0
    assert not ring.flush()
    assert ring.wake_at == 10
    before = numbers(ring)
    assert before == list(range(before[-1] + 1))
    disk.make_room()
    bench.clock = 10.0
    ring.tick()
    after = numbers(ring)
    assert after[: len(before)] == before
    assert after[len(before) :] == list(range(before[-1] + 1 + ring.dropped, 400))
    assert numbers(bench.open()) == after


def test_a_disk_that_fails_is_the_operators(tmp_path: Path) -> None:
    """Not a directory: one sentence."""
    (tmp_path / "ring").write_text("")
    with pytest.raises(ConfigError, match="cannot use the ring"):
        Bench(OS_FILES, tmp_path / "ring").open()


WRITER = """
import sys
from pathlib import Path
from tests.edge_agent.test_ring import OS_FILES, Bench, numbers, put
bench = Bench(OS_FILES, Path(sys.argv[1]))
bench_ring = bench.open()
number = (numbers(bench_ring) or [0])[-1]
while True:
    number += 1
    put(bench_ring, number)
    if not number % 20:
        bench_ring.flush()
        print(number, flush=True)
"""


def test_killed_again_and_again_it_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    """Real processes, real kill -9, on a real disk."""
    for turn in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "ring")],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(30 + 17 * turn)]
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.wait()
        promised = int((lines + [line for line in rest.splitlines(keepends=True) if line.endswith(b"\n")])[-1])
        kept = numbers(Bench(OS_FILES, tmp_path / "ring").open())
        assert kept == list(range(kept[0], kept[-1] + 1))
        assert kept[-1] >= promised


# --- as a source -------------------------------------------------------------------------------------------------


def test_the_ring_is_a_source(bench: Bench) -> None:
    """Training takes nine tenths, the last tenth is held out, and a prediction is about what was seen last."""
    ring = bench.open()
    source = RingSource(ring)
    put(ring, *range(100))
    ring.flush()
    dataset = source.load(SPEC)
    assert (len(dataset.train), len(dataset.validation)) == (90, 10)
    assert (dataset.train.x.dtype, dataset.train.y.dtype) == (np.float32, np.int64)
    assert dataset.newest[0, 0, 0] == source.newest(SPEC)[0, 0, 0] == 99
    assert source.load(SPEC) is dataset
    ring.see(np.full(FORM.shape, 7, np.float32))
    assert source.load(SPEC) is dataset
    assert source.newest(SPEC).shape == (1, 2, 3)
    assert source.newest(SPEC)[0, 0, 0] == 7
    put(ring, 100)
    ring.flush()
    assert len(source.load(SPEC).train) == 91
    assert "101 examples" in source.summary()
    flat = source.load(InputSpec((6,), "float32", (1,), "float32", ()))
    assert (flat.train.x.shape, flat.train.y.shape) == ((91, 6), (91, 1))
    for wrong in (InputSpec((3, 2), "float32", (), "int64", ()), InputSpec((2, 3), "float32", (2,), "int64", ())):
        with pytest.raises(ConfigError, match="the model wants"):
            source.load(wrong)


def test_a_label_that_the_model_does_not_know(bench: Bench) -> None:
    """Said as for files; the label itself is not in what may leave."""
    ring = bench.open()
    ring.append(np.zeros(FORM.shape, np.float32), 77, NOW)
    ring.flush()
    with pytest.raises(ConfigError, match="label in row 0 is 77") as caught:
        RingSource(ring).load(SPEC)
    assert "77" not in caught.value.told  # type: ignore[attr-defined]


def test_three_threads_at_once(tmp_path: Path) -> None:
    """One appends, one reads, one forgets: every example that is read is whole."""
    import threading

    ring = Ring(tmp_path / "ring", FORM, RingConfig(max_mb=0.0625, flush_kb=1))
    stop, errors = threading.Event(), []

    def loop(action: Callable[[int], None]) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            try:
                action(turn)
            except Exception as error:
                errors.append(error)
                return

    read = []
    threads = [
        threading.Thread(target=loop, args=(action,))
        for action in (
            lambda n: put(ring, n),
            lambda _: read.append(len(numbers(ring))),
            lambda n: n % 50 or ring.forget(),
        )
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: errors or len(read) > 200, 30, "many reads")
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
