"""What a person sees of the fleet while it trains."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from anabranch.demo.broker import Broker
from anabranch.demo.fleet import Fleet
from anabranch.demo.folder import TASK, Folder
from anabranch.demo.processes import Processes
from anabranch.demo.screen import BARS, LiveScreen, PlainScreen, Scene, make_screen, picture, sparkline
from anabranch.demo.story import Cast
from anabranch.fleet_view import DeviceView
from fl_protocol.messages import Health, Prediction, ReleaseMetrics, TaskStatus


@pytest.fixture
def scene() -> Scene:
    """A fleet in the middle of its training."""
    fleet = Fleet(Folder(Path()), Processes(Path()), (20, 45), Cast(slow=("fan-45",)), seed=0)
    fleet.broker = Broker("mosquitto", 1883, "auto")
    fleet.view.tasks[TASK] = TaskStatus(
        task=TASK, state="running", version=7, metric="accuracy", value=0.9, buffered=1, buffer=2, active=2
    )
    fleet.view.releases[TASK] = [
        ReleaseMetrics(task=TASK, version=v, value=v / 10, staleness_mean=1.5) for v in range(8)
    ]
    prediction = Prediction(task=TASK, version=7, label="normal", probability=0.97)
    device = DeviceView("fan-20", state="training", version=6, health=Health(memory_mb=80), prediction=prediction)
    device.verdicts["accepted"] = 41
    fleet.view.devices["fan-20"] = device
    fleet.happened("kill", "fan-45", "fan-45 killed in mid-training (kill -9)")
    return Scene(fleet, progress=0.5, phase="training", seconds=12.0)


def shown(renderable: object) -> str:
    """The renderable as text, 140 columns wide."""
    console = Console(width=140, file=io.StringIO(), record=True)
    console.print(renderable)
    return console.export_text()


def test_the_picture_tells_task_devices_and_events(scene):
    """Version, accuracy, buffer, staleness; state, verdicts, part and prediction of each device; what happened."""
    text = shown(picture(scene))
    for word in ("version 7", "90.0%", "buffer 1/2", "staleness 1.5", "mosquitto", "killed in mid-training"):
        assert word in text
    fan_20, fan_45 = (
        next(line for line in text.splitlines() if line.startswith(f" {f}")) for f in ("fan-20", "fan-45")
    )
    assert {"training", "6", "41", "80"} <= set(fan_20.split())
    assert "normal (97%, v7)" in fan_20
    assert "slow" in fan_45


def test_a_device_that_was_never_seen_has_its_row(scene):
    """The late one is on the list before it comes."""
    assert "fan-45" in shown(picture(scene))


def test_without_a_terminal_there_is_a_line_now_and_then(scene):
    """One line for each thing that happens, once, and one for the task when it is time."""
    console = Console(file=io.StringIO(), width=200)
    screen = make_screen(console)
    assert isinstance(screen, PlainScreen)
    for _ in range(3):
        screen.show(scene)
    lines = console.file.getvalue().splitlines()
    assert len([line for line in lines if "killed" in line]) == 1
    assert len([line for line in lines if "version 7" in line]) == 1
    PlainScreen(console, every_s=0.0).show(scene)
    assert len([line for line in console.file.getvalue().splitlines() if "version 7" in line]) == 2


def test_a_terminal_gets_the_live_picture_and_is_left_as_it_was(scene):
    """The cursor is shown again at the end."""
    console = Console(file=io.StringIO(), force_terminal=True, width=140, height=50, _environ={"TERM": "xterm"})
    screen = make_screen(console)
    assert isinstance(screen, LiveScreen)
    screen.show(scene)
    screen.say("a line that stays")
    screen.close()
    written = console.file.getvalue()
    assert "version 7" in written
    assert "a line that stays" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


shares = st.lists(st.floats(0, 1), max_size=300)


@given(shares, st.integers(1, 80))
def test_a_sparkline_has_at_most_its_width(values, width):
    """However many values there are."""
    assert len(sparkline(values, width)) == min(width, len(values))


@given(shares)
def test_a_sparkline_grows_with_its_values(values):
    """A higher value never has a lower bar."""
    values = sorted(values)
    bars = [BARS.index(bar) for bar in sparkline(values, 300)]
    assert bars == sorted(bars)


def test_a_sparkline_spans_all_bars():
    """0 is the lowest bar, 1 the highest; what lies outside is clipped."""
    assert sparkline([0.0, 1.0, -5.0, 7.0], 4) == f"{BARS[0]}{BARS[-1]}{BARS[0]}{BARS[-1]}"


def test_a_terminal_that_cannot_move_its_cursor_gets_lines():
    """TERM=dumb, as in some editors and builds."""
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(make_screen(console), PlainScreen)
