"""A gateway of a few lines over any transport: it publishes a task, serves its objects and answers every update."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fl_protocol.bundle import Bundle
from fl_protocol.codec import decode, decode_as, encode
from fl_protocol.compression.pipeline import make_compressor
from fl_protocol.messages import (
    Chunk,
    Desired,
    DeviceEvent,
    DeviceInfo,
    DeviceState,
    Envelope,
    GatewayState,
    Get,
    Health,
    Manifest,
    Message,
    Offer,
    Plan,
    Prediction,
    Result,
    Signed,
    Update,
)
from fl_protocol.signing import SigningKey, seal, unseal_update, verify_offer
from fl_protocol.tensors import Vector
from fl_protocol.topics import Kind, below, build, parse
from fl_protocol.transfer import Inbox, Outgoing
from fl_protocol.transport import Connected, Delivery, Transport

CHUNK = 16384
Judge = Callable[[Update, int], str]  # an update, and how often it came before -> its verdict


def accept(update: Update, repeats: int) -> str:
    """The verdict of a gateway that takes everything."""
    return "accepted"


@dataclass
class ScriptedGateway:
    """Adds each accepted delta to the model and releases it. `heard` is every message, by kind, with its device."""

    transport: Transport
    bundle_bytes: bytes
    key: SigningKey
    fleet: str
    devices: dict[str, str]  # id -> public key
    judge: Judge = accept
    codec: dict[str, str] = field(default_factory=lambda: {"name": "uq", "step": "1.0"})
    plan_fields: dict[str, Any] = field(default_factory=dict)
    max_versions: int = 1000
    now: float = 0.0

    def __post_init__(self) -> None:
        self.bundle = Bundle.read(self.bundle_bytes)
        self.vector: Vector = self.bundle.initial + np.float32(1 / 64)
        self.version = 0
        self.objects = {self.bundle.sha256: self.bundle_bytes}
        self.heard: list[tuple[str, Message]] = []
        self.updates: list[Update] = []
        self.accepted: list[tuple[str, str, int]] = []
        self._seen: dict[tuple[str, str, int], int] = {}
        self._verdicts: dict[tuple[str, str, int], Result] = {}
        self._counters: dict[str, int] = {}
        self._inbox = Inbox(1 << 26, 600)
        self.transport.start()

    def step(self) -> None:
        """See to what has come."""
        for event in self.transport.receive(0.0):
            if isinstance(event, Connected):
                self.transport.subscribe([(below(self.fleet, "dev"), 1)])
                self.publish()
            if isinstance(event, Delivery):
                self._take(event)
                if event.receipt:
                    self.transport.acknowledge(event.receipt)

    def publish(self) -> None:
        """Everything retained."""
        self._say(Kind.GATEWAY, GatewayState(state="ready", boot=1, bseq=1), retain=True)
        plan = Plan(
            task="t",
            revision=1,
            state="running",
            bundle_sha256=self.bundle.sha256,
            bundle_size=len(self.bundle_bytes),
            fingerprint=self.bundle.layout.fingerprint,
            codec=self.codec,
            **self.plan_fields,
        )
        self._say(Kind.PLAN, plan, retain=True)
        for device in self.devices:
            self._say(Kind.DESIRED, Desired(tasks=("t",)), retain=True, device=device)
        self.release()

    def release(self) -> None:
        """Announce the vector as it is, and broadcast it."""
        blob = self.vector.astype("<f4").tobytes()
        sha256 = hashlib.sha256(blob).hexdigest()
        self.objects[sha256] = blob
        manifest = Manifest(
            task="t",
            plan_revision=1,
            version=self.version,
            fingerprint=self.bundle.layout.fingerprint,
            sha256=sha256,
            size=len(blob),
            chunk_size=CHUNK,
        )
        self._say(Kind.MANIFEST, manifest, retain=True)
        outgoing = Outgoing(blob, CHUNK)
        for index in range(outgoing.count):
            self._say(Kind.BROADCAST, outgoing.chunk(index), qos=0)

    def of(self, kind: type[Message]) -> list[Message]:
        """All messages of a kind that devices have sent."""
        return [message for _, message in self.heard if isinstance(message, kind)]

    def _say(self, kind: Kind, message: Message, *, qos: int = 1, retain: bool = False, device: str = "none") -> None:
        ids = {"device": device, "task": "t", "channel": "stable", "version": str(self.version)}
        topic = build(kind, self.fleet, **ids)
        if isinstance(message, Signed):
            self._counters[topic] = self._counters.get(topic, 0) + 1
            payload = seal(replace(message, counter=self._counters[topic]), self.key, self.fleet, topic)
        else:
            payload = encode(message)
        self.transport.publish(topic, payload, qos=qos, retain=retain)

    def _take(self, delivery: Delivery) -> None:
        topic = parse(delivery.topic)
        if (
            topic.device not in self.devices
            or not delivery.payload
            or topic.kind in (Kind.DESIRED, Kind.RESULT, Kind.GRANT, Kind.CHUNK_DOWN)
        ):
            return
        message = decode(topic.kind, delivery.payload)
        self.heard.append((topic.device, message))
        match message:
            case DeviceState() | DeviceInfo() | DeviceEvent() | Health() | Prediction():
                pass
            case Envelope():
                self._update(message, topic.device)
            case Get(sha256=sha256) if sha256 in self.objects:
                outgoing = Outgoing(self.objects[sha256], message.chunk_size)
                for chunk in outgoing.chunks(message.missing, message.window):
                    self._say(Kind.CHUNK_DOWN, chunk, qos=0, device=topic.device)
            case Offer():
                verify_offer(message, self.devices[topic.device], self.fleet, delivery.topic)
                reception = self._inbox.open(message.sha256, message.size, message.chunk_size, topic.device, self.now)
                self._say(Kind.GRANT, reception.offered(self.now), device=topic.device)
            case Chunk():
                reception_or_none = self._inbox.get(topic.device, message.sha256)
                if reception_or_none is None:
                    return
                if reception_or_none.add(message, self.now):
                    self._update(decode_as(Envelope, reception_or_none.data()), topic.device)
                elif grant := reception_or_none.next_grant(self.now):
                    self._say(Kind.GRANT, grant, device=topic.device)

    def _update(self, envelope: Envelope, device: str) -> None:
        topic = build(Kind.UPDATE, self.fleet, device=device)
        update = unseal_update(envelope, self.devices[device], self.fleet, topic)
        assert update.device == device
        key = device, update.incarnation, update.seq
        repeats = self._seen[key] = self._seen.get(key, -1) + 1
        self.updates.append(update)
        result = self._verdicts.get(key)
        if result is None:
            verdict = self.judge(update, repeats)
            if verdict == "silence":
                return
            result = Result(
                task="t",
                incarnation=update.incarnation,
                seq=update.seq,
                verdict=verdict,
                retry_in_s=1,  # type: ignore[arg-type]
            )
            if result.final:
                self._verdicts[key] = result
        else:
            result = result.repeated()
        if result.verdict == "accepted" and not result.repeat:
            self.accepted.append(key)
            delta = make_compressor(update.codec, self.bundle.layout).decompress(update.payload)
            self.vector[: len(delta)] += delta.astype(np.float32)
        self._say(Kind.RESULT, result, device=device)
        if result.verdict == "accepted" and not result.repeat and self.version < self.max_versions:
            self.version += 1
            self.release()
