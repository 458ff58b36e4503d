"""Several runs side by side: one row an experiment, means over its seeds. `anabranch simulate --compare RUN...`."""

import contextlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anabranch.simulator.plots import SIZES, TIMES, by_experiment, plot_accuracy, scale
from anabranch.simulator.results import RELEASES, RUN, Run, read_run
from fl_protocol.better import reaches
from fl_protocol.errors import ConfigError

FIGURE = "comparison.png"
WIDE = 160  # columns where no terminal says how many it has
# The 97.5 % points of Student's t, by degrees of freedom: https://www.itl.nist.gov/div898/handbook/eda/section3/eda3672.htm
T_975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
)
NORMAL_975 = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds; the true mean lies within `half_width` of it in 95 % of all such samples.

    `half_width` is None for one seed, which says nothing of the spread.
    """

    mean: float
    half_width: float | None
    n: int


@dataclass(frozen=True)
class ExperimentRow:
    """One experiment over its seeds.

    `value` is the metric, the mean of each run's last measured releases; `test` and `test_int8` are the test set's, of
    the versions that validation chose (None: of none). `seconds_to_target` are virtual, the mean over
    the `reached` runs that came to the target at all. `stale_share` of all updates with a final verdict, pooled over
    seeds, like `times_smaller`: the bytes of updates as float32 by the bytes that they were. `failing` are the commands
    that replay runs with violations. `died` trainings ended with their device, `longest_s` is the longest time without
    a version, in any of the runs; `tiers` is the last version's metric on the examples of each tier's own devices.
    """

    experiment: str
    seeds: tuple[int, ...]
    metric: str
    value: Estimate | None
    target: float | None
    reached: int
    seconds_to_target: Estimate | None
    versions: Estimate
    accepted: Estimate
    stale_share: float | None
    staleness: Estimate
    bytes_up: Estimate
    times_smaller: float | None
    violations: int
    failing: tuple[str, ...]
    test: Estimate | None = None
    test_int8: Estimate | None = None
    died: int = 0
    longest_s: float | None = None
    tiers: dict[str, Estimate] = field(default_factory=dict)


def t_975(degrees: int) -> float:
    """The 97.5 % point of Student's t: half of a 95 % interval, in standard errors.

    From a table, and beyond it by Cornish and Fisher's expansion around the normal (Abramowitz & Stegun 26.7.5), right
    to 0.001 there.
    """
    if degrees <= len(T_975):
        return T_975[degrees - 1]
    z, v = NORMAL_975, degrees
    return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and 95 % half width of at least one value; None for none."""
    if not values:
        return None
    n = len(values)
    half_width = t_975(n - 1) * stdev(values) / sqrt(n) if n > 1 else None
    return Estimate(fmean(values), half_width, n)


def seconds_to_target(run: Run) -> float | None:
    """Virtual seconds until the first release whose metric is at the target; None where there was none."""
    target = run.summary.target
    if target is None:
        return None
    better = run.summary.better
    return next((row.t_s for row in run.releases if row.value is not None and reaches(row.value, target, better)), None)


def distinct(runs: Iterable[Run]) -> list[Run]:
    """The same runs by experiment and seed; a seed that was run twice, to the same end, is there once.

    Raises `ConfigError` for runs of one experiment that cannot be averaged: one seed with two ends, two metrics, two
    targets.
    """
    kept: dict[tuple[str, int], Run] = {}
    for name, group in by_experiment(runs).items():
        for run in group:
            other = kept.setdefault((name, run.summary.seed), run)
            mine, theirs = run.summary, other.summary
            if (mine.parameters_sha256, mine.trace_sha256) != (theirs.parameters_sha256, theirs.trace_sha256):
                raise ConfigError(
                    f"{other.folder} and {run.folder} are both {name} with seed {mine.seed}, and differ",
                    "leave one out, or give the experiments names of their own",
                )
        for what in ("metric", "target"):
            if len({getattr(run.summary, what) for run in group}) > 1:
                raise ConfigError(f"runs of {name} have different {what}s", "give the experiments names of their own")
    return list(kept.values())


def compare_runs(runs: Iterable[Run]) -> tuple[ExperimentRow, ...]:
    """One row an experiment, in the order in which they come. Raises `ConfigError` as `distinct` does."""
    return tuple(_row(name, group) for name, group in by_experiment(distinct(runs)).items())


def _row(name: str, runs: Sequence[Run]) -> ExperimentRow:
    of = [run.summary for run in runs]
    reached = [seconds for seconds in map(seconds_to_target, runs) if seconds is not None]
    final = [sum(s.verdicts.get(verdict, 0) for s in of) for verdict in ("stale", "accepted", "rejected")]
    small, float32 = sum(s.update_bytes for s in of), sum(s.update_bytes_float32 for s in of)
    return ExperimentRow(
        experiment=name,
        seeds=tuple(s.seed for s in of),
        metric=of[0].metric,
        value=estimate([s.value_mean5 for s in of if s.value_mean5 is not None]),
        target=of[0].target,
        reached=len(reached),
        seconds_to_target=estimate(reached),
        versions=_mean(s.versions for s in of),
        accepted=_mean(s.verdicts.get("accepted", 0) for s in of),
        stale_share=final[0] / sum(final) if sum(final) else None,
        staleness=_mean(s.staleness_mean for s in of),
        bytes_up=_mean(s.bytes_up for s in of),
        times_smaller=float32 / small if small else None,
        violations=sum(len(s.violations) for s in of),
        failing=tuple(s.command for s in of if not s.ok),
        test=estimate([s.test_best.value for s in of if s.test_best]),
        test_int8=estimate([s.test_best.int8 for s in of if s.test_best and s.test_best.int8 is not None]),
        died=sum(s.died for s in of),
        longest_s=max((s.longest_s for s in of if s.longest_s is not None), default=None),
        tiers={
            tier: _mean(s.tiers[tier] for s in of if tier in s.tiers)
            for tier in dict.fromkeys(chain(*(s.tiers for s in of)))
        },
    )


def _mean(values: Iterable[float]) -> Estimate:
    made = estimate(list(values))
    assert made is not None  # an experiment has a run
    return made


def compare_json(runs: Iterable[Run]) -> dict[str, Any]:
    """The rows as plain values, for scripts: seconds, bytes, shares."""
    return {"experiments": [asdict(row) for row in compare_runs(runs)]}


def compare_table(runs: Iterable[Run]) -> Table:
    """The rows for a person."""
    rows = compare_runs(runs)
    metrics = {row.metric for row in rows}
    metric = metrics.pop() if len(metrics) == 1 else "metric"
    title = "Means over seeds, ± half of a 95 % interval"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("experiment", overflow="fold")
    judged = any(row.test for row in rows)
    tests = ("on test", "its int8") if judged else ()
    tiered, mortal = any(row.tiers for row in rows), any(row.died for row in rows)
    names = (
        "seeds",
        metric,
        *tests,
        *(("by tier",) if tiered else ()),
        "to target",
        "versions",
        "accepted",
        "stale",
        "staleness",
        "bytes up",
        "of float32",
        *(("died training", "longest wait") if mortal else ()),
    )
    for name in (*names, "violations"):
        table.add_column(name, justify="right", overflow="fold")  # narrow terminals break a figure, but hide none
    for row in rows:
        table.add_row(
            escape(row.experiment),
            str(len(row.seeds)),
            _metric(row, row.value),
            *((_metric(row, row.test), _metric(row, row.test_int8)) if judged else ()),
            *((_by_tier(row),) if tiered else ()),
            _to_target(row),
            f"{row.versions.mean:,.0f}",
            f"{row.accepted.mean:,.0f}",
            "-" if row.stale_share is None else f"{row.stale_share:.1%}",
            f"{row.staleness.mean:.1f}",
            _in_units(row.bytes_up.mean, SIZES),
            "-" if row.times_smaller is None else f"1/{row.times_smaller:.1f}",
            *((f"{row.died:,}", _longest(row)) if mortal else ()),
            "[green]none[/]" if not row.violations else f"[bold red]{row.violations}[/]",
        )
    return table


def _metric(row: ExperimentRow, value: Estimate | None) -> str:
    if value is None:
        return "not measured"
    share = row.metric == "accuracy"
    spread = value.half_width
    mean = f"{100 * value.mean:.2f} %" if share else f"{value.mean:.4g}"
    missing = "" if value.n == len(row.seeds) else f" ({value.n} measured)"
    if spread is None:
        return mean + missing
    return f"{mean} ± {100 * spread:.2f}{missing}" if share else f"{mean} ± {spread:.2g}{missing}"


def _by_tier(row: ExperimentRow) -> str:
    return "\n".join(f"{escape(tier)} {_metric(row, value)}" for tier, value in row.tiers.items()) or "-"


def _longest(row: ExperimentRow) -> str:
    return "-" if row.longest_s is None else _in_units(row.longest_s, TIMES)


def _to_target(row: ExperimentRow) -> str:
    if row.target is None:
        return "-"
    if row.seconds_to_target is None:
        return "never"
    partly = "" if row.reached == len(row.seeds) else f" ({row.reached} of {len(row.seeds)})"
    return _in_units(row.seconds_to_target.mean, TIMES) + partly


def _in_units(value: float, units: Sequence[tuple[float, float, str]]) -> str:
    divisor, name = scale(value, units)
    return f"{value / divisor:,.1f} {name}"


def find_runs(folders: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """(folders of runs, folders of unfinished runs) at or below `folders`, sorted by path within each, none twice.

    Raises `ConfigError` for a folder that is not there, or that holds no run.
    """
    found: dict[Path, Path] = {}  # by where it really is, as it was named
    unfinished: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder", "name folders that a simulation wrote")
        runs = sorted(path.parent for path in folder.rglob(RUN))
        begun = sorted(path.parent for path in folder.rglob(RELEASES))
        if not runs:
            why = "what is in it has not finished" if begun else f"there is no {RUN} in it"
            raise ConfigError(f"{folder} holds no run: {why}", "name a folder that a simulation wrote to the end")
        found |= {path.resolve(): path for path in runs if path.resolve() not in found}
        unfinished |= {path.resolve(): path for path in begun if path.resolve() not in found}
    return list(found.values()), list(unfinished.values())


def compare(folders: Iterable[Path], output: Path | None, as_json: bool) -> int:
    """Print the runs at or below `folders` side by side, and draw them into `output`; returns the exit code.

    `output` is a `.png`, or a folder, which then gets `comparison.png`; without it nothing is drawn. 0: all is well.
    1: an invariant was broken in some run; what replays it is printed. Raises `ConfigError`.
    """
    paths, unfinished = find_runs(folders)
    runs = distinct(read_run(path) for path in paths)
    figures = compare_json(runs)
    notes = Console(stderr=as_json)
    if as_json:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        console = Console() if notes.is_terminal else Console(width=WIDE)
        console.print(compare_table(runs))
    for path in unfinished:
        notes.print(f"left out: {path} has not finished", highlight=False, markup=False, soft_wrap=True)
    for row in figures["experiments"]:
        for command in row["failing"]:
            notes.print(f"violations: {command}", highlight=False, markup=False, soft_wrap=True)
    if output is not None:
        figure = output if output.suffix == ".png" else output / FIGURE
        plot_accuracy(runs, figure)
        notes.print(f"figure: {figure}", highlight=False, markup=False, soft_wrap=True)
    return int(any(not run.summary.ok for run in runs))
