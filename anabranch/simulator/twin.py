"""One run: an experiment with one seed, from its first event to its last check. Start reading at `Twin.run`."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from anabranch.simulator import data as datasets
from anabranch.simulator.attacks.attackers import Attackers
from anabranch.simulator.cache import ResultCache
from anabranch.simulator.calm import Calm, at_rest, final_checks
from anabranch.simulator.checker import Checker
from anabranch.simulator.device import Common, DeviceHost
from anabranch.simulator.experiment import Experiment
from anabranch.simulator.faults import Faults, draw, written
from anabranch.simulator.files import Contents, MemoryFiles
from anabranch.simulator.fleet import draw_devices, live, spells
from anabranch.simulator.gateway import GatewayHost
from anabranch.simulator.host import Host, Scene
from anabranch.simulator.learning import Learning, OnnxLearning, StandInLearning
from anabranch.simulator.operator import Operator
from anabranch.simulator.recorder import Recorder
from anabranch.simulator.store_model import MemoryStore
from anabranch.simulator.trace import Speaker, Trace
from anabranch.simulator.vary import varied
from anabranch.simulator.world import World
from broker_aggregator.config import GatewayConfig
from broker_aggregator.config import GatewaySection as GatewaySettings
from edge_agent.budget import BudgetConfig
from edge_agent.configuring import AgentSettings
from fl_protocol.better import reaches
from fl_protocol.bundle import Bundle
from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError
from fl_protocol.memory_broker import MemoryBroker
from fl_protocol.messages import Answer
from fl_protocol.signing import SigningKey

FLEET, TASK = "twin", "task"
DATA_DIR = Path("/gateway")
REST_S = 1200.0  # for the last updates to hear their verdicts


class Twin:
    """Everything of one run. `only` keeps these faults of the schedule; `text` takes the trace as text."""

    def __init__(
        self,
        experiment: Experiment,
        seed: int,
        *,
        text: TextIO | None = None,
        only: Sequence[int] | None = None,
        recorder: Recorder | None = None,
        cache: ResultCache | None = None,
    ) -> None:
        self.world = World(seed)
        if experiment.faults.vary:
            experiment = varied(experiment, self.world.rng("vary"))
        self.experiment, self.seed, self.task = experiment, seed, TASK
        self.trace = Trace(self.world, text)
        self.speaker = Speaker()
        data, self.bundle = datasets.read_bundle(experiment)
        shares = datasets.load_shares(experiment, self.bundle, seed)
        names = [name for name, _ in shares.devices]
        limits = experiment.broker
        self.broker = MemoryBroker(
            max_packet=limits.max_packet,
            receive_maximum=limits.receive_maximum,
            max_queued=limits.max_queued,
            will_at_take_over=limits.will_at_take_over,
        )
        self.store = MemoryStore(keep_releases=experiment.gateway.keep_releases)
        self.checker = Checker(self.store, self.bundle, lambda: self.world.now, experiment.checks.thorough)
        self.recorder = recorder or Recorder()
        self.recorder.watch(self)
        specs = draw_devices(experiment, names, self.world)
        drawn = {spec.name: spec.attack for spec in specs if spec.attack}
        self.attackers = Attackers.of(experiment, drawn, shares.devices, self.bundle, self.world)
        self.held_out = shares.held_out
        self.learning = self.attackers.learning(self._learning(shares, cache))
        self._scene = Scene(self.world, self.trace, self.speaker, self.checker.complain)
        fleet_key = self._key("fleet")
        self.gateway = self._gateway(fleet_key, {name: self._key(name).public for name in names}, data)
        self.operator = Operator(self.world, self.broker, FLEET, fleet_key, self.gateway.now_ms)
        common, contents = self._common(fleet_key.public, data), Contents(256)
        self.devices = [
            DeviceHost(
                self._scene,
                spec,
                common,
                self._key(spec.name),
                self.attackers.examples(spec.name, dataset, self.bundle, self.world),
                MemoryFiles(contents=contents),
                self.attackers.conducts.get(spec.name),
            )
            for spec, (_, dataset) in zip(specs, shares.devices, strict=True)
        ]
        self._hosts: dict[str, Host] = {host.name: host for host in self.hosts()}
        schedule = draw(experiment.faults, names, self.world.rng("faults")) if experiment.faults.storm_s else []
        schedule += written(experiment.events, names, len(schedule))
        if unknown := sorted(set(only or ()) - {fault.number for fault in schedule}):
            raise ConfigError(f"there is no fault {unknown[0]}", f"this seed has {len(schedule)}, numbered from 0")
        self.faults = Faults(self, [f for f in schedule if only is None or f.number in only])
        self.awake = 0
        self.why = ""

    # --- its parts ---

    def hosts(self) -> Iterator[Host]:
        """The gateway, then all devices."""
        yield self.gateway
        yield from self.devices

    def host(self, name: str) -> Host | None:
        """The machine of that name."""
        return self._hosts.get(name)

    def _key(self, name: str) -> SigningKey:
        return SigningKey(hashlib.sha256(f"{self.seed}/key/{name}".encode()).digest())

    def _learning(self, shares: datasets.Shares, cache: ResultCache | None) -> Learning:
        experiment = self.experiment
        if experiment.training.real:
            return OnnxLearning(self.bundle, shares.held_out, experiment.training.threads, cache)
        numbers = {name: number for number, (name, _) in enumerate(shares.devices)}
        d = experiment.data
        return StandInLearning(self.bundle, numbers, spread=d.spread, noise=d.noise, seed=self.seed)

    def _gateway(self, key: SigningKey, devices: dict[str, str], bundle: bytes) -> GatewayHost:
        settings = self.experiment.gateway
        files = MemoryFiles()
        config = GatewayConfig(
            gateway=GatewaySettings(
                fleet=FLEET,
                data_dir=DATA_DIR,
                keep_releases=settings.keep_releases,
                receive_maximum=settings.receive_maximum,
                commit_ms=0,
            ),
            devices=devices,
        )
        write_durably(config.bundles / self.bundle.sha256, bundle, files=files)
        return GatewayHost(
            self._scene,
            config,
            key,
            self.broker,
            self.experiment.gateway_link.spec(),
            self.learning,
            self.checker,
            files,
            tick_s=settings.tick_s,
            commit_s=settings.commit_ms / 1000,
            measure_s=settings.measure_ms / 1000,
            reconnect_max_s=settings.reconnect_max_s,
        )

    def _common(self, fleet_key: str, data: bytes) -> Common:
        agent, training = self.experiment.agent, self.experiment.training

        def read_bundle(given: bytes, sha256: str) -> Bundle:
            """A thousand devices read one bundle: the same bytes are verified once."""
            return self.bundle if given == data and sha256 == self.bundle.sha256 else Bundle.read(given, sha256)

        return Common(
            fleet=FLEET,
            task=TASK,
            fleet_key=fleet_key,
            broker=self.broker,
            learning=self.learning,
            checker=self.checker,
            read_bundle=read_bundle,
            step_s=training.step_ms / 1000,
            overhead_s=training.overhead_ms / 1000,
            memory_mb=training.memory_mb,
            settings=AgentSettings(
                budget=BudgetConfig(daily_mb=agent.daily_mb, up_kbit_s=agent.up_kbit_s),
                predict_s=agent.predict_s,
                health_s=agent.health_s,
                state_s=agent.state_s,
            ),
            measure_s=agent.measure_s,
            reconnect_max_s=agent.reconnect_max_s,
        )

    # --- its course ---

    def run(self, look: Callable[["Twin"], None] = lambda _: None) -> None:
        """From the first event to the last check; `look` is called now and then.

        Broken invariants are in `checker.violations`. Raises `ConfigError` where the gateway refuses the task.
        """
        with self.trace.logs_of(self.speaker):
            self._start()
            storm_s = self.experiment.faults.storm_s
            stopped = self._until(self._stopped, self.experiment.stop.hours * 3600.0, look)
            if storm_s:
                self.faults.mend_all()
                calm = Calm(self)
                if not self._until(calm.reached, self.world.now + self.experiment.faults.calm_s, look):
                    self.checker.violations.extend(f"after the storm: {what}" for what in calm.missing())
                self.recorder.calm_s = self.world.now - calm.began
            self.why = stopped or f"{self.experiment.stop.hours:g} virtual hours are over"
            self._end(look)
            final_checks(self)

    def _start(self) -> None:
        world, experiment = self.world, self.experiment
        self.gateway.boot()
        arguments: dict[str, Any] = {
            "task": TASK,
            "bundle_sha256": self.bundle.sha256,
            "bundle_size": len(datasets.read_bundle(experiment)[0]),
            "plan": self._plan(),
            "evaluation": "held-out",
        }
        self.operator.ask("task-create", self._answered(lambda: bool(self.store.releases(TASK))), **arguments)
        self.operator.ask("task-start", self._answered(lambda: self.recorder.started_at is not None), task=TASK)
        starts, late = world.rng("start"), set(experiment.fleet.late)
        for device in self.devices:
            at = experiment.fleet.late_s if device.name in late else starts.uniform(0, experiment.fleet.start_within_s)
            live(device, spells(experiment.availability, device.spec, world), at, self._awake_changed)
        if every_s := experiment.broker.save_every_s:
            world.after(every_s, partial(self._save, every_s))
        self.faults.start()

    def _awake_changed(self, by: int) -> None:
        self.awake += by

    def _save(self, every_s: float) -> None:
        if self.broker.running:
            self.broker.save()
        self.world.after(every_s, partial(self._save, every_s))

    def _plan(self) -> dict[str, Any]:
        plan, versions = dict(self.experiment.plan), self.experiment.stop.versions
        if versions:
            plan["stop"] = {**plan.get("stop", {}), "versions": versions}
        return plan

    def _answered(self, done: Callable[[], bool]) -> Callable[[Answer], None]:
        """What takes an answer. A command may be done though it failed: its gateway died before it could answer."""

        def take(answer: Answer) -> None:
            if answer.status != "successful" and not done():
                raise ConfigError(f"the gateway refuses the task: {answer.message}", answer.hint)

        return take

    def _until(self, over: Callable[[], str], latest: float, look: Callable[["Twin"], None]) -> str:
        """Let things happen until `over` says why it is, or `latest`: then it returns nothing."""
        world = self.world
        while world.next_at <= latest:
            for _ in range(64):
                if world.next_at > latest or not world.step():
                    break
            if why := over():
                return why
            look(self)
        world.now = max(world.now, latest)
        return ""

    def _stopped(self) -> str:
        stop, recorder, storm_s = self.experiment.stop, self.recorder, self.experiment.faults.storm_s
        if storm_s and self.world.now >= storm_s:
            return f"the storm of {storm_s:g} s is over"
        if recorder.finished:
            return recorder.finished
        if stop.updates and recorder.counted >= stop.updates:
            return f"{recorder.counted} updates are counted"
        if stop.value and recorder.value is not None and reaches(recorder.value, stop.value, self.bundle.better):
            return f"the metric reached {recorder.value:.4f}"
        return ""

    def _end(self, look: Callable[["Twin"], None]) -> None:
        """The task ends, and everybody who is awake hears what became of the last updates."""
        if not self.recorder.finished:
            self.operator.ask("task-stop", self._answered(lambda: bool(self.recorder.finished)), task=TASK)
            if not self._until(lambda: self.recorder.finished, self.world.now + REST_S, look):
                self.checker.complain(f"the task does not stop within {REST_S:.0f} s")
        if not self._until(lambda: at_rest(self), self.world.now + REST_S, look):
            self.checker.complain(f"updates have no verdict {REST_S:.0f} s after the task has ended")
        gateway = self.experiment.gateway
        self._until(lambda: self.recorder.measured, self.world.now + gateway.measure_ms / 250 + gateway.tick_s, look)
