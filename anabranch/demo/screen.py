"""What a person sees while the fleet trains: a live table in a terminal, else a plain line now and then."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from anabranch.demo.fleet import Fleet
from anabranch.demo.folder import TASK
from anabranch.fleet_view import DeviceView

BARS = "▁▂▃▄▅▆▇█"
STYLES = {"training": "green", "uploading": "cyan", "lost": "bold red", "disconnected": "dim", "sleeping": "yellow"}
LIVE_EVERY_S = 0.5
PLAIN_EVERY_S = 5.0
NEWS_SHOWN = 6
CHART_WIDTH = 60


@dataclass(frozen=True)
class Scene:
    """What is shown: the fleet, how much of the training lies behind (0..1), and what is going on."""

    fleet: Fleet
    progress: float
    phase: str
    seconds: float


class Screen(Protocol):
    """Shows scenes as often as makes sense, and says single lines."""

    def show(self, scene: Scene) -> None:
        """The fleet as it is now."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def make_screen(console: Console) -> Screen:
    """A live screen for a terminal, a plain one for everything else."""
    return LiveScreen(console) if console.is_terminal and not console.is_dumb_terminal else PlainScreen(console)


class PlainScreen:
    """One line every few seconds, one for each thing that happens, and one for how it ended."""

    def __init__(self, console: Console, every_s: float = PLAIN_EVERY_S) -> None:
        self._console, self._every_s = console, every_s
        self._next, self._told = 0.0, 0
        self._untold: Scene | None = None

    def show(self, scene: Scene) -> None:
        """A line when it is time for one."""
        self._untold = scene
        for happening in scene.fleet.happenings[self._told :]:
            self.say(f"{scene.seconds:5.0f} s  * {happening.text}")
        self._told = len(scene.fleet.happenings)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every_s
            self.say(f"{scene.seconds:5.0f} s  {task_line(scene)}")
            self._untold = None

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """The last state, unless it was told."""
        if self._untold is not None:
            self.say(f"{self._untold.seconds:5.0f} s  {task_line(self._untold)}")
            self._untold = None


class LiveScreen:
    """A table that changes in place."""

    def __init__(self, console: Console) -> None:
        self._console, self._next = console, 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def show(self, scene: Scene) -> None:
        """Draw when it is time to."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LIVE_EVERY_S
            self._live.update(picture(scene), refresh=True)

    def say(self, text: str) -> None:
        """One line above the picture."""
        self._live.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Take the picture away."""
        self._live.stop()


def task_line(scene: Scene) -> str:
    """The training in one line."""
    status, view = scene.fleet.status, scene.fleet.view
    if status is None:
        return f"{scene.phase}: {len(view.devices)} devices are here"
    releases = view.releases.get(TASK, [])
    staleness = f", staleness {releases[-1].staleness_mean:.1f}" if releases else ""
    value = "-" if status.value is None else f"{status.value:.1%}"
    accepted = status.updates.get("accepted", 0)
    fewer = f", {status.ratio_up:.1f} times fewer bytes up than float32" if status.ratio_up else ""
    return (
        f"{scene.phase}: version {status.version}, validation {status.metric or 'metric'} {value}, "
        f"{accepted} updates, buffer {status.buffered}/{status.buffer}{staleness}, {status.active} devices active"
        f"{fewer}"
    )


def sparkline(values: Sequence[float], width: int, low: float = 0.0, high: float = 1.0) -> str:
    """`values` in [low, high] as bars, at most `width` of them, each the mean of its share."""
    if not values:
        return ""
    width = min(width, len(values))
    shares = [values[i * len(values) // width : (i + 1) * len(values) // width] for i in range(width)]
    means = [sum(share) / len(share) for share in shares]
    steps, span = len(BARS) - 1, max(high - low, 1e-9)
    return "".join(BARS[max(0, min(steps, round((mean - low) / span * steps)))] for mean in means)


def picture(scene: Scene) -> RenderableType:
    """The whole screen; where a terminal is low, the last devices fall off."""
    fleet = scene.fleet
    head = Table.grid(padding=(0, 1))
    head.add_row(Text(task_line(scene), style="bold"))
    head.add_row(ProgressBar(total=1.0, completed=scene.progress, width=CHART_WIDTH))
    head.add_row(_chart([r.value for r in fleet.view.releases.get(TASK, []) if r.value is not None]))
    for happening in fleet.happenings[-NEWS_SHOWN:]:
        head.add_row(Text(f"* {happening.text}", style="yellow"))
    title = f"anabranch demo · {len(fleet.speeds)} devices · {fleet.broker.name} · {scene.seconds:.0f} s"
    return Group(Panel(head, title=title, title_align="left"), _devices(fleet))


def _chart(values: Sequence[float]) -> Text:
    if not values:
        return Text("validation accuracy: no version is measured yet", style="dim")
    low, high = min(values), max(values)
    return Text(f"{sparkline(values, CHART_WIDTH, low, high)} {low:.0%}..{high:.0%} validation", style="green")


def _devices(fleet: Fleet) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("device", "part", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("version", "accepted", "refused", "memory", "sent"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("its int8 model says", no_wrap=True, overflow="ellipsis")
    for device in fleet.devices:
        seen = fleet.view.devices.get(device, DeviceView(device))
        health, prediction = seen.health, seen.prediction
        table.add_row(
            device,
            fleet.cast.part(device),
            Text(seen.state or "-", style=STYLES.get(seen.state, "")),
            "-" if seen.version is None else str(seen.version),
            str(seen.verdicts["accepted"] or "-"),
            str(seen.verdicts["stale"] + seen.verdicts["rejected"] or "-"),
            "-" if health is None else f"{health.memory_mb:.0f} MB",
            "-" if not seen.bytes_up else f"{seen.bytes_up / 1000:.0f} kB",
            "-" if prediction is None else f"{prediction.label} ({prediction.probability:.0%}, v{prediction.version})",
        )
    return table
