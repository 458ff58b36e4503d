"""`anabranch simulate`, from its options to what it prints and leaves behind."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import msgspec
from rich.console import Console

from anabranch.simulator.compare import compare, compare_table
from anabranch.simulator.experiment import load_experiment
from anabranch.simulator.results import RunSummary, read_run
from anabranch.simulator.running import Job, parse_seeds, run_job, run_jobs
from anabranch.simulator.shrink import shrink
from fl_protocol.errors import ConfigError

SHOWN = 5  # broken seeds that are told in full
EVERY_S = 15.0  # between two lines of progress where there is no terminal
INTERRUPTED = 130  # what a shell says of a program that Ctrl-C ended
MANY = 50  # seeds from which on only their sum is told


@dataclass(frozen=True)
class Options:
    """What the command line asks for; `seeds` and `faults` as text."""

    experiment: Path
    seeds: str = ""
    jobs: int = 1
    output: Path | None = None
    trace: bool = False
    faults: str | None = None
    shrink: bool = False
    check: bool = False
    cache: Path | None = None
    as_json: bool = False


def simulate_command(options: Options) -> int:
    """Run; returns 0 when every invariant held, 1 when one was broken. Raises `ConfigError`."""
    console = Console(stderr=options.as_json)
    if options.check and (options.output or options.trace):
        raise ConfigError("--check leaves no folder", "leave out --check, or --output and --trace")
    experiment = load_experiment(options.experiment)
    seeds = parse_seeds(options.seeds) if options.seeds else experiment.seeds
    only = _numbers(options.faults)
    base = (
        None if options.check else (options.output or Path("runs") / time.strftime(f"{experiment.name}-%Y%m%d-%H%M%S"))
    )
    folders = {seed: base / f"seed-{seed}" if base and len(seeds) > 1 else base for seed in seeds}
    jobs = [Job(options.experiment, seed, folders[seed], options.trace, only, options.cache) for seed in seeds]
    summaries: list[RunSummary] = []
    started = time.monotonic()
    try:
        _run(console, jobs, options.jobs, summaries)
    except KeyboardInterrupt:
        broken = [summary.seed for summary in summaries if not summary.ok]
        console.print(f"stopped: {len(summaries):,} of {len(jobs):,} seeds done, broken: {broken or 'none'}")
        return INTERRUPTED
    if options.shrink:
        _shrink_first(console, jobs, summaries)
    _tell_all(console, options, summaries, base, time.monotonic() - started)
    return 0 if all(summary.ok for summary in summaries) else 1


def _run(console: Console, jobs: Sequence[Job], processes: int, summaries: list[RunSummary]) -> None:
    """Run all, tell of each, and add it to `summaries`."""
    with _Progress(console) as progress:
        for job, summary in run_jobs(jobs, processes, progress.say):
            summaries.append(summary)
            if summary.violations and sum(not s.ok for s in summaries) <= SHOWN:
                _tell_broken(console, job, summary)
            if len(jobs) < MANY:
                console.print(_line(summary), highlight=False, soft_wrap=True)
            broken = sum(not s.ok for s in summaries)
            if len(jobs) > 1:
                progress.say(f"{len(summaries):,} of {len(jobs):,} seeds, {broken} broken")


class _Progress:
    """One line that changes, on a terminal; elsewhere a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("starting", spinner="line") if console.is_terminal else None
        self._next = time.monotonic() + EVERY_S

    def say(self, line: str) -> None:
        """How far it has come."""
        if self._status is not None:
            self._status.update(line)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY_S
            self._console.print(line, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


def compare_command(folders: Sequence[Path], output: Path | None, *, as_json: bool) -> int:
    """Hold finished runs beside each other. Raises `ConfigError`."""
    if not folders:
        raise ConfigError("nothing to compare", "name the folders of runs: anabranch simulate --compare RUN RUN ...")
    return compare(folders, output, as_json)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return () if text == "none" else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--faults {text}", "write the numbers of the faults to keep: 2,5; or none") from None


def _line(summary: RunSummary) -> str:
    value = "not measured" if summary.value is None else f"{summary.metric} {summary.value:.4f}"
    if (best := summary.test_best) is not None:
        int8 = "" if best.int8 is None else f", int8 {best.int8:.4f}"
        value += f"; best {summary.best:.4f} at version {best.version}: {best.value:.4f} on test{int8}"
    rate = summary.events / max(1e-9, summary.wall_s)
    return (
        f"seed {summary.seed}: {value}, {summary.versions} versions, {summary.counted} updates counted, "
        f"{summary.virtual_s:,.0f} s virtual in {summary.wall_s:.1f} s ({rate:,.0f} events/s), "
        f"{sum(summary.checks.values()):,} checks, {len(summary.violations)} broken; {summary.stopped}"
    )


def _tell_broken(console: Console, job: Job, summary: RunSummary) -> None:
    console.print(f"BROKEN, seed {job.seed}:", style="red", highlight=False)
    for violation in summary.violations[:SHOWN]:
        console.print(f"  {violation}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"  see it again:   {job.command} --trace", highlight=False, soft_wrap=True)
    console.print(f"  make it small:  {job.command} --shrink", highlight=False, soft_wrap=True)


def _shrink_first(console: Console, jobs: Sequence[Job], summaries: Sequence[RunSummary]) -> None:
    broken = {summary.seed: summary for summary in summaries if not summary.ok}
    for job in jobs:
        if job.seed in broken:
            _shrink(console, job, broken[job.seed])
            return
    console.print("nothing is broken: there is no schedule to shrink", highlight=False)


def _shrink(console: Console, job: Job, summary: RunSummary) -> None:
    """Find a small schedule that still breaks something, and say how to see it."""
    numbers = [int(fault.split()[0].lstrip("#")) for fault in summary.faults]
    tried = 0

    def fails(only: Sequence[int]) -> bool:
        nonlocal tried
        tried += 1
        return not run_job(replace(job, folder=None, trace=False, only=tuple(only))).ok

    with console.status(f"leaving faults out of the {len(numbers)} of seed {job.seed}", spinner="line"):
        small = replace(job, folder=None, only=shrink(numbers, fails))
    left = run_job(small)
    console.print(f"{len(small.only or ())} of {len(numbers)} faults break it ({tried} runs tried):", highlight=False)
    for line in (*left.faults, *left.violations[:1]):
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"  see it again:   {small.command} --trace", highlight=False, soft_wrap=True)


def _tell_all(
    console: Console, options: Options, summaries: Sequence[RunSummary], base: Path | None, wall_s: float
) -> None:
    broken = [summary.seed for summary in summaries if not summary.ok]
    events, checks = sum(s.events for s in summaries), sum(sum(s.checks.values()) for s in summaries)
    seeds = [summary.seed for summary in summaries]
    calm = [summary.calm_s for summary in summaries if summary.calm_s is not None]
    at_work = f", at work again {max(calm):.0f} s after its storm at the latest" if calm else ""
    console.print(
        f"{len(summaries):,} seeds ({min(seeds)} to {max(seeds)}) in {wall_s:.1f} s: {events:,} events "
        f"({events / max(wall_s, 1e-9):,.0f}/s), {sum(s.counted for s in summaries):,} updates counted, "
        f"{sum(len(s.faults) for s in summaries):,} faults, {checks:,} checks, {len(broken)} seeds broken{at_work}",
        highlight=False,
        soft_wrap=True,
    )
    if base is not None:
        if len(summaries) > 1 and not options.as_json:
            console.print(compare_table([read_run(base / f"seed-{seed}") for seed in sorted(seeds)]))
        console.print(f"results: {base}", highlight=False, soft_wrap=True)
    if options.as_json:
        plain = [msgspec.to_builtins(summary) for summary in sorted(summaries, key=lambda s: s.seed)]
        sys.stdout.write(json.dumps({"runs": plain, "broken": sorted(broken)}, indent=2) + "\n")
