"""The heart on a bench: a disk of dictionaries, a clock that the test turns, a gateway whose words the test chooses."""

import hashlib
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np

from edge_agent import events as e
from edge_agent.agent import Agent
from edge_agent.budget import BudgetConfig
from edge_agent.configuring import AgentSettings
from edge_agent.gate import Reading
from edge_agent.identity import Identity
from edge_agent.release_spool import ReleaseSpool
from edge_agent.training import TrainingResult
from fl_protocol.bundle import Bundle
from fl_protocol.codec import decode_as, encode
from fl_protocol.errors import Code
from fl_protocol.messages import (
    Chunk,
    Desired,
    DeviceEvent,
    DeviceInfo,
    DeviceState,
    Envelope,
    Manifest,
    Message,
    Offer,
    Plan,
    Result,
    Signed,
    Update,
)
from fl_protocol.signing import SigningKey, seal, unseal_update
from fl_protocol.tensors import Vector
from fl_protocol.topics import Kind, build
from fl_protocol.transfer import Inbox, Outgoing
from fl_protocol.transport import Connected, Delivery, Disconnected, Limits

ROOT = Path(__file__).resolve().parents[2]
BUNDLE_BYTES = (ROOT / "anabranch/data/fan_vibration.bundle").read_bytes()
BUNDLE = Bundle.read(BUNDLE_BYTES)
FLEET, DEVICE, TASK = "plant", "fan-20", "balance"
FLEET_KEY, STRANGERS_KEY = SigningKey(b"f" * 32), SigningKey(b"x" * 32)
DEVICE_KEY = SigningKey(b"d" * 32)

E = TypeVar("E")


def topic(kind: Kind, **ids: str) -> str:
    """A topic as the device sees it."""
    return build(kind, FLEET, **{"device": DEVICE, "task": TASK, "channel": "stable", **ids})


def vector_of(version: int) -> Vector:
    """A version's vector, different for each."""
    return (BUNDLE.initial + np.float32(version + 1) / np.float32(64)).astype(np.float32)


def blob_of(version: int) -> bytes:
    """Its bytes."""
    return vector_of(version).astype("<f4").tobytes()


def result_of(base: Vector, seed: int = 0) -> TrainingResult:
    """What a training might have made of `base`."""
    size = BUNDLE.layout.num_parameters
    step = np.random.default_rng(seed).normal(0, 0.01, size).astype(np.float32)
    return TrainingResult(
        parameters=base[:size] + step,
        statistics=base[size:],
        personal=np.zeros(0, np.float32),
        num_examples=100,
        local_steps=4,
        train_seconds=0.5,
        metrics={"value": 0.5, "loss": 1.0, "validation_examples": 10.0},
    )


class Rig:
    """One agent, and what it asked for. `disk` and `objects` survive `restart`; `asked` is every effect so far."""

    def __init__(self, *, predict_s: float = 0.0, state_s: float = 0.0, budget: BudgetConfig | None = None) -> None:
        self.now = 100.0
        self.objects: dict[str, bytes] = {}
        self.restored = e.Restored(boot=1, incarnation="0123456789abcdef")
        self.disk_full = False
        self.examples: int | str = 100
        self.reading = Reading()
        self.counters: dict[str, int] = {}
        self.state_s = state_s
        self.predict_s, self.budget = predict_s, budget or BudgetConfig()
        self.releases: ReleaseSpool | None = None
        self.start()

    def start(self) -> None:
        """A new process."""
        self.asked: list[e.Effect] = []
        self.bseq = 0
        identity = Identity(DEVICE, FLEET, DEVICE_KEY, FLEET_KEY.public, self.restored.incarnation, self.restored.boot)
        info = DeviceInfo(software="test", public_key=DEVICE_KEY.public, incarnation=self.restored.incarnation)
        settings = AgentSettings(budget=self.budget, predict_s=self.predict_s, health_s=30.0, state_s=self.state_s)
        parts = self.releases.parts if self.releases else None
        rng = np.random.default_rng(7)
        self.agent = Agent(identity, info, settings, self.restored, rng, release_parts=parts)

    def restart(self) -> None:
        """Killed, and started again with what the disk holds."""
        r = self.restored
        self.restored = replace(r, boot=r.boot + 1, counters=dict(r.counters), trained=dict(r.trained))
        self.start()

    def do(self, event: e.Event) -> list[e.Effect]:
        """Give it an event; its effects, those that followed from the answers included."""
        events, effects = deque([event]), []
        while events:
            for effect in self.agent.handle(events.popleft(), self.now):
                effects.append(effect)
                answer = self._perform(effect)
                if answer is not None:
                    events.append(answer)
        self.asked += effects
        return effects

    def wait(self, seconds: float) -> list[e.Effect]:
        """Let time pass, with a tick whenever the agent wants one."""
        until, effects = self.now + seconds, []
        while self.agent.wake_at <= until:
            self.now = max(self.now, self.agent.wake_at)
            effects += self.do(e.Tick())
        self.now = until
        return effects + self.do(e.Tick())

    def connect(self, *, max_packet: int = 1 << 20, version: str = "5", present: bool = True) -> list[e.Effect]:
        """The broker accepts."""
        self.bseq += 1
        return self.do(Connected(present, self.bseq, Limits(version, max_packet)))

    def disconnect(self) -> list[e.Effect]:
        """The connection is gone."""
        return self.do(Disconnected("cut"))

    def hear(self, kind: Kind, message: Message | bytes, *, retained: bool = False, **ids: str) -> list[e.Effect]:
        """A message of the gateway's; bytes as they are."""
        name = topic(kind, **ids)
        if isinstance(message, Signed):
            message = seal(message, FLEET_KEY, FLEET, name)
        payload = message if isinstance(message, bytes) else encode(message)
        return self.do(Delivery(name, payload, retained, None))

    def count(self, kind: Kind, **ids: str) -> int:
        """The next counter of a topic."""
        name = topic(kind, **ids)
        self.counters[name] = self.counters.get(name, 0) + 1
        return self.counters[name]

    def desire(self, *tasks: str) -> list[e.Effect]:
        """The gateway names the device's tasks."""
        return self.hear(Kind.DESIRED, Desired(tasks=tasks, counter=self.count(Kind.DESIRED)))

    def plan(self, task: str = TASK, **changes: Any) -> list[e.Effect]:
        """The gateway publishes a plan."""
        fields: dict[str, Any] = {
            "task": task,
            "revision": 1,
            "state": "running",
            "bundle_sha256": BUNDLE.sha256,
            "bundle_size": len(BUNDLE_BYTES),
            "fingerprint": BUNDLE.layout.fingerprint,
            "codec": {"name": "uq", "step": "1.0"},
            "counter": self.count(Kind.PLAN, task=task),
            **changes,
        }
        return self.hear(Kind.PLAN, Plan(**fields), task=task)

    def announce(self, version: int, task: str = TASK, **changes: Any) -> list[e.Effect]:
        """The gateway publishes a version's manifest."""
        blob = blob_of(version)
        fields: dict[str, Any] = {
            "task": task,
            "plan_revision": 1,
            "version": version,
            "fingerprint": BUNDLE.layout.fingerprint,
            "sha256": hashlib.sha256(blob).hexdigest(),
            "size": len(blob),
            "chunk_size": 16384,
            "counter": self.count(Kind.MANIFEST, task=task),
            **changes,
        }
        return self.hear(Kind.MANIFEST, Manifest(**fields), task=task)

    def broadcast(self, version: int, task: str = TASK) -> list[e.Effect]:
        """The gateway broadcasts a version."""
        effects = []
        for chunk in chunks_of(blob_of(version)):
            effects += self.hear(Kind.BROADCAST, chunk, version=str(version), task=task)
        return effects

    def serve(self, data: bytes, chunk_size: int = 16384) -> list[e.Effect]:
        """The gateway sends every chunk of an object."""
        effects = []
        for chunk in chunks_of(data, chunk_size):
            effects += self.hear(Kind.CHUNK_DOWN, chunk)
        return effects

    def verdict(self, update: Update, verdict: str, **changes: Any) -> list[e.Effect]:
        """The gateway's word on an update."""
        fields = {"task": update.task, "incarnation": update.incarnation, "seq": update.seq, **changes}
        counter = self.count(Kind.RESULT)
        return self.hear(Kind.RESULT, Result(verdict=verdict, counter=counter, **fields))  # type: ignore[arg-type]

    def ready_to_train(self, version: int = 0, **plan: Any) -> e.Train:
        """Connected, with a task, its bundle, and a version that came by broadcast; the training that follows."""
        if not self.bseq:
            self.connect()
        self.desire(TASK)
        self.objects[BUNDLE.sha256] = BUNDLE_BYTES
        self.plan(**plan)
        self.announce(version)
        return the(e.Train, self.broadcast(version))

    def train(self, order: e.Train, seed: int = 0) -> list[e.Effect]:
        """The trainer is done with an order."""
        return self.do(e.Trained(order.task, result_of(order.base, seed)))

    def delivered(self, effects: list[e.Effect]) -> list[Update]:
        """The updates that a gateway gets which grants every offer at once, in chunks or in one packet."""
        whole = updates(effects)
        for offer in (send.message for send in sent(Kind.OFFER, effects)):
            assert isinstance(offer, Offer)
            reception = Inbox(1 << 20, 60).open(offer.sha256, offer.size, offer.chunk_size, DEVICE, self.now)
            grant = reception.offered(self.now)
            while grant:
                for send in sent(Kind.CHUNK_UP, self.hear(Kind.GRANT, grant)):
                    assert isinstance(send.message, Chunk)
                    reception.add(send.message, self.now)
                grant = None if reception.done else reception.next_grant(self.now)
            whole.append(update_in(e.Send(topic(Kind.UPDATE), reception.data())))
        return whole

    def _perform(self, effect: e.Effect) -> e.Event | None:
        if isinstance(effect, get_args(e.Durable)):
            if self.disk_full and not isinstance(effect, e.KeepObjects):
                return e.DiskFull(effect)
            self._keep(effect)
            return e.Saved(effect)
        match effect:
            case e.Load(sha256, or_size):
                data = self.objects.get(sha256)
                others = [o for o in self.objects.values() if len(o) == or_size] if data is None else []
                return e.Loaded(sha256, data, others[0] if others else None)
            case e.ReadExamples(task) if isinstance(self.examples, int):
                return e.ExamplesRead(task, self.examples)
            case e.ReadExamples(task):
                return e.ExamplesMissing(task, str(self.examples))
            case e.ReadLog(cid, lines):
                return e.LogRead(cid, tuple(f"line {n}" for n in range(lines)))
            case e.EraseExamples(cid):
                return e.ExamplesErased(cid, self.examples if isinstance(self.examples, int) else 0)
            case e.Measure():
                return e.Measured(self.reading)
            case e.KeepRelease(sha256, fleet_key, data) if self.releases:
                return self.releases.keep(sha256, fleet_key, data)
            case e.SpoolRelease(sha256) if self.releases:
                return self.releases.spool(sha256)
            case e.LookForReport(sha256) if self.releases:
                return self.releases.look(sha256)
            case e.KeepRelease(sha256):
                return e.ReleaseKept(sha256, code=Code.COMMAND, why="no updater")
        return None

    def _keep(self, effect: e.Durable) -> None:
        r = self.restored
        pending, residuals = {p.task: p for p in r.pending}, dict(r.residuals)
        trained, counters, seq, spent = dict(r.trained), dict(r.counters), r.seq, r.spent
        commands, paused, configured = {c.cid: c for c in r.commands}, r.paused, r.configured
        followed = r.followed
        match effect:
            case e.SaveUpdate(update):
                pending[update.task], trained[update.task], seq = update, update.base_version, update.seq
            case e.Settle(update, result, name):
                row = pending.pop(update.task)
                residual = row.if_accepted if result.verdict == "accepted" else row.if_refused
                residuals[update.task] = e.LocalVector(row.fingerprint, residual, row.origin)
                counters[name] = result.counter
            case e.Forget(task):
                for table in (pending, residuals, trained):
                    table.pop(task, None)
            case e.SaveCounter(name, counter):
                counters[name] = counter
            case e.SaveFleetKey(first, key):
                followed = first, key
            case e.SaveSpent(now_spent):
                spent = now_spent
            case e.SaveCommand(command):
                commands[command.cid] = command
            case e.ForgetCommand(cid):
                commands.pop(cid, None)
            case e.SavePaused(now_paused):
                paused = now_paused
            case e.SaveConfigured(now_configured):
                configured = now_configured
            case e.SaveObject(sha256, data):
                self.objects[sha256] = data
            case e.KeepObjects(sha256s):
                self.objects = {k: v for k, v in self.objects.items() if k in sha256s}
        self.restored = e.Restored(
            r.boot,
            r.incarnation,
            seq,
            counters,
            trained,
            tuple(pending.values()),
            residuals,
            r.personal,
            spent,
            tuple(commands.values()),
            paused,
            configured,
            followed,
        )


def chunks_of(data: bytes, chunk_size: int = 16384) -> list[Chunk]:
    """An object in chunks."""
    outgoing = Outgoing(data, chunk_size)
    return [outgoing.chunk(i) for i in range(outgoing.count)]


def all_of(kind: type[E], effects: list[e.Effect]) -> list[E]:
    """The effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def the(kind: type[E], effects: list[e.Effect]) -> E:
    """The one effect of a kind."""
    (effect,) = all_of(kind, effects)
    return effect


def sent(kind: Kind, effects: list[e.Effect], **ids: str) -> list[e.Send]:
    """What was published on a topic."""
    return [send for send in all_of(e.Send, effects) if send.topic == topic(kind, **ids)]


def update_in(send: e.Send) -> Update:
    """An update as the gateway reads it, its signature verified."""
    assert isinstance(send.message, bytes)
    envelope = decode_as(Envelope, send.message)
    return unseal_update(envelope, DEVICE_KEY.public, FLEET, topic(Kind.UPDATE))


def updates(effects: list[e.Effect]) -> list[Update]:
    """All updates that were published."""
    return [update_in(send) for send in sent(Kind.UPDATE, effects)]


def states(effects: list[e.Effect]) -> list[DeviceState]:
    """All states that were published."""
    return [send.message for send in sent(Kind.STATE, effects) if isinstance(send.message, DeviceState)]


def complaints(effects: list[e.Effect]) -> list[DeviceEvent]:
    """All events that were published."""
    return [send.message for send in sent(Kind.EVENT, effects) if isinstance(send.message, DeviceEvent)]
