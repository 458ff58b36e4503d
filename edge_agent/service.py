"""The agent's loop: transport, disk, clock, sensors and trainer around the heart. All I/O is here, no decision is.

One thread does everything but training, and the transport's own networking. The simulator runs this same loop with a
disk, a clock, a trainer and a transport of its own. A durable effect that fails for any other
reason than a full disk ends the process; the next start goes on from what the disk holds.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edge_agent import events as e
from edge_agent.agent import Agent
from edge_agent.gate import Reading, Vitals
from edge_agent.health import read_vitals
from edge_agent.inference import Predictor
from edge_agent.leaving import check_leaving
from edge_agent.logs import LEAVES, LogRing
from edge_agent.notify import Notifier
from edge_agent.objects import Objects
from edge_agent.release_spool import ReleaseSpool
from edge_agent.ring_files import Held
from edge_agent.sources import InputSpec, Source, Watching
from edge_agent.sources.checks import told
from edge_agent.storage import Database, Kept
from edge_agent.worker import Worker
from fl_protocol.bundle import Bundle
from fl_protocol.codec import encode
from fl_protocol.errors import Code, ConfigError, ProtocolError
from fl_protocol.heartbeat import Heartbeat
from fl_protocol.messages import Offer
from fl_protocol.tensors import Vector
from fl_protocol.transport import Connected, Delivery, Disconnected, Transport, Undeliverable

if TYPE_CHECKING:
    from edge_agent.renewing import Renewal  # with cryptography's X.509, which not every device needs

log = logging.getLogger("edge_agent")

LOOK_S = 0.1  # how often a finished training is looked for
PredictorFactory = Callable[[Bundle, Vector, Vector], Predictor]  # bundle, version, personal entries

IDLE_S = 0.5  # how often a request to end is
CLOSE_S = 2.0  # what the transport is given to send the rest
_CLOCK_SET_MS = 1_600_000_000_000  # before this the machine does not know what time it is


def wall_ms() -> int:
    """Milliseconds since 1970 for people, 0 while the machine has no clock."""
    now = time.time_ns() // 1_000_000
    return now if now > _CLOCK_SET_MS else 0


class Service:
    """Runs one agent. `step` does what is due and returns; `run` does so until asked to end."""

    def __init__(
        self,
        agent: Agent,
        transport: Transport,
        outbox: Database,
        objects: Objects,
        source: Source,
        worker: Worker,
        sensors: Callable[[], Reading],
        *,
        broker: str = "the broker",
        measure_s: float = 10.0,
        make_predictor: PredictorFactory = Predictor,
        tell_numbers: bool = False,
        vitals: Callable[[], Vitals] = read_vitals,
        renewal: "Renewal | None" = None,
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = wall_ms,
        notifier: Notifier | None = None,
        forget: Callable[[], Held] | None = None,
        log_ring: LogRing | None = None,
        releases: ReleaseSpool | None = None,
    ) -> None:
        self._agent, self._transport, self._outbox, self._objects = agent, transport, outbox, objects
        self._source, self._sensors, self._vitals = source, sensors, vitals
        self._clock, self._wall_ms = clock, wall_ms
        self._worker, self._busy = worker, False
        self._measure_s, self._measure_at = measure_s, 0.0
        self._make_predictor, self._tell_numbers = make_predictor, tell_numbers
        self._counted = (0, 0)
        self._predictors: dict[str, tuple[int, Vector, Predictor]] = {}  # by task, with what it was made of
        self._broker, self._connected = broker, False
        self._renewal = renewal
        self._notifier = notifier or Notifier({})
        self._forget, self._log_ring = forget, log_ring or LogRing()
        self._releases = releases

    @property
    def wake_at(self) -> float:
        """When `step` has something to do, if nothing comes before; on the clock that it was given."""
        return min(self._agent.wake_at, self._measure_at)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. Raises `ConfigError` where the disk cannot be used any more."""
        heartbeat = Heartbeat()
        self._transport.start()
        self._notifier.ready()
        try:
            while not stop.is_set():
                self._notifier.alive(self._clock())
                self.step()
                heartbeat.beat(self._connected)
        finally:
            self.close()

    def step(self, patience_s: float = IDLE_S) -> None:
        """Wait at most `patience_s` for something to happen, and see to it."""
        now = self._clock()
        due_s = self.wake_at - now
        come = self._transport.receive(max(0.0, min(patience_s, due_s, LOOK_S if self._busy else patience_s)))
        self._count()
        for event in come:
            self._log(event)
            if self._renewal is None or not self._renewal.takes(event, self._transport):
                self._feed(event)
            if isinstance(event, Delivery) and event.receipt is not None:
                self._transport.acknowledge(event.receipt)
        if self._renewal is not None:
            self._renewal.tick(self._clock(), self._wall_ms(), self._transport)
        if outcome := self._worker.outcome():
            self._busy = False
            self._feed(outcome)
        if self._clock() >= self._measure_at:
            self._measure_at = self._clock() + self._measure_s
            self._feed(self._measured())
        if self._clock() >= self._agent.wake_at:
            self._feed(e.Tick())

    def close(self) -> None:
        """Say goodbye, and let go of everything; a training in hand is abandoned."""
        self._notifier.stopping()
        self._feed(e.Stop())
        closing = threading.Thread(target=self._transport.close, daemon=True)
        closing.start()
        self._worker.stop()
        closing.join(CLOSE_S)
        self._outbox.close()

    def _feed(self, event: e.Event) -> None:
        """Give an event to the heart, carry out what it asks for, and give it what comes of that."""
        events = deque([event])
        while events:
            for effect in self._agent.handle(events.popleft(), self._clock()):
                answer = self._perform(effect)
                if answer is not None:
                    events.append(answer)

    def _perform(self, effect: e.Effect) -> e.Event | None:
        match effect:
            case e.SaveObject(sha256, data):
                return e.Saved(effect) if self._objects.save(sha256, data) else e.DiskFull(effect)
            case e.KeepObjects(sha256s):
                self._objects.keep(sha256s)
                return e.Saved(effect)
            case _ if isinstance(effect, Kept):
                return e.Saved(effect) if self._outbox.apply(effect) else e.DiskFull(effect)
            case e.Send():
                return self._send(effect)
            case e.Subscribe(filters):
                self._transport.subscribe(filters)
            case e.Unsubscribe(names):
                self._transport.unsubscribe(names)
            case e.Load(sha256, or_size):
                found = self._objects.load(sha256)
                return e.Loaded(sha256, found, self._objects.of_size(or_size) if or_size and found is None else None)
            case e.ReadExamples():
                return self._read_examples(effect)
            case e.Train():
                return self._train(effect)
            case e.Pause(paused):
                self._worker.pause(paused)
            case e.Predict():
                return self._predict(effect)
            case e.ReadLog(cid, lines):
                return e.LogRead(cid, self._log_ring.newest(lines))
            case e.EraseExamples(cid):
                return self._erase(cid)
            case e.KeepRelease() | e.SpoolRelease() | e.LookForReport():
                return self._update(effect)
            case e.Measure():
                return self._measured()
            case e.Adjust(measure_s, log_level):
                self._measure_s, self._measure_at = measure_s, 0.0
                log.setLevel(log_level.upper())
            case e.Note(level, text):
                log.log(getattr(logging, level.upper()), "%s", text, extra=LEAVES)
        return None

    def _send(self, effect: e.Send) -> Undeliverable | None:
        message = effect.message
        try:
            check_leaving(effect.topic, message)
        except ProtocolError as error:
            return Undeliverable(effect.topic, 0, error.message)
        if not isinstance(message, bytes | Offer):  # an offer is signed over its time too
            message = replace(message, ts=self._wall_ms())
        payload = message if isinstance(message, bytes) else encode(message)
        try:
            self._transport.publish(effect.topic, payload, qos=effect.qos, retain=effect.retain)
        except ProtocolError as error:
            return Undeliverable(effect.topic, len(payload), error.message)
        return None

    def _read_examples(self, effect: e.ReadExamples) -> e.Event:
        try:
            dataset = self._source.load(InputSpec.of(effect.bundle))
        except ConfigError as error:
            log.info("%s: %s (%s)", effect.task, error.message, error.hint)
            return e.ExamplesMissing(effect.task, told(error))
        log.info("%s: %d examples, %d held out", effect.task, len(dataset.train), len(dataset.validation))
        return e.ExamplesRead(effect.task, len(dataset.train))

    def _erase(self, cid: str) -> e.ExamplesErased:
        """Erase the ring, where there is one."""
        if self._forget is None:
            why = "the examples lie in a folder or a plug-in's place, which are not the agent's to erase"
            return e.ExamplesErased(cid, why=why, ours=False)
        try:
            gone = self._forget()
        except (ConfigError, OSError) as error:
            log.error("the ring cannot be erased: %s", error)
            return e.ExamplesErased(cid, why="the ring cannot be erased: its disk has errors, see the device's log")
        return e.ExamplesErased(cid, gone.examples)

    def _update(self, effect: e.KeepRelease | e.SpoolRelease | e.LookForReport) -> e.Event:
        """The agent's own release, where one can be installed."""
        if self._releases is None:
            return e.ReleaseKept(effect.sha256, code=Code.COMMAND, why="no release is installed by this program")
        match effect:
            case e.KeepRelease(sha256, fleet_key, data):
                return self._releases.keep(sha256, fleet_key, data)
            case e.SpoolRelease(sha256):
                return self._releases.spool(sha256)
            case e.LookForReport(sha256):
                return self._releases.look(sha256)

    def _train(self, effect: e.Train) -> e.Event | None:
        try:
            dataset = self._source.load(InputSpec.of(effect.bundle))
        except ConfigError as error:
            return e.TrainingFailed(effect.task, None, told(error))
        self._busy = True
        self._worker.train(effect, dataset)
        return None

    def _predict(self, effect: e.Predict) -> e.Event | None:
        version, personal, predictor = self._predictors.get(effect.task, (-1, effect.personal, None))
        try:
            if predictor is None or version != effect.version or not np.array_equal(personal, effect.personal):
                self._predictors.pop(effect.task, None)  # the old model's memory goes before the new one comes
                predictor = None
                predictor = self._make_predictor(effect.bundle, effect.vector, effect.personal)
                self._predictors[effect.task] = effect.version, effect.personal, predictor
            spec, source = InputSpec.of(effect.bundle), self._source
            newest = source.newest(spec) if isinstance(source, Watching) else source.load(spec).newest
            guess = predictor.predict(newest)
            if not effect.bundle.labels and not self._tell_numbers:  # it may be close to what was measured
                log.debug("%s: the model says %s", effect.task, guess.label)
                return None
            return e.Predicted(effect.task, effect.version, guess)
        except (ProtocolError, ConfigError) as error:
            log.warning("%s: no prediction: %s", effect.task, error.message)
            return None

    def _measured(self) -> e.Measured:
        sent, received = self._transport.bytes_sent, self._transport.bytes_received
        return e.Measured(self._sensors(), self._vitals(), sent, received)

    def _count(self) -> None:
        """Tell the heart what passed the socket before it decides anything more, where it has a budget."""
        counted = self._transport.bytes_sent, self._transport.bytes_received
        if self._agent.counts and counted != self._counted:
            self._counted = counted
            self._feed(e.Counted(*counted))

    def _log(self, event: e.Event) -> None:
        """One line for each connection and for each end of one."""
        match event:
            case Connected(limits=limits):
                self._connected = True
                log.info("connected to %s, MQTT %s", self._broker, limits.version, extra=LEAVES)
                self._notifier.status(f"connected to {self._broker}")
            case Disconnected(reason, retry_in_s):
                what = "lost" if self._connected else "cannot reach"
                self._connected = False
                text = f"{what} {self._broker} ({reason}); trying again in {retry_in_s:.0f} s"
                log.warning("%s", text, extra=LEAVES)
                self._notifier.status(f"{what} {self._broker} ({reason})")
