"""The gateway of the twin: the production service, turned by virtual time on a simulated machine."""

import sqlite3

from anabranch.simulator.checker import Checker
from anabranch.simulator.files import MemoryFiles
from anabranch.simulator.host import Host, Scene
from anabranch.simulator.learning import Learning
from anabranch.simulator.link import LinkedTransport, LinkSpec, SimulatedWire
from anabranch.simulator.power import Death
from anabranch.simulator.watched import WatchedTransport
from anabranch.simulator.world import EPOCH_MS, World
from broker_aggregator.config import GatewayConfig
from broker_aggregator.events import Evaluate, Evaluated, Note
from broker_aggregator.machine import Machine
from broker_aggregator.measuring import MAX_MEASURING
from broker_aggregator.objects import Objects
from broker_aggregator.service import UPLOADS, Service
from fl_protocol.memory_broker import MemoryBroker
from fl_protocol.parts import FileParts
from fl_protocol.signing import SigningKey
from fl_protocol.transport import WillOf

FREE_BYTES = 1 << 40
CLIENT_ID = "gateway"


class VirtualMeasuring:
    """A `Measuring` that takes `measure_s` of virtual time for each version, one after the other."""

    def __init__(self, world: World, learning: Learning, measure_s: float, host: Host) -> None:
        self._world, self._learning, self._measure_s, self._host = world, learning, measure_s, host
        self._free_at = 0.0
        self._waiting: list[tuple[float, Evaluate]] = []

    def begin(self, effect: Evaluate) -> None:
        """See `Measuring.begin`."""
        if len(self._waiting) >= MAX_MEASURING:
            return
        self._free_at = max(self._free_at, self._world.now) + self._measure_s
        self._waiting.append((self._free_at, effect))
        self._host.wake_at(self._free_at)

    def news(self) -> list[Evaluated | Note]:
        """See `Measuring.news`."""
        news: list[Evaluated | Note] = []
        while self._waiting and self._waiting[0][0] <= self._world.now:
            _, effect = self._waiting.pop(0)
            measured = self._learning.measure(effect.vector)
            if measured is not None:
                news.append(Evaluated(effect.task, effect.version, *measured))
        return news

    def stop(self) -> None:
        """See `Measuring.stop`."""
        self._waiting.clear()


class GatewayHost(Host):
    """One gateway: its disk (`store`, `files`) outlives its programs.

    `tick_s` is how often it looks at its deadlines, `commit_s` how long the first of a batch waits for company.
    """

    def __init__(
        self,
        scene: Scene,
        config: GatewayConfig,
        key: SigningKey,
        broker: MemoryBroker,
        link: LinkSpec,
        learning: Learning,
        checker: Checker,
        files: MemoryFiles,
        *,
        tick_s: float,
        commit_s: float,
        measure_s: float,
        reconnect_max_s: float,
    ) -> None:
        super().__init__(scene, CLIENT_ID)
        self.config, self.key, self.files, self.checker = config, key, files, checker
        self._broker, self._learning = broker, learning
        self._tick_s, self._commit_s, self._measure_s = tick_s, commit_s, measure_s
        self._reconnect_max_s = reconnect_max_s
        self.rng = self.world.generator("gateway")
        self.store = checker.store
        self.store.crash_point = self.crash_point
        files.crash_point = self.crash_point
        files.fault = self.file_fault
        self.wire = SimulatedWire(self.world, link, self.world.rng("link", "gateway"))
        self.service: Service | None = None
        self.free_bytes = FREE_BYTES
        self.clock_ms = EPOCH_MS

    def now_ms(self) -> int:
        """Its wall clock."""
        return self.clock_ms + int(self.world.now * 1000)

    def news(self) -> None:
        """Something has come; it may have company soon."""
        self._alarm.set(self.world.now + self._commit_s)

    # --- Host ---

    def start(self) -> None:
        """As `broker-aggregator run` does."""
        self.files.reboot()
        self.service = Service(
            self.config,
            self.store,
            self.key,
            connect=self._connect,
            objects=Objects(self.config.bundles, self.store, self.files),
            measuring=VirtualMeasuring(self.world, self._learning, self._measure_s, self),
            machine=Machine(lambda: self.world.now, self.now_ms, lambda _path: self.free_bytes),
            parts=FileParts(self.config.gateway.data_dir / UPLOADS, self.files, now_s=lambda: self.now_ms() / 1000),
        )
        self.service.transport.start()

    def work(self) -> float:
        """One turn of the gateway's loop."""
        service, transport = self.service, self.transport
        assert service is not None
        assert isinstance(transport, WatchedTransport)
        service.turn(0.0)
        transport.look(service.coordinator)
        return self.world.now + self._tick_s

    def fall(self, death: Death, *, noticed: bool) -> None:
        """Let go of the program; the disk loses what it loses."""
        if self.transport:
            self.transport.die(noticed=noticed)
        self.service = self.transport = None
        self.store.die(death, self.rng)
        self.files.die(death, self.rng)

    def excuse(self, error: Exception) -> bool:
        """A disk that is full or fails ends the gateway: crash-only."""
        return isinstance(error, sqlite3.OperationalError) and (self.store.full or self.store.fails)

    def _connect(self, config: GatewayConfig, will: WillOf) -> LinkedTransport:
        self.transport = WatchedTransport(
            self.world,
            self.scene.trace,
            self._broker,
            CLIENT_ID,
            self.wire,
            will=will,
            crash_point=self.crash_point,
            on_news=self.news,
            rng=self.rng,
            receive_maximum=config.gateway.receive_maximum,
            reconnect_max_s=self._reconnect_max_s,
        )
        self.transport.watch(self.checker, lambda: self.service)
        return self.transport
