"""The demo from its first process to its report; read `run_demo` and follow the calls."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from anabranch.datasets.fan_vibration import SPEEDS
from anabranch.demo.comparison import Comparison, compare_live, compare_quick
from anabranch.demo.fleet import Fleet
from anabranch.demo.folder import VERSIONS, Folder, choose_speeds, device_of, read_bundle
from anabranch.demo.outcome import Outcome, Training, read_training
from anabranch.demo.processes import Processes
from anabranch.demo.screen import Scene, Screen
from anabranch.demo.story import Story, draw_cast
from anabranch.demo.summary import watch_commands
from fl_protocol.bundle import Bundle
from fl_protocol.errors import ConfigError

READY_S = 60.0  # for gateway and task to appear on a slow machine
QUIET_S = 20.0  # for the last updates to hear their verdicts
TURN_S = 0.1
REPORTS = 2  # of health: the second was measured after the first
BUSY = frozenset({"training", "uploading"})


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    seed: int = 0
    devices: int = len(SPEEDS)
    minutes: int = 2  # of training, at most
    versions: int = VERSIONS
    quick: bool = False
    kill_gateway: bool = False
    output: Path = Path("runs")


class Interrupted(Exception):  # noqa: N818 - nobody's mistake
    """The person at the keyboard has seen enough; `reached` says in a line how far it came."""

    def __init__(self, reached: str) -> None:
        super().__init__(reached)
        self.reached = reached


def run_demo(options: Options, screen: Screen) -> Outcome:
    """Run a whole fleet and measure what came of it; every process has ended when this returns or raises.

    Raises `ConfigError` for what the operator must mend, `Interrupted` after Ctrl-C or SIGTERM.
    """
    speeds = choose_speeds(options.devices)
    if options.quick and speeds != SPEEDS:
        raise ConfigError("--quick knows the whole fleet only", f"leave out --devices, or take all {len(SPEEDS)}")
    folder = Folder.create(options.output)
    cast = draw_cast([device_of(speed) for speed in speeds], options.seed)
    clock = _Clock()
    with (
        _ending_on_signals(),
        Processes(folder.logs) as processes,
        Fleet(folder, processes, speeds, cast, options.seed) as fleet,
    ):
        try:
            _start(fleet, options, screen, clock)
            started_ts = time.time_ns() // 1_000_000
            _train(fleet, options, screen, clock)
            _come_to_rest(fleet, screen, clock)
            screen.say("training has ended; measuring every release, replaying the store, training the comparisons ...")
            bundle = read_bundle(folder)
            training = read_training(fleet, bundle)
            clock.lap("measuring")
            comparison = _compare(options, bundle, training, fleet)
            clock.lap("comparison")
        except KeyboardInterrupt:
            raise Interrupted(_reached(fleet)) from None
    return Outcome(
        folder=folder,
        seed=options.seed,
        speeds=speeds,
        cast=cast,
        broker=fleet.broker,
        plan=training.plan,
        why=training.why,
        started_ts=started_ts,
        seconds=clock.laps,
        happenings=fleet.happenings,
        problems=fleet.problems,
        releases=training.releases,
        updates=training.updates,
        steps=training.steps,
        float_accuracy=training.float_accuracy,
        comparison=comparison,
        num_values=bundle.layout.size,
        usage=fleet.usage,
        devices=fleet.view.devices,
        agreement=training.agreement,
        replayed=training.replayed,
        model=training.model,
    )


class _Clock:
    """Seconds since the start, and how long each phase took."""

    def __init__(self) -> None:
        self._started = self._lap = time.monotonic()
        self.laps: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def lap(self, phase: str) -> None:
        now = time.monotonic()
        self.laps[phase] = round(now - self._lap, 1)
        self._lap = now


def _start(fleet: Fleet, options: Options, screen: Screen, clock: _Clock) -> None:
    """From nothing to a running task. Raises `ConfigError`."""
    broker = fleet.start_broker()
    screen.say(f"broker: {broker.name} at 127.0.0.1:{broker.port}")
    if broker.cost:
        screen.say(f"  what this costs: {broker.cost}")
    screen.say("watch it from another terminal:")
    for what, command in watch_commands(broker.port):
        screen.say(f"  {command}   # {what}")
    fleet.start_gateway(options.versions, options.minutes)
    until = time.monotonic() + READY_S

    def wait(there: Callable[[], bool], what: str) -> None:
        while not there():
            screen.show(Scene(fleet, 0.0, "starting", clock.seconds))
            fleet.turn(TURN_S)
            if time.monotonic() > until:
                raise ConfigError(f"{what} did not come up within {READY_S:.0f} s", f"see {fleet.folder.logs}")

    wait(lambda: fleet.view.gateway is not None, "the gateway")
    fleet.create_task()  # before the agents, whose start keeps every core busy
    fleet.start_agents()
    wait(lambda: any(device.connected for device in fleet.view.devices.values()), "the first agent")
    clock.lap("start")


def _train(fleet: Fleet, options: Options, screen: Screen, clock: _Clock) -> None:
    """Watch the training, and let happen to the fleet what the story says."""
    story = Story(fleet.cast, options.kill_gateway)
    started = time.monotonic()
    give_up = started + 60.0 * options.minutes + READY_S  # the gateway ends it at `minutes`; this is for a broken one

    def progress() -> float:
        seconds, version = time.monotonic() - started, fleet.status.version if fleet.status else 0
        return min(1.0, max(version / options.versions, seconds / (60.0 * options.minutes)))

    def look() -> None:
        for act in story.next(fleet.view, progress()):
            fleet.act(act)

    while (status := fleet.status) is None or status.state == "running" or story.owes_the_gateway:
        look()
        screen.show(Scene(fleet, progress(), "training", clock.seconds))
        fleet.turn(TURN_S, look)
        if time.monotonic() > give_up:
            fleet.problems.append("the task did not end when its time was over")
            break
    clock.lap("training")


def _come_to_rest(fleet: Fleet, screen: Screen, clock: _Clock) -> None:
    """Let updates that are on their way hear their verdicts and the last bytes be told; then end all processes."""
    until = time.monotonic() + QUIET_S

    def wait(more: Callable[[], bool]) -> None:
        while more() and time.monotonic() < until:
            screen.show(Scene(fleet, 1.0, "coming to rest", clock.seconds))
            fleet.turn(TURN_S)

    seen = fleet.view.devices
    wait(lambda: any(device.state in BUSY for device in seen.values()))
    reports = {name: device.healths for name, device in seen.items() if device.connected}
    wait(lambda: any(seen[name].healths < before + REPORTS for name, before in reports.items()))
    fleet.measure()
    fleet.end()
    clock.lap("coming to rest")


def _compare(options: Options, bundle: Bundle, training: Training, fleet: Fleet) -> Comparison:
    if options.quick:
        return compare_quick(bundle)
    return compare_live(bundle, training.plan, fleet.speeds, training.steps, options.seed)


def _reached(fleet: Fleet) -> str:
    status = fleet.status
    if status is None:
        return "stopped before the training began"
    value = "not measured" if status.value is None else f"{status.value:.1%}"
    return f"reached version {status.version}, validation accuracy {value}, {sum(status.updates.values())} updates"


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end the demo as Ctrl-C does, also where a shell has told us to ignore that."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
