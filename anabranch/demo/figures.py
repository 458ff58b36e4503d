"""The report's figures: matplotlib -> SVG text. Imported only when a report is written."""

import io
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from anabranch.demo.folder import device_of
from anabranch.demo.outcome import Outcome
from anabranch.demo.summary import down_float32, megabytes

FEDERATED, POOLED, ALONE, QUIET, INK = "#0b6e99", "#2f9e57", "#c8553d", "#9aa5b1", "#1f2933"
STYLE: Any = {  # rcParams; matplotlib spells their type as 300 names
    "svg.fonttype": "none",  # text stays text: the page's font, selectable, small
    "svg.hashsalt": "anabranch",  # the same figure has the same ids
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e4e7eb",
    "axes.axisbelow": True,
}
MARKS = {
    "kill": ("X", ALONE, "killed (kill -9)"),
    "restart": (">", POOLED, "started again"),
    "leave": ("s", INK, "left for good"),
    "join": ("D", "#7b4fb5", "joined late"),
}


def accuracy(o: Outcome) -> str:
    """Test and validation accuracy of every release over time, with pooled and alone as lines."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        axes = figure.subplots()
        seconds = [max(0.0, (r.ts - o.started_ts) / 1000) for r in o.releases]
        measured = [(s, r.validation) for s, r in zip(seconds, o.releases, strict=True) if r.validation is not None]
        end = max(seconds[-1], 1.0)
        axes.plot(*zip(*measured, strict=True), color=FEDERATED, alpha=0.35, lw=1) if measured else None
        axes.plot(seconds, [r.accuracy for r in o.releases], color=FEDERATED, lw=2.2)
        lines = (
            (o.comparison.pooled_mean, POOLED, f"pooled {o.comparison.pooled_mean:.1%}"),
            (o.federated_mean, FEDERATED, f"federated {o.federated_mean:.1%}"),
            (o.comparison.alone_mean, ALONE, f"alone {o.comparison.alone_mean:.1%}"),
        )
        for value, colour, _ in (lines[0], lines[2]):
            axes.axhline(value, color=colour, lw=1.4, ls=(0, (5, 3)))
        for (_, colour, text), height in zip(lines, _apart([value for value, _, _ in lines], 0.055), strict=True):
            axes.annotate(
                text, (1.01, height), xycoords=axes.get_yaxis_transform(), color=colour, va="center", weight="bold"
            )
        for i, happening in enumerate(h for h in o.happenings if h.deed not in ("said", "fell")):
            at = (happening.ts - o.started_ts) / 1000
            axes.axvline(at, color=QUIET, lw=0.8, ls=":")
            axes.annotate(
                _short(happening.deed, happening.who),
                (at, 0.02 + 0.05 * (i % 4)),
                xytext=(3, 0),
                textcoords="offset points",
                fontsize=8,
                color="#52606d",
            )
        axes.set(xlim=(0, end), ylim=(0, 1.02), xlabel="seconds of training", ylabel="accuracy, mean over fans")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.grid(axis="y")
        return _svg(figure)


def participation(o: Outcome) -> str:
    """Who was there, and when each device's updates came: one tick each."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 0.9 + 0.27 * len(o.speeds)), layout="constrained")
        axes = figure.subplots()
        devices = [device_of(speed) for speed in o.speeds]
        end = max((o.releases[-1].ts - o.started_ts) / 1000, 1.0)
        for row, device in enumerate(devices):
            for start, stop in _presence(o, device, end):
                axes.barh(row, stop - start, left=start, height=0.62, color="#eef2f6")
            of_device = [u for u in o.updates if u.device == device]
            for verdicts, colour in ((("accepted",), FEDERATED), (("stale", "rejected"), ALONE)):
                times = [(u.ts - o.started_ts) / 1000 for u in of_device if u.verdict in verdicts]
                axes.plot(times, [row] * len(times), "|", color=colour, ms=7, mew=0.9, alpha=0.8)
            counted = sum(u.disposal == "counted" for u in of_device)
            axes.annotate(f"{counted}", (1.01, row), xycoords=axes.get_yaxis_transform(), va="center", fontsize=9)
        seen = set()
        for happening in o.happenings:
            if happening.deed in MARKS and happening.who in devices:
                marker, colour, text = MARKS[happening.deed]
                at = (happening.ts - o.started_ts) / 1000
                label = None if happening.deed in seen else text
                axes.plot(
                    at, devices.index(happening.who), marker, color=colour, ms=8, mec="white", mew=0.8, label=label
                )
                seen.add(happening.deed)
        names = [f"{d} (slow)" if d in o.cast.slow else d for d in devices]
        axes.set_yticks(range(len(devices)), names)
        axes.annotate(
            "counted",
            (1.01, -0.9),
            xycoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
            color="#52606d",
            annotation_clip=False,
        )
        axes.set(
            xlim=(0, end),
            ylim=(len(devices) - 0.4, -0.6),
            xlabel="seconds of training; a tick is an update, red: refused",
        )
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        if seen:
            figure.legend(loc="outside upper center", ncols=len(seen), frameon=False, handletextpad=0.3)
        return _svg(figure)


def staleness(o: Outcome) -> str:
    """How many updates were counted at each staleness."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.9, 2.8), layout="constrained")
        axes = figure.subplots()
        counts = o.staleness
        most = max(counts, default=0)
        bars = axes.bar(range(most + 1), [counts[tau] for tau in range(most + 1)], color=FEDERATED, width=0.8)
        if most <= 12:
            axes.bar_label(bars, labels=[str(counts[tau] or "") for tau in range(most + 1)], fontsize=8, padding=1)
        axes.set(xlabel="versions between base and release", ylabel="updates counted")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")
        return _svg(figure)


def traffic(o: Outcome) -> str:
    """Bytes of updates up, and of versions down, against plain float32."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.9, 2.8), layout="constrained")
        axes = figure.subplots()
        bars = (
            ("updates", o.update_bytes, FEDERATED),
            ("as float32", o.update_bytes_float32, QUIET),
            ("all up", sum(d.bytes_up for d in o.devices.values()), FEDERATED),
            ("all down", sum(d.bytes_down for d in o.devices.values()), FEDERATED),
            ("versions, float32", down_float32(o), QUIET),
        )
        drawn = axes.barh(
            [n for n, _, _ in bars], [b / 1e6 for _, b, _ in bars], color=[c for _, _, c in bars], height=0.66
        )
        axes.bar_label(drawn, labels=[megabytes(b) for _, b, _ in bars], padding=3, fontsize=9)
        axes.set(xlabel="MB, whole fleet")
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.tick_params(axis="y", length=0)
        return _svg(figure)


def _presence(o: Outcome, device: str, end: float) -> list[tuple[float, float]]:
    """When the device's process ran, in seconds of training."""
    since = None if device == o.cast.late else 0.0
    spans = []
    for happening in o.happenings:
        at = (happening.ts - o.started_ts) / 1000
        if happening.who != device:
            continue
        if happening.deed in ("join", "restart"):
            since = at
        elif happening.deed in ("kill", "leave", "fell") and since is not None:
            spans.append((since, at))
            since = None
    return spans if since is None else [*spans, (since, end)]


def _short(deed: str, who: str) -> str:
    words = {"kill": "killed", "restart": "back", "leave": "left", "join": "joined"}
    return f"{who} {words[deed]}" if deed in words else deed


def _apart(heights: list[float], least: float) -> list[float]:
    """The same heights, from the highest down, moved so that labels do not lie on each other."""
    order = sorted(range(len(heights)), key=lambda i: -heights[i])
    placed = list(heights)
    for above, below in pairwise(order):
        placed[below] = min(placed[below], placed[above] - least)
    return placed


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
