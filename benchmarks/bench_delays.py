"""Who waits for whom: virtual time until a fleet with stragglers is as good as synchronous training gets.

Two fleets of HAR's 21 people: a third each of 100, 200 and 400 s an update (experiments/tiers-async.toml), and 30 % of
the devices 15 or 40 times slower than the rest. Three ways: asynchronous, a version every so many updates; synchronous,
waiting for all; synchronous and over-selected, taking the first 14. The server's learning rate of each, and the buffer
where there is a choice, are the best on seed 100 by validation: the largest mean accuracy over the run. The seeds
0, 1, ... then measure on the test set.

The plateau is the mean accuracy of the last ten versions of the runs that wait for all. It is reached with the first of
five versions in a row whose mean is at most half a point below. Runs stay in --folder, and are not made twice.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from bytes_training import EXPERIMENTS, Runs, accuracy, run_missing, shown, variant, write_experiment
from figures import parse_arguments, print_result, setting
from pages import as_text, write_page

from anabranch.simulator.compare import estimate
from anabranch.simulator.results import Run

BASE = EXPERIMENTS / "tiers-async.toml"
BUNDLE = Path("anabranch/data/har_cnn.bundle")
RATES = ("0.7", "1.0", "1.4", "2.0")
TUNING_SEED = 100
WINDOW = 5  # versions
CLOSE = 0.005
PAGE = Path("docs/choosing-a-rule.md")
ALL, FIRST, ASYNC = "waits for all", "the first 14", "asynchronous"
SYNCHRONOUS = {"mode": '"synchronous"', "deadline_s": "20000"}
# way -> what may be chosen beside the rate
WAYS: Mapping[str, Sequence[Mapping[str, str]]] = {
    ALL: ({**SYNCHRONOUS, "buffer": "21", "quorum": "21"},),
    FIRST: ({**SYNCHRONOUS, "buffer": "14", "quorum": "14"},),
    ASYNC: ({}, {"buffer": "10"}, {"buffer": "15"}),
}
# fleet -> (share and slowness of the second and third tier; the first has the rest), hours of each way
FLEETS: Mapping[str, tuple[tuple[float, float], tuple[float, float], Mapping[str, float]]] = {
    "100, 200, 400 s": ((0.333, 2.0), (0.333, 4.0), {ALL: 8, FIRST: 8, ASYNC: 5}),
    "30 % are 15 to 40 times slower": ((0.15, 15.0), (0.15, 40.0), {ALL: 70, FIRST: 4, ASYNC: 5}),
}


@dataclass(frozen=True, kw_only=True)
class Trial(Runs):
    """One fleet, one way, one rate."""

    fleet: str
    way: str
    plan: Mapping[str, str]

    @property
    def chosen(self) -> str:
        """Rate and buffer, as the table says them."""
        return f"{self.plan['server_learning_rate']}, {self.plan.get('buffer', '6')}"


def plans(way: str) -> Iterator[Mapping[str, str]]:
    """All that is tried."""
    for more in WAYS[way]:
        for rate in RATES:
            yield {**more, "server_learning_rate": rate}


def prepare(
    fleet: str, way: str, plan: Mapping[str, str], seeds: Sequence[int], folder: Path, *, tune: bool = False
) -> Trial:
    """The experiment's file."""
    (share, slowness), (share2, slowness2), hours = FLEETS[fleet]
    name = f"delays-{list(FLEETS).index(fleet)}-{way.replace(' ', '-')}-{plan['server_learning_rate']}"
    text = variant(BASE.read_text("utf-8"), name, plan, BUNDLE.resolve())
    for old, new in (
        ("share = 0.334", f"share = {1 - share - share2:.3f}"),
        ("share = 0.333\nslowness = 2.0", f"share = {share}\nslowness = {slowness}"),
        ("share = 0.333\nslowness = 4.0", f"share = {share2}\nslowness = {slowness2}"),
        ("hours = 4.0", f"hours = {hours[way]}"),
    ):
        if text.count(old) != 1:
            raise SystemExit(f"{BASE} says {old!r} {text.count(old)} times")
        text = text.replace(old, new)
    if tune:
        text = text.replace('measured_on = "test"', 'measured_on = "validation"')
        for old, new in (("= 21\n", "= 18\n"), ("= 15\n", "= 13\n"), ("= 14\n", "= 12\n"), ("= 10\n", "= 9\n")):
            text = text.replace(old, new)  # three of the 21 people validate
    path = write_experiment(folder, name, text, BUNDLE)
    return Trial(path=path, seeds=tuple(seeds), fleet=fleet, way=way, plan=plan)


def area(run: Run, hours: float) -> float:
    """The mean accuracy over the run's time."""
    known = [(row.t_s, row.value) for row in run.releases if row.value is not None]
    ends = [*known, (hours * 3600, known[-1][1])]
    return sum((b - a) * value for (a, value), (b, _) in pairwise(ends)) / (hours * 3600)


def reached_s(run: Run, plateau: float) -> float | None:
    """Virtual seconds until the plateau is reached; None: it never is."""
    rows = [row for row in run.releases if row.value is not None]
    for i in range(len(rows) - WINDOW + 1):
        window = rows[i : i + WINDOW]
        if fmean(row.value or 0.0 for row in window) >= plateau - CLOSE:
            return window[0].t_s
    return None


def tables(trials: Mapping[tuple[str, str], Trial]) -> Iterator[list[list[object]]]:
    """One a fleet."""
    for fleet in FLEETS:
        waiting = trials[fleet, ALL].runs
        plateau = fmean(accuracy(run) for run in waiting)
        head = f"{fleet}; plateau {100 * plateau:.2f} %"
        rows: list[list[object]] = [
            [head, "rate, buffer", "reached", "minutes", "times as soon", "at the end, %", "by tier, %"]
        ]
        first = [reached_s(run, plateau) for run in waiting]
        for way in WAYS:
            trial = trials[fleet, way]
            times = [reached_s(run, plateau) for run in trial.runs]
            pairs = [(a, b) for a, b in zip(first, times, strict=True) if a is not None and b is not None]
            tiers = {name: fmean(run.summary.tiers[name] for run in trial.runs) for name in trial.runs[0].summary.tiers}
            rows.append(
                [
                    way,
                    trial.chosen,
                    f"{sum(t is not None for t in times)} of {len(times)}",
                    shown(estimate([t / 60 for t in times if t is not None]), digits=0),
                    shown(estimate([a / b for a, b in pairs]), digits=1),
                    shown(estimate([accuracy(run) for run in trial.runs]), 100),
                    ", ".join(f"{name} {100 * value:.1f}" for name, value in tiers.items()),
                ]
            )
        yield rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="the seeds 0, 1, ...")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-delays"), help="of runs")
    parser.add_argument("--write", action="store_true", help="the tables into docs/choosing-a-rule.md")
    options = parse_arguments(parser)
    options.folder.mkdir(parents=True, exist_ok=True)
    every = [(fleet, way) for fleet in FLEETS for way in WAYS]

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    tuning = {
        (fleet, way): [prepare(fleet, way, plan, [TUNING_SEED], options.folder, tune=True) for plan in plans(way)]
        for fleet, way in every
    }
    run_missing([trial for found in tuning.values() for trial in found], options.jobs, say)
    trials = {}
    for (fleet, way), found in tuning.items():
        hours = FLEETS[fleet][2][way]
        best = max(found, key=lambda trial, hours=hours: area(trial.runs[0], hours))  # type: ignore[misc]
        trials[fleet, way] = prepare(fleet, way, best.plan, range(options.seeds), options.folder)
    run_missing(list(trials.values()), options.jobs, say)
    said, found_tables = setting("numpy", "onnxruntime"), list(tables(trials))
    print_result({"setting": said, "tables": found_tables}, found_tables, options.json)
    if options.write:
        write_page(PAGE, {"bench-delays": as_text(found_tables, said)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
