"""A device of the twin: the production agent, from its loop down to its codecs, on a simulated machine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from anabranch.simulator.attacks.protocol import Conduct, HostileTransport
from anabranch.simulator.checker import Checker
from anabranch.simulator.files import MemoryFiles
from anabranch.simulator.host import Host, Scene
from anabranch.simulator.learning import Learning
from anabranch.simulator.link import OUTGOING_BYTES, LinkedTransport, LinkSpec, SimulatedWire
from anabranch.simulator.outbox_model import MemoryOutbox
from anabranch.simulator.power import Death
from anabranch.simulator.virtual_worker import Pace, VirtualWorker
from anabranch.simulator.world import EPOCH_MS
from edge_agent.agent import Agent
from edge_agent.configuring import AgentSettings
from edge_agent.events import Guess
from edge_agent.gate import Reading, Vitals
from edge_agent.identity import Identity
from edge_agent.intake import ReadBundle
from edge_agent.objects import Objects
from edge_agent.service import Service
from edge_agent.sources import Dataset, InputSpec
from fl_protocol.bundle import Bundle
from fl_protocol.errors import ConfigError
from fl_protocol.memory_broker import MemoryBroker
from fl_protocol.messages import DeviceInfo
from fl_protocol.signing import SigningKey
from fl_protocol.tensors import Vector

SOFTWARE = "edge-agent (twin)"
OBJECTS = Path("/objects")
EMPTY_BATTERY = Reading(battery_pct=1.0, charging=False)  # what closes the gate


@dataclass(frozen=True)
class DeviceSpec:
    """One machine as it was drawn; `slowness` multiplies the reference machine's time for a step.

    A training that begins before `dies_until_s` kills it with the probability `dies`, at a random moment; it is back
    after `back_s` seconds, half of that more or less.
    """

    name: str
    number: int
    tier: str = ""
    slowness: float = 1.0
    memory_mb: float = 1024.0
    link: LinkSpec = LinkSpec()  # noqa: RUF009  # frozen
    attack: str = ""
    dies: float = 0.0
    back_s: float = 600.0
    dies_until_s: float = float("inf")


@dataclass(frozen=True)
class Common:
    """What all devices of a run share."""

    fleet: str
    task: str
    fleet_key: str
    broker: MemoryBroker
    learning: Learning
    checker: Checker
    read_bundle: ReadBundle
    step_s: float
    overhead_s: float
    memory_mb: float
    settings: AgentSettings
    measure_s: float = 10.0
    reconnect_max_s: float = 300.0


class HeldExamples:
    """A `Source`: the examples that the device has, and always had."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def load(self, spec: InputSpec) -> Dataset:
        """See `Source.load`."""
        shape = self.dataset.train.x.shape[1:]
        if shape != spec.x_shape:
            raise ConfigError(f"the examples have shape {shape}, the bundle wants {spec.x_shape}", "mend [data]")
        return self.dataset


class _NoPredictor:
    """What a version says of an example is not simulated; that the agent asks, and tells, is."""

    def __init__(self, _bundle: Bundle, _version: Vector, _personal: Vector) -> None:
        pass

    def predict(self, _x: object) -> Guess:
        """Something, at once."""
        return Guess("not simulated", 0.0, 0.0)


class DeviceHost(Host):
    """One device: its disk (`outbox`, `files`) outlives its programs. With a `conduct` it breaks the protocol."""

    def __init__(
        self,
        scene: Scene,
        spec: DeviceSpec,
        common: Common,
        key: SigningKey,
        dataset: Dataset,
        files: MemoryFiles,
        conduct: Conduct | None = None,
    ) -> None:
        super().__init__(scene, spec.name)
        self.spec, self.common, self.key, self.files = spec, common, key, files
        self.source, self.conduct = HeldExamples(dataset), conduct
        self.rng = self.world.generator("device", spec.name)
        self.outbox = MemoryOutbox(self.crash_point, self.rng)
        self.outbox.on_durable = self._durable
        files.crash_point = self.crash_point
        files.fault = self.file_fault
        self.wire = SimulatedWire(self.world, spec.link, self.world.rng("link", spec.name))
        pace = Pace(
            common.step_s * spec.slowness, common.overhead_s * spec.slowness, spec.memory_mb >= common.memory_mb
        )
        self._pace = pace
        self.may_train = True
        self.clock_ms = EPOCH_MS  # what its wall clock said at the start; faults move it
        self.awake_s = self.trained_s = 0.0
        self.begun = self.died = 0  # trainings, and those that the machine died of
        self._fate = self.world.rng("dies", spec.name)
        self._service: Service | None = None
        self._worker: VirtualWorker | None = None
        self._earlier = (0, 0)  # bytes of earlier programs

    # --- what is asked of it ---

    @property
    def bytes_sent(self) -> int:
        """At the socket, over all its programs."""
        return self._earlier[0] + (self.transport.bytes_sent if self.transport else 0)

    @property
    def bytes_received(self) -> int:
        """At the socket, over all its programs."""
        return self._earlier[1] + (self.transport.bytes_received if self.transport else 0)

    @property
    def train_s(self) -> float:
        """Virtual seconds of training."""
        return self.trained_s + (self._worker.spent_s if self._worker else 0.0)

    def sleep(self) -> None:
        """Stand still without a word; the broker notices when the keep-alive is over."""
        super().sleep()
        if self._worker:
            self._worker.hold("asleep", True)

    def wake(self) -> None:
        """Go on."""
        super().wake()
        if self._worker and not self._held:
            self._worker.hold("asleep", False)

    # --- Host ---

    def start(self) -> None:
        """As `edge-agent run` does."""
        common, spec = self.common, self.spec
        self.files.reboot()
        restored = self.outbox.start()
        common.checker.restored(self.name, restored, common.task)
        identity = Identity(spec.name, common.fleet, self.key, common.fleet_key, restored.incarnation, restored.boot)
        info = DeviceInfo(
            software=SOFTWARE,
            public_key=self.key.public,
            incarnation=restored.incarnation,
            machine=spec.tier[:64],
            memory_mb=int(spec.memory_mb),
        )
        checker = common.checker
        self._worker = VirtualWorker(
            self.world,
            self.name,
            self._pace,
            common.learning,
            self.wake_at,
            checker.begins,
            checker.learnt,
            self._begins,
        )
        self.transport = (HostileTransport if self.conduct else LinkedTransport)(
            self.world,
            self.scene.trace,
            common.broker,
            self.name,
            self.wire,
            will=identity.will,
            crash_point=self.crash_point,
            on_news=self.news,
            rng=self.rng,
            reconnect_max_s=common.reconnect_max_s,
        )
        if self.conduct and isinstance(self.transport, HostileTransport):
            self.transport.betray(self.conduct, identity, lambda: self.outbox.pending)
        objects = Objects(OBJECTS, self.files, lambda: self._wall_ms() / 1000)
        self._service = Service(
            Agent(identity, info, common.settings, restored, self.rng, common.read_bundle, objects.parts),
            self.transport,
            self.outbox,
            objects,
            self.source,
            self._worker,
            self._sensors,
            measure_s=common.measure_s,
            make_predictor=_NoPredictor,  # type: ignore[arg-type]
            vitals=Vitals,
            clock=lambda: self.world.now,
            wall_ms=self._wall_ms,
        )
        self.transport.start()

    def work(self) -> float:
        """One step of the agent's loop."""
        assert self._service is not None
        self._service.step(0.0)
        if self.transport:
            self.common.checker.bounded(f"the queue of {self.name}", self.transport.backlog, OUTGOING_BYTES)
        also_at = self.transport.misbehave() if isinstance(self.transport, HostileTransport) else float("inf")
        return min(self._service.wake_at, also_at)

    def fall(self, death: Death, *, noticed: bool) -> None:
        """Let go of the program; the disk loses what it loses."""
        if self._worker:
            self.trained_s += self._worker.spent_s
        if self.transport:
            self.transport.die(noticed=noticed)
            self._earlier = self.bytes_sent, self.bytes_received
        self._service = self._worker = self.transport = None
        self.outbox.die(death, self.rng)
        self.files.die(death, self.rng)

    def excuse(self, error: Exception) -> bool:
        """A disk that fails ends the agent, and so does a full one at its start, with a word to its operator."""
        return isinstance(error, ConfigError) and (self.files_fail or self.outbox.full)

    def _begins(self, seconds: float) -> None:
        """A training of so many seconds; the power may go in the middle of it, and no will is heard before its time."""
        self.begun += 1
        spec, fate = self.spec, self._fate
        if spec.dies and self.world.now < spec.dies_until_s and fate.random() < spec.dies:
            down_s = spec.back_s * fate.uniform(0.5, 1.5)
            self.world.after(fate.uniform(0.0, seconds), partial(self._dies_training, self.boots, down_s))

    def _dies_training(self, boot: int, down_s: float) -> None:
        if self.up and self.boots == boot:
            self.died += 1
            self.kill("power", down_s=down_s)

    def _sensors(self) -> Reading:
        return replace(Reading() if self.may_train else EMPTY_BATTERY, local_s=self._wall_ms() / 1000)

    def _wall_ms(self) -> int:
        return max(0, self.clock_ms + int(self.world.now * 1000))

    def _durable(self, effects: Sequence[object]) -> None:
        self.common.checker.on_outbox(self.name, effects)
