"""Seeds run one after the other or side by side; each leaves a folder, or only its verdict."""

import multiprocessing
import os
import queue
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from anabranch.simulator.cache import ResultCache
from anabranch.simulator.experiment import Experiment, load_experiment
from anabranch.simulator.finals import keep_best, measure_finals
from anabranch.simulator.plots import plot_accuracy
from anabranch.simulator.recorder import Recorder
from anabranch.simulator.results import ReleaseRow, ResultsWriter, RunSummary
from anabranch.simulator.twin import Twin
from fl_protocol.errors import ConfigError

LOOK_S = 1.0  # between two lines of progress
MOST_SEEDS = 1_000_000
TRACE, PLOT, BEST = "trace.txt", "accuracy.png", "best"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One seed of an experiment's file. `folder` None: nothing is written. `only`: these faults of its schedule."""

    path: Path
    seed: int
    folder: Path | None = None
    trace: bool = False
    only: tuple[int, ...] | None = None
    cache: Path | None = None

    @property
    def command(self) -> str:
        """What a person types to see this again."""
        only = "" if self.only is None else f" --faults {','.join(map(str, self.only)) or 'none'}"
        return f"{_program()} simulate {_shown(self.path)} --seed {self.seed}{only}"


def _program() -> str:
    """As this one was called, if it was; so that a person can call it again."""
    called = Path(sys.argv[0])
    return _shown(called) if called.name == "anabranch" and called.is_file() else "anabranch"


def _shown(path: Path) -> str:
    here = os.path.relpath(path)
    return str(path) if here.startswith("..") else here


def run_job(job: Job, progress: Progress = lambda _: None) -> RunSummary:
    """Run one seed. Raises `ConfigError` for what the operator must mend."""
    experiment = load_experiment(job.path)
    started = time.monotonic()
    with ExitStack() as stack:
        writer = text = None
        if job.folder is not None:
            writer = stack.enter_context(ResultsWriter(job.folder, job.path.read_text("utf-8")))
            if job.trace:
                text = stack.enter_context((job.folder / TRACE).open("w", encoding="utf-8"))
        recorder = Recorder(writer.release if writer else _forget)
        cache = ResultCache(job.cache) if job.cache else None
        twin = Twin(experiment, job.seed, text=text, only=job.only, recorder=recorder, cache=cache)
        twin.run(_Looker(experiment, progress))
        recorder.close()
        summary = recorder.summary(job.command, time.monotonic() - started, measure_finals(twin))
        if writer is not None and job.folder is not None:
            run = writer.finish(summary, recorder.devices(), recorder.ledger())
            if run.releases:
                plot_accuracy([run], job.folder / PLOT)
            if experiment.training.real and run.releases:
                keep_best(twin, job.folder / BEST)
    return summary


def _forget(_row: ReleaseRow) -> None:
    """Nobody keeps the rows."""


class _Looker:
    """Says how far a run has come, once a second."""

    def __init__(self, experiment: Experiment, progress: Progress) -> None:
        self._experiment, self._progress = experiment, progress
        self._next = time.monotonic() + LOOK_S
        self._events = 0
        self._calls = 0

    def __call__(self, twin: Twin) -> None:
        """Look at the clock at every hundredth call."""
        self._calls += 1
        if self._calls % 100 or (now := time.monotonic()) < self._next:
            return
        rate = (twin.world.events - self._events) / (now - self._next + LOOK_S)
        self._next, self._events = now + LOOK_S, twin.world.events
        recorder = twin.recorder
        value = "" if recorder.value is None else f", {twin.bundle.metric} {recorder.value:.4f}"
        self._progress(
            f"{self._experiment.name} seed {twin.seed}: {_clock(twin.world.now)} virtual, version {recorder.version}, "
            f"{recorder.counted} updates{value}, {twin.awake} of {len(twin.devices)} awake, {rate:,.0f} events/s"
        )


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def run_jobs(jobs: Sequence[Job], processes: int, progress: Progress) -> Iterator[tuple[Job, RunSummary]]:
    """Run all of them, at most `processes` at once, and give each as it ends. Raises `ConfigError`."""
    if processes == 1 or len(jobs) == 1:
        for job in jobs:
            yield job, run_job(job, progress)
        return
    with multiprocessing.Manager() as manager:
        lines = manager.Queue()
        with ProcessPoolExecutor(processes, initializer=_report_to, initargs=(lines,)) as pool:
            size = max(1, min(32, len(jobs) // (4 * processes)))
            parts = [jobs[start : start + size] for start in range(0, len(jobs), size)]
            running = {pool.submit(_run_part, part): part for part in parts}
            try:
                while running:
                    done, _ = wait(running, LOOK_S, FIRST_COMPLETED)
                    while not lines.empty():
                        progress(lines.get())
                    for future in done:
                        yield from zip(running.pop(future), future.result(), strict=True)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


_lines: "queue.Queue[str] | None" = None  # of a child process: where its progress goes


def _report_to(lines: "queue.Queue[str]") -> None:
    global _lines  # an initializer has no other way
    _lines = lines


def _run_part(jobs: Sequence[Job]) -> list[RunSummary]:
    return [run_job(job, _lines.put if _lines else lambda _: None) for job in jobs]


def parse_seeds(text: str) -> tuple[int, ...]:
    """`7`, `1,2,3` or `0:1000` (the last one left out). Raises `ConfigError`."""
    try:
        if ":" in text:
            first, _, end = text.partition(":")
            if int(end) - int(first) > MOST_SEEDS:
                raise ConfigError(f"--seeds {text}", f"at most {MOST_SEEDS:,} at once")
            seeds = tuple(range(int(first), int(end)))
        else:
            seeds = tuple(int(part) for part in text.split(","))
        if not seeds or min(seeds) < 0:
            raise ValueError
    except ValueError:
        raise ConfigError(f"--seeds {text}", "write 7, or 1,2,3, or 0:1000") from None
    return seeds
