"""What several runs learnt: one figure over virtual time, over updates and over bytes. matplotlib is loaded to draw."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.simulator.results import ReleaseRow, Run
from fl_protocol.errors import ConfigError

INK, QUIET = "#1f2933", "#9aa5b1"
COLOURS = ("#0b6e99", "#c8553d", "#2f9e57", "#7b4fb5", "#d99a1c", "#3c4f76", "#b5487f", "#5d8a8a")
STYLE: Any = {  # rcParams; matplotlib spells their type as 300 names
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e4e7eb",
    "axes.axisbelow": True,
}
TIMES = ((3 * 86400.0, 86400.0, "days"), (2 * 3600.0, 3600.0, "hours"), (180.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
SIZES = ((1e9, 1e9, "GB"), (1e5, 1e6, "MB"), (0.0, 1e3, "kB"))
COUNTS = ((0.0, 1.0, ""),)
LOGARITHMIC = 50.0  # a loss that falls by more than this is drawn in decades

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """What was measured in one run: `x` ascending, `y` holds from its x to the next; both of shape (n,), n > 0."""

    x: Floats
    y: Floats

    def at(self, grid: Floats) -> Floats:
        """The value that holds at each point of `grid`, none of which lies before the first x."""
        held: Floats = self.y[np.searchsorted(self.x, grid, side="right") - 1]
        return held


@dataclass(frozen=True)
class Band:
    """Mean, least and most of several curves on a common `grid`; all of shape (n,)."""

    grid: Floats
    mean: Floats
    least: Floats
    most: Floats


def band(curves: Sequence[Curve]) -> Band:
    """Where all curves have a value: from the last one's start to the first one's end. Elsewhere there is no mean.

    Beyond the end of a run that stopped early, a mean would be one of other runs; the grid is empty where the curves
    share nothing.
    """
    start, end = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    every = np.unique(np.concatenate([curve.x for curve in curves]))
    grid = every[(every >= start) & (every <= end)]
    values = np.stack([curve.at(grid) for curve in curves])
    return Band(grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def curves_of(runs: Iterable[Run], x: Callable[[ReleaseRow], float], y: str) -> list[Curve]:
    """A curve for each run in which `y` (``value`` or ``loss``) was measured at least once."""
    curves = []
    for run in runs:
        measured = [(x(row), getattr(row, y)) for row in run.releases if getattr(row, y) is not None]
        points = sorted((point for point in measured if isfinite(point[1])), key=lambda point: point[0])
        if points:
            across, up = np.array(points, dtype=np.float64).T
            curves.append(Curve(across, up))
    return curves


def by_experiment(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each experiment, sorted by seed; experiments in the order in which they come."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.summary.experiment, []).append(run)
    return {name: sorted(group, key=lambda run: run.summary.seed) for name, group in groups.items()}


def scale(largest: float, units: Sequence[tuple[float, float, str]]) -> tuple[float, str]:
    """(what to divide by, the unit's name) that suits `largest`; `units`: (from, divisor, name), large ones first."""
    return next((divisor, name) for least, divisor, name in units if largest >= least)


def plot_accuracy(runs: Sequence[Run], path: Path) -> None:
    """Draw the metric over virtual time, updates and bytes up into a PNG.

    Runs are grouped by experiment: a line for the mean over seeds, a band from the least to the most, and a thin line
    for each run, which also shows what lies outside the time that all share. Where no run measured a metric, the loss
    is drawn; without a loss either, the figure says so. Raises `ConfigError` without matplotlib, or where `path` cannot
    be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("matplotlib is not installed", 'plots want `pip install "anabranch[demo]"`') from None
    drawn = next((y for y in ("value", "loss") if curves_of(runs, _time, y)), None)
    metrics = list(dict.fromkeys(run.summary.metric for run in runs))
    what = "loss" if drawn == "loss" else " or ".join(metrics)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13.5, 4.6), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        labels = _draw(panels, by_experiment(runs), drawn, what)
        if drawn == "value" and metrics == ["accuracy"]:
            panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panels[0].set_ylabel(f"{what}, mean and range over seeds" if len(runs) > len(labels) else what)
        lines, names = panels[0].get_legend_handles_labels()
        if names:
            figure.legend(lines, names, loc="outside upper center", ncols=min(4, len(names)), frameon=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format="png", dpi=130, metadata={"Software": None})  # the same runs, the same bytes
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}", "name another place for the figure") from None


def _draw(panels: Any, groups: dict[str, list[Run]], drawn: str | None, what: str) -> dict[str, str]:
    """Fill the three panels; returns the legend's line for each experiment."""
    labels = {name: _label(name, group, drawn) for name, group in groups.items()}
    axes_of = (
        (_time, "over virtual time", "time since the start", TIMES),
        (_updates, "over updates", "updates counted", COUNTS),
        (_bytes_up, "over bytes up", "sent by all devices", SIZES),
    )
    for axes, (x, title, across, units) in zip(panels, axes_of, strict=True):
        axes.set_title(f"{what} {title}")
        every = curves_of((run for group in groups.values() for run in group), x, drawn) if drawn else []
        if not drawn or not every:
            axes.annotate(
                "no release was measured", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", color=QUIET
            )
            axes.set(xticks=[], yticks=[], xlabel=across)
            continue
        divisor, unit = scale(max(float(curve.x[-1]) for curve in every), units)
        for colour, (name, group) in zip(cycle(COLOURS), groups.items(), strict=False):
            _lines(axes, curves_of(group, x, drawn), divisor, colour, labels[name])
        if drawn == "value":
            _target(axes, groups, what)
        elif min(curve.y.min() for curve in every) > 0 and _fall(every) > LOGARITHMIC:
            axes.set_yscale("log")
        axes.set_xlabel(f"{across} ({unit})" if unit else across)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.grid(axis="y")
    return labels


def _lines(axes: Any, curves: Sequence[Curve], divisor: float, colour: str, label: str) -> None:
    alone = len(curves) == 1
    for curve in curves:
        axes.step(
            curve.x / divisor,
            curve.y,
            where="post",
            color=colour,
            lw=2 if alone else 0.7,
            alpha=1 if alone else 0.35,
            label=label if alone else None,
        )
    if not alone:
        shared = band(curves) if curves else Band(*(np.zeros(0),) * 4)
        across = shared.grid / divisor
        axes.fill_between(across, shared.least, shared.most, step="post", color=colour, alpha=0.18, lw=0)
        axes.step(across, shared.mean, where="post", color=colour, lw=2.2, label=label)


def _target(axes: Any, groups: dict[str, list[Run]], metric: str) -> None:
    targets = {run.summary.target for group in groups.values() for run in group if run.summary.target is not None}
    for target, dashes in zip(sorted(targets), cycle(((5, 3), (1, 2), (8, 2, 1, 2))), strict=False):
        text = f"{100 * target:.4g} %" if metric == "accuracy" else f"{target:.4g}"
        axes.axhline(target, color=INK, lw=1.1, ls=(0, dashes), label=f"target {text}")


def _label(name: str, group: Sequence[Run], drawn: str | None) -> str:
    if drawn and not curves_of(group, _time, drawn):
        return f"{name} (not measured)"
    return f"{name}, {len(group)} seeds" if len(group) > 1 else name


def _fall(curves: Sequence[Curve]) -> float:
    return float(max(curve.y.max() for curve in curves) / min(curve.y.min() for curve in curves))


def _time(row: ReleaseRow) -> float:
    return row.t_s


def _updates(row: ReleaseRow) -> float:
    return row.updates


def _bytes_up(row: ReleaseRow) -> float:
    return row.bytes_up
