"""The fleet at work: broker, gateway and agents as processes, and what is seen of them over MQTT."""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from anabranch.demo import folder as files
from anabranch.demo.broker import HOST, Broker, start_broker
from anabranch.demo.folder import FLEET, TASK, Folder
from anabranch.demo.processes import Processes, Usage
from anabranch.demo.story import Act, Cast
from anabranch.fleet_view import FleetView, filters
from fl_protocol.messages import TaskStatus
from fl_protocol.mqtt import MqttTransport
from fl_protocol.transport import Connected, Delivery

GATEWAY = "gateway"
OPERATOR_S = 30.0  # what `task create` gets on a machine that starts seventeen agents


@dataclass(frozen=True)
class Happening:
    """Something that happened to the fleet; `ts` in ms since 1970, `who` a device or empty for the gateway."""

    ts: int
    deed: str
    who: str
    text: str


@dataclass
class Fleet:
    """One run's programs. `turn` is where time passes; the rest starts, ends or measures them."""

    folder: Folder
    processes: Processes
    speeds: Sequence[int]
    cast: Cast
    seed: int
    view: FleetView = field(default_factory=FleetView)
    happenings: list[Happening] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # what a demo without faults would not show
    usage: dict[str, Usage] = field(default_factory=dict)
    broker: Broker = field(init=False)
    _monitor: MqttTransport | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._monitor is not None:
            self._monitor.close()

    @property
    def devices(self) -> list[str]:
        """Names of all devices, by speed."""
        return [files.device_of(speed) for speed in self.speeds]

    @property
    def status(self) -> TaskStatus | None:
        """The task's page, None before there is one."""
        return self.view.tasks.get(TASK)

    def start_broker(self) -> Broker:
        """Start the broker and look on from here. Raises `ConfigError`."""
        self.broker = start_broker(self.processes, self.folder.path / "broker")
        self._monitor = MqttTransport(
            HOST, self.broker.port, "demo", version=self.broker.mqtt_version, session_expiry_s=0
        )
        self._monitor.start()
        return self.broker

    def start_gateway(self, versions: int, minutes: int) -> None:
        """Write all files, and start the gateway. Raises `ConfigError`."""
        keys = files.write_devices(self.folder, self.broker, self.speeds, self.cast, self.seed)
        files.write_gateway(self.folder, self.broker, keys)
        files.write_task(self.folder, self.speeds, versions, minutes)
        self._start_gateway()

    def create_task(self) -> None:
        """What an operator does: create the task, and start it. Raises `ConfigError`."""
        command = ["broker_aggregator", "task", "create", "--config", str(self.folder.gateway_file)]
        self.processes.run("operator", [sys.executable, "-m", *command, str(self.folder.task_file)], OPERATOR_S)

    def start_agents(self) -> None:
        """Start every agent but the late one."""
        for device in self.devices:
            if device != self.cast.late:
                self._start_agent(device)

    def turn(self, timeout: float, look: Callable[[], None] = lambda: None) -> None:
        """Take what came over MQTT within `timeout` seconds, and notice programs that fell.

        `look` is called after each message: a device is in the state `training` for a few hundredths of a second.
        """
        monitor = self._monitor
        assert monitor is not None, "there is no broker yet"
        for incoming in monitor.receive(timeout):
            match incoming:
                case Connected():
                    monitor.subscribe(filters(FLEET))
                case Delivery(topic, payload, _, receipt):
                    self.view.take(topic, payload)
                    look()
                    if receipt is not None:
                        monitor.acknowledge(receipt)
        for device, event in self.view.take_news():
            if event.level == "error":
                self.happened("said", device, f"{device}: {event.event} {event.code} {event.message}")
        for program in self.processes.fallen():
            self.problems.append(f"{program.name} ended by itself, code {program.code}: {program.last_words}")
            self.happened("fell", program.name, self.problems[-1])
            if program.name == GATEWAY:  # as systemd would
                self._start_gateway()

    def act(self, act: Act) -> None:
        """Do what the story asks for."""
        who = act.who
        match act.deed:
            case "kill":
                self._measure([who])
                self.processes.kill(who)
                self.happened("kill", who, f"{who} killed in mid-training (kill -9)")
            case "restart":
                self._start_agent(who)
                last_words = self.view.devices[who].last_words
                self.happened("restart", who, f"{who} started again on its disk; it was lost in the state {last_words}")
            case "leave":
                self._measure([who])
                self.stop([who])
                self.happened("leave", who, f"{who} left for good")
            case "join":
                self._start_agent(who)
                self.happened("join", who, f"{who} joined late")
            case "kill gateway":
                self._measure([GATEWAY])
                self.processes.kill(GATEWAY)
                self.happened("kill gateway", "", "the gateway killed (kill -9)")
            case "restart gateway":
                self._start_gateway()
                self.happened("restart gateway", "", "the gateway started again on its store")

    def stop(self, names: Sequence[str]) -> None:
        """End programs gently; one that does not end well is a problem."""
        for program in self.processes.stop(names):
            if program.code not in (0, -signal.SIGTERM):  # the latter: it was asked before it could listen
                self.problems.append(f"{program.name} ended with code {program.code}: {program.last_words}")

    def measure(self) -> None:
        """Note what the programs have used so far."""
        self._measure([*self.devices, GATEWAY, "broker"])

    def end(self) -> None:
        """End the agents, and then the gateway, as an operator would."""
        self.stop(self.devices)
        self.stop([GATEWAY])

    def happened(self, deed: str, who: str, text: str) -> None:
        """Note an event."""
        self.happenings.append(Happening(time.time_ns() // 1_000_000, deed, who, text))

    def _start_gateway(self) -> None:
        command = ["broker_aggregator", "run", "--config", str(self.folder.gateway_file)]
        self.processes.start(GATEWAY, [sys.executable, "-m", *command])

    def _start_agent(self, device: str) -> None:
        command = ["edge_agent", "run", "--config", str(self.folder.agent_file(device))]
        self.processes.start(device, [sys.executable, "-m", *command])

    def _measure(self, names: Sequence[str]) -> None:
        """Add what these processes have used: a program that was started twice has had two."""
        for name in names:
            now, before = self.processes.usage(name), self.usage.get(name, Usage(0.0, 0.0))
            if now is not None:
                self.usage[name] = Usage(max(now.peak_mb, before.peak_mb), now.cpu_s + before.cpu_s)
