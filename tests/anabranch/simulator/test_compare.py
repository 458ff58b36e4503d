"""Runs side by side: means over seeds, their spread, and the figure."""

import json
from dataclasses import replace
from math import gamma, pi, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from anabranch.simulator import compare as comparing
from anabranch.simulator.compare import (
    FIGURE,
    Estimate,
    compare,
    compare_json,
    compare_runs,
    compare_table,
    estimate,
    find_runs,
    seconds_to_target,
    t_975,
)
from anabranch.simulator.plots import SIZES, TIMES, Curve, band, plot_accuracy, scale
from anabranch.simulator.results import RELEASES, Measurement, ReleaseRow
from fl_protocol.errors import ConfigError
from tests.anabranch.simulator.synthetic import made_up, write

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("degrees", [1, 2, 4, 9, 16, 17, 20, 29, 60, 120])
def test_t_cuts_off_two_and_a_half_per_cent(degrees):
    """The density of Student's t, integrated from 0 to it, is 0.475: right to the table's three digits."""
    v = degrees
    x = np.linspace(0, t_975(v), 200_001)
    density = gamma((v + 1) / 2) / (sqrt(v * pi) * gamma(v / 2)) * (1 + x**2 / v) ** (-(v + 1) / 2)
    assert abs(np.trapezoid(density, x) - 0.475) < 3e-5


def test_an_estimate_is_a_mean_and_half_an_interval():
    """By hand: 1, 2, 3 have deviation 1, so 4.303 / sqrt(3). One value says nothing of its spread."""
    assert estimate([]) is None
    assert estimate([0.5]) == Estimate(0.5, None, 1)
    made = estimate([1.0, 2.0, 3.0])
    assert (made.mean, made.n) == (2.0, 3)
    assert made.half_width == pytest.approx(4.303 / sqrt(3))


def releases(*values):
    """A release every ten seconds."""
    common = {"updates": 1, "bytes_up": 1, "bytes_down": 1, "used": 1}
    common |= {"staleness_mean": 0.0, "staleness_max": 0, "active": 1}
    return tuple(ReleaseRow(version=i, t_s=10.0 * i, value=v, **common) for i, v in enumerate(values, 1))


def test_the_target_is_reached_by_the_first_release_at_it():
    """Releases that were not measured are passed over, and later ones may fall below it again."""
    run = replace(made_up(target=0.9), releases=releases(0.5, None, 0.9, 0.8, 0.95))
    assert seconds_to_target(run) == 30.0
    assert seconds_to_target(replace(run, releases=releases(0.5, None))) is None
    assert seconds_to_target(replace(run, summary=made_up().summary)) is None


def test_where_lower_is_better_the_target_is_reached_from_above():
    """The summary says which end of the metric is better."""
    run = replace(made_up(target=0.45), releases=releases(0.9, 0.4, 0.5))
    assert seconds_to_target(run) == 10.0
    assert seconds_to_target(replace(run, summary=replace(run.summary, better="lower"))) == 20.0


def test_one_row_an_experiment():
    """Means over its seeds, in the order in which experiments come; shares and ratios over all updates."""
    runs = [made_up("b", 1), made_up("a", 0), made_up("b", 0, violations=("counted twice", "lost"))]
    rows = compare_runs(runs)
    assert [(row.experiment, row.seeds) for row in rows] == [("b", (0, 1)), ("a", (0,))]
    assert rows[0].value.mean == pytest.approx((runs[0].summary.value_mean5 + runs[2].summary.value_mean5) / 2)
    assert rows[0].stale_share == pytest.approx(0.2)  # what was deferred is not final
    assert rows[0].times_smaller == pytest.approx(12)
    assert (rows[0].violations, rows[0].failing) == (2, ("anabranch simulate b.toml --seed 0",))
    assert (rows[1].violations, rows[1].failing) == (0, ())


def test_those_that_never_reach_the_target_are_told():
    """The mean is of those that did."""
    fast, slow = made_up("a", 0, target=0.9), made_up("a", 1, target=0.9, final=0.7)
    (row,) = compare_runs([fast, slow])
    assert (row.reached, row.seconds_to_target.mean) == (1, seconds_to_target(fast))
    assert "(1 of 2)" in shown([fast, slow])
    assert "never" in shown([slow])


def test_a_seed_that_was_run_twice_counts_once():
    """It is the same run, by its parameters and its trace."""
    assert compare_runs([made_up(seed=0), made_up(seed=1), made_up(seed=0)]) == compare_runs(
        [made_up(seed=0), made_up(seed=1)]
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"trace_sha256": "0"}, "both fans with seed 0, and differ"),
        ({"seed": 1, "parameters_sha256": "0", "metric": "recall"}, "different metrics"),
        ({"seed": 1, "target": 0.5}, "different targets"),
    ],
)
def test_what_cannot_be_averaged_is_refused(change, says):
    """One name for two things: the seeds would be a mixture."""
    run = made_up()
    with pytest.raises(ConfigError, match=says):
        compare_runs([run, replace(run, summary=replace(run.summary, **change))])


def test_nothing_measured_and_nothing_sent_is_no_error():
    """A run that ended before its first release."""
    run = made_up(final=None, loss=False, versions=1)
    empty = replace(run.summary, verdicts={}, update_bytes=0, update_bytes_float32=0)
    (row,) = compare_runs([replace(run, summary=empty, releases=())])
    assert (row.value, row.stale_share, row.times_smaller) == (None, None, None)
    assert "not measured" in shown([replace(run, summary=empty, releases=())])


def shown(runs, width=160):
    """The table as text."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(compare_table(runs))
    return capture.get()


def test_the_table_reads_in_plain_figures():
    """Accuracy in per cent with its spread, time in a fitting unit, violations counted."""
    text = shown([made_up("slow [tier]", seed, target=0.9) for seed in range(3)])
    for figure in ("slow [tier]", "± ", " % ", "hours", "20.0%", "2.1 MB", "1/12.0", "none"):
        assert figure in text
    assert " 2 " in shown([made_up(violations=("a", "b"))])
    assert "…" not in shown([made_up("a rather long name", 0)], width=80)


def test_what_the_test_set_said_has_its_columns_where_there_is_such():
    """Of the version that validation chose: with fake quantization, and as int8."""
    runs = [made_up("fans", seed) for seed in range(2)]
    assert "on test" not in shown(runs)
    judged = [
        replace(run, summary=replace(run.summary, test_best=Measurement(version=9, value=0.875, int8=0.8125)))
        for run in runs
    ]
    text = shown(judged)
    for figure in ("on test", "its int8", "87.50 % ± 0.00", "81.25 % ± 0.00"):
        assert figure in text
    (row,) = compare_json(judged)["experiments"]
    assert (row["test"]["mean"], row["test_int8"]["mean"]) == (0.875, 0.8125)


def test_units_suit_the_size():
    """Seconds, minutes, hours, days; kB, MB, GB."""
    assert [scale(t, TIMES)[1] for t in (0, 179, 181, 7201, 86400, 3 * 86400)] == [
        *("seconds", "seconds", "minutes", "hours", "hours", "days")
    ]
    assert [scale(n, SIZES) for n in (0, 2e6, 3e9)] == [(1e3, "kB"), (1e6, "MB"), (1e9, "GB")]


measured = st.lists(st.tuples(st.integers(0, 50), st.floats(-10, 10)), min_size=1, max_size=20)


@given(st.lists(measured, min_size=1, max_size=5))
def test_a_band_holds_its_mean_and_no_run_counts_beyond_its_end(runs):
    """Property: least <= mean <= most, and at each point of the grid every run has begun and none has ended."""
    curves = [Curve(*np.array(sorted(points, key=lambda p: p[0]), dtype=float).T) for points in runs]
    made = band(curves)
    assert np.all(made.least <= made.mean + 1e-9)
    assert np.all(made.mean <= made.most + 1e-9)
    for curve in curves:
        assert np.all((made.grid >= curve.x[0]) & (made.grid <= curve.x[-1]))
    if len(curves) == 1:
        assert np.array_equal(made.grid, np.unique(curves[0].x))


def test_a_value_holds_until_the_next_release():
    """By hand: between releases, at them, and two at the same time, of which the later counts."""
    curve = Curve(np.array([1.0, 3.0, 3.0]), np.array([10.0, 20.0, 30.0]))
    assert list(curve.at(np.array([1.0, 2.9, 3.0, 4.0]))) == [10.0, 10.0, 30.0, 30.0]
    made = band([curve, Curve(np.array([2.0, 5.0]), np.array([0.0, 6.0]))])
    assert (list(made.grid), list(made.mean), list(made.most)) == ([2.0, 3.0], [5.0, 15.0], [10.0, 30.0])


@pytest.mark.parametrize(
    "runs",
    [
        [made_up(seed=0, target=0.9), made_up(seed=1, target=0.9, versions=40), made_up("other", target=0.8)],
        [made_up(final=None), made_up("measured")],
        [made_up(final=None)],
        [made_up(final=None, loss=False)],
        [replace(made_up(), releases=())],
        [made_up(seed=0, versions=3, interval=1.0), replace(made_up(seed=1), releases=made_up().releases[50:])],
    ],
    ids=["seeds", "partly measured", "loss", "nothing", "no release", "seeds apart"],
)
def test_every_kind_of_run_can_be_drawn(tmp_path, runs):
    """A PNG comes of it, and the same bytes each time."""
    for name in ("a.png", "b.png"):
        plot_accuracy(runs, tmp_path / "figures" / name)
    first, second = ((tmp_path / "figures" / name).read_bytes() for name in ("a.png", "b.png"))
    assert first.startswith(PNG)
    assert first == second


def test_a_figure_that_cannot_be_written_is_a_clear_error(tmp_path):
    """A folder is in its place."""
    with pytest.raises(ConfigError, match="cannot write"):
        plot_accuracy([made_up(versions=2)], tmp_path)


@pytest.fixture
def folder(tmp_path):
    """Three runs of two experiments, and one that has not finished."""
    for name, seed in (("fast", 0), ("fast", 1), ("slow", 0)):
        write(tmp_path / name / f"seed-{seed}", made_up(name, seed, versions=5))
    (tmp_path / "slow" / "seed-1").mkdir()
    (tmp_path / "slow" / "seed-1" / RELEASES).touch()
    return tmp_path


def test_runs_are_found_below_a_folder_and_none_twice(folder):
    """Sorted by path, however the folders are named; what has not finished is told apart."""
    runs, unfinished = find_runs([folder / "slow" / "seed-0", folder, folder / "fast" / ".." / "fast"])
    assert [path.relative_to(folder).as_posix() for path in runs] == ["slow/seed-0", "fast/seed-0", "fast/seed-1"]
    assert unfinished == [folder / "slow" / "seed-1"]


def test_a_folder_without_runs_is_a_clear_error(folder):
    """Not there; empty; not finished."""
    (folder / "empty").mkdir()
    for name, says in (("nowhere", "is no folder"), ("empty", "holds no run"), ("slow/seed-1", "has not finished")):
        with pytest.raises(ConfigError, match=says):
            find_runs([folder / name])


def test_compare_prints_a_table_and_draws(folder, capsys):
    """What is left out is said; the figure goes where it was told to."""
    assert compare([folder], folder / "out", as_json=False) == 0
    out = capsys.readouterr().out
    assert "fast" in out
    assert f"left out: {folder / 'slow' / 'seed-1'}" in out
    assert (folder / "out" / FIGURE).read_bytes().startswith(PNG)
    compare([folder], folder / "here.png", as_json=False)
    assert (folder / "here.png").exists()


def test_json_is_all_that_stdout_gets(folder, capsys):
    """Notes go to stderr, so that a script can read it; without an output, matplotlib is not needed."""
    assert compare([folder], None, as_json=True) == 0
    printed = capsys.readouterr()
    page = json.loads(printed.out)
    assert page == json.loads(json.dumps(compare_json([comparing.read_run(p) for p in find_runs([folder])[0]])))
    assert [row["experiment"] for row in page["experiments"]] == ["fast", "slow"]
    assert "left out" in printed.err


def test_violations_fail_the_comparison_and_say_what_replays_them(folder, capsys):
    """A script sees the exit code, a person the command."""
    write(folder / "bad", made_up("bad", 7, versions=2, violations=("counted twice",)))
    assert compare([folder], None, as_json=False) == 1
    assert "violations: anabranch simulate bad.toml --seed 7" in capsys.readouterr().out
