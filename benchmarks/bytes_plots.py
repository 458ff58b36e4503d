"""Accuracy over the bytes that all devices have sent and received, a panel a model. matplotlib is loaded to draw."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from bytes_training import Trial

from anabranch.simulator.plots import COLOURS, STYLE, band, curves_of
from anabranch.simulator.results import ReleaseRow

SMOOTH = 5  # versions whose mean is drawn: neighbours differ by a few tenths of a point
WORST = 0.6  # of the axis: what comes before tells nothing of codecs


def plot(trials: Sequence[Trial], path: Path) -> None:
    """Draw means over seeds with their ranges into a PNG. Raises `OSError`, `ImportError`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    models = [(name, list(of)) for name, of in groupby(trials, key=lambda trial: trial.model)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4 * len(models), 5.0), layout="constrained")
        panels: Any = figure.subplots(1, len(models), squeeze=False)
        for axes, (model, of) in zip(panels[0], models, strict=True):
            _panel(axes, model, of)
        panels[0][0].set_ylabel("accuracy, mean and range over seeds")
        figure.savefig(path, format="png", dpi=110, metadata={"Software": None})  # the same runs, the same bytes


def _panel(axes: Any, model: str, trials: Sequence[Trial]) -> None:
    for trial, colour in zip(trials, cycle(COLOURS), strict=False):
        runs = [replace(run, releases=_smoothed(run.releases)) for run in trial.runs]
        shared = band(curves_of(runs, _both_ways, "value"))
        axes.fill_between(shared.grid / 1e6, shared.least, shared.most, step="post", color=colour, alpha=0.18, lw=0)
        axes.step(shared.grid / 1e6, shared.mean, where="post", color=colour, lw=2.0, label=trial.arm.name)
    axes.set_title(model)
    axes.set_xscale("log")
    axes.set_ylim(bottom=WORST)
    axes.set_xlabel("MB sent and received by all devices, bundle included")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="y")
    axes.legend(frameon=False, loc="lower right")


def _smoothed(rows: Sequence[ReleaseRow]) -> tuple[ReleaseRow, ...]:
    """Each measured row with the mean of the last few values."""
    measured = [row for row in rows if row.value is not None]
    values = [row.value for row in measured if row.value is not None]
    means = (fmean(values[max(0, i + 1 - SMOOTH) : i + 1]) for i in range(len(values)))
    return tuple(replace(row, value=mean) for row, mean in zip(measured, means, strict=True))


def _both_ways(row: ReleaseRow) -> float:
    return row.bytes_up + row.bytes_down
