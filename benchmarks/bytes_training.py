"""Matched training in the twin: the same plan, seeds and number of updates; only codec and downlink differ.

A base experiment (benchmarks/experiments/bytes/MODEL.toml) is float32 both ways; an `Arm` changes lines of its
`[plan]`. Every run leaves a folder, named by what it is a run of, and one that is there is not run again: delete it
after a change of the programs.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import fmean

from anabranch.simulator.compare import Estimate, estimate
from anabranch.simulator.results import RUN, Run, read_run
from anabranch.simulator.running import Job, run_jobs
from fl_protocol.bundle import Bundle

EXPERIMENTS = Path(__file__).parent / "experiments"
PLACES = ("bytes", "models")  # where a model's experiment is looked for
FLOAT32 = 4
LAST = 10  # versions whose mean is a run's accuracy: a number fixed beforehand, since versions differ by a few tenths
CHECKPOINTS = (0.1, 0.25, 0.5, 1.0)  # of the bytes that the most frugal arm sends in all

Lines = Mapping[str, str]


@dataclass(frozen=True)
class Arm:
    """One way to send; `plan` are lines of TOML that take the place of the base's, or are added to it."""

    name: str
    plan: Lines


@dataclass(frozen=True)
class Cost:
    """What a run came to. Accuracy in 0..1; bytes at the devices' sockets, a mean over the updates that were made.

    `down_later` leaves out what had come before the first version was made of updates: the bundle, once in a device's
    life, and the initial parameters. `worst_down` is that of the device which received most for each update it sent.
    """

    accuracy: float
    int8: float | None
    updates: int
    up: float
    down: float
    down_later: float
    worst_down: float
    float32: float  # of one model, or one delta

    @property
    def up_ratio(self) -> float:
        """How many times fewer bytes than float32 deltas with nothing around them."""
        return self.float32 / self.up

    @property
    def down_ratio(self) -> float:
        """Against one float32 model for every update that was sent; the bundle counts."""
        return self.float32 / self.down

    @property
    def down_later_ratio(self) -> float:
        """The same without what comes once."""
        return self.float32 / self.down_later

    @property
    def total_ratio(self) -> float:
        """Both ways together."""
        return 2 * self.float32 / (self.up + self.down)


def variant(text: str, name: str, plan: Lines, bundle: Path, updates: int | None = None) -> str:
    """The base's text under another name, with other lines in its `[plan]`. Raises `ValueError` for a base without."""
    changes = {"name": f'"{name}"', "bundle": f'"{bundle}"', **({"updates": str(updates)} if updates else {})}
    for key, value in changes.items():
        text = _replaced(text, key, value, count=1)
    at = re.search(r"(?m)^\[plan\].*\n", text)
    if at is None:
        raise ValueError("the experiment has no [plan]")
    body, end, tail = text[at.end() :].partition("\n[")
    for key, value in plan.items():
        known = re.search(rf"(?m)^{key} =", body)
        body = _replaced(body, key, value, count=1) if known else f"{key} = {value}\n{body}"
    return text[: at.end()] + body + end + tail


def inline(settings: Mapping[str, str]) -> str:
    """Settings as TOML says them in one line."""
    return "{ " + ", ".join(f'{key} = "{value}"' for key, value in settings.items()) + " }"


def _replaced(text: str, key: str, value: str, count: int) -> str:
    new, times = re.subn(rf"(?m)^{key} = .*$", lambda _: f"{key} = {value}", text, count=count)
    if not times:
        raise ValueError(f"the experiment has no line `{key} = ...`")
    return new


@dataclass(frozen=True, kw_only=True)
class Runs:
    """An experiment's file, and its runs in folders beside it."""

    path: Path
    seeds: tuple[int, ...]

    def folder(self, seed: int) -> Path:
        """Where the run of that seed lies."""
        return self.path.parent / f"{self.path.stem}-seed-{seed}"

    @property
    def missing(self) -> list[Job]:
        """Runs that are not there yet."""
        return [Job(self.path, s, self.folder(s)) for s in self.seeds if not (self.folder(s) / RUN).is_file()]

    @property
    def runs(self) -> list[Run]:
        """All of its runs, by seed."""
        return [read_run(self.folder(seed)) for seed in self.seeds]


@dataclass(frozen=True, kw_only=True)
class Trial(Runs):
    """One arm of one model."""

    model: str
    arm: Arm
    num_parameters: int


def write_experiment(folder: Path, name: str, text: str, bundle: Path) -> Path:
    """The file of that text, whose name tells its content, and the bundle's, apart."""
    content = hashlib.sha256(text.encode() + bundle.read_bytes()).hexdigest()[:8]
    path = folder / f"{name}-{content}.toml"
    path.write_text(text, "utf-8")
    return path


def prepare(
    model: str, arms: Sequence[Arm], seeds: Sequence[int], bundle: Path, folder: Path, updates: int | None = None
) -> list[Trial]:
    """The model's trials, their files written; each file's name tells its content, and the bundle's, apart."""
    places = (EXPERIMENTS / place / f"{model}.toml" for place in PLACES)
    base = next(path for path in places if path.is_file()).read_text("utf-8")
    size = Bundle.read(bundle.read_bytes()).layout.num_parameters
    trials = []
    for arm in arms:
        name = f"{model}-{re.sub(r'[^a-z0-9.]+', '-', arm.name.lower())}".strip("-")
        text = variant(base, name, arm.plan, bundle.resolve(), updates)
        path = write_experiment(folder, name, text, bundle)
        trials.append(Trial(model=model, arm=arm, path=path, seeds=tuple(seeds), num_parameters=size))
    return trials


def run_missing(trials: Sequence[Runs], processes: int, progress: Callable[[str], None]) -> None:
    """Run what is not there yet: a seed of all arms after the other, so that what there is can be compared."""
    jobs = sorted((job for trial in trials for job in trial.missing), key=lambda job: job.seed)
    if jobs:
        for number, (job, summary) in enumerate(run_jobs(jobs, processes, lambda _: None), 1):
            broken = f"; BROKEN: {summary.violations[0]}" if summary.violations else ""
            value = "-" if summary.value is None else f"{summary.value:.4f}"
            progress(f"{number}/{len(jobs)} {job.path.stem} seed {job.seed}: {value} in {summary.wall_s:.0f} s{broken}")


def accuracy(run: Run) -> float:
    """The mean over the last versions; of a run that ended early, over what it had then."""
    return fmean([row.value for row in run.releases if row.value is not None][-LAST:])


def cost_of(run: Run, num_parameters: int) -> Cost:
    """A run's figures."""
    made = sum(device.trained for device in run.devices)
    first = next(row for row in run.releases if row.used)
    down = run.summary.bytes_down
    test = run.summary.test_last
    return Cost(
        accuracy=accuracy(run),
        int8=test.int8 if test else None,
        updates=made,
        up=run.summary.bytes_up / made,
        down=down / made,
        down_later=(down - first.bytes_down) / (made - first.updates),
        worst_down=max(device.bytes_down / device.trained for device in run.devices if device.trained),
        float32=FLOAT32 * num_parameters,
    )


def costs_of(trial: Trial) -> list[Cost]:
    """The trial's runs in figures, by seed."""
    return [cost_of(run, trial.num_parameters) for run in trial.runs]


def shown(value: Estimate | None, factor: float = 1.0, digits: int = 2) -> str:
    """A mean with its 95 % half width."""
    if value is None:
        return "-"
    half = "" if value.half_width is None else f" ± {factor * value.half_width:.{digits}f}"
    return f"{factor * value.mean:.{digits}f}{half}"


def table(trials: Sequence[Trial]) -> list[list[object]]:
    """A row an arm: accuracy, its difference to the first arm seed by seed, and bytes."""
    rows: list[list[object]] = [
        ["model", "what is sent", "accuracy, %", "against float32, points", "int8, %", "kB up an update",
         "times fewer up", "kB down an update", "times fewer down", "without the bundle", "times fewer in all"]
    ]  # fmt: skip
    baseline = costs_of(trials[0])
    for trial in trials:
        costs = costs_of(trial)
        gap = estimate([c.accuracy - b.accuracy for c, b in zip(costs, baseline, strict=True)])
        int8 = estimate([c.int8 for c in costs if c.int8 is not None])
        rows.append(
            [
                trial.model,
                trial.arm.name,
                shown(estimate([c.accuracy for c in costs]), 100),
                "" if trial is trials[0] else shown(gap, 100),
                shown(int8, 100),
                f"{fmean(c.up for c in costs) / 1e3:.2f}",
                f"{fmean(c.up_ratio for c in costs):.1f}",
                f"{fmean(c.down for c in costs) / 1e3:.1f}",
                f"{fmean(c.down_ratio for c in costs):.1f}",
                f"{fmean(c.down_later_ratio for c in costs):.1f}",
                f"{fmean(c.total_ratio for c in costs):.1f}",
            ]
        )
    return rows


def at_equal_bytes(trials: Sequence[Trial]) -> list[list[object]]:
    """Accuracy that each arm has reached when the fleet has sent so much: shares of what the most frugal arm sends."""
    every = [(trial, trial.runs) for trial in trials]
    most = min(fmean(run.summary.bytes_up for run in runs) for _, runs in every)
    marks = [ceil(most * share) for share in CHECKPOINTS]
    rows: list[list[object]] = [["model", "what is sent", *(f"{mark / 1e6:.2f} MB up" for mark in marks)]]
    for trial, runs in every:
        cells = [estimate(list(_reached(runs, mark))) for mark in marks]
        rows.append([trial.model, trial.arm.name, *(shown(cell, 100, 1) for cell in cells)])
    return rows


def _reached(runs: Sequence[Run], mark: int) -> Iterator[float]:
    """Each run's mean over its last versions before that many bytes were sent; nothing of one without any."""
    for run in runs:
        values = [row.value for row in run.releases if row.value is not None and row.bytes_up <= mark]
        if values:
            yield fmean(values[-3:])
