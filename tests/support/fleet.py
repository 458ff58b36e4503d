"""Devices as a coordinator sees them: a tiny model, keys, and updates that can be bent in every way."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from broker_aggregator.coordinator import Coordinator
from broker_aggregator.events import Asked, Effect, Event, Received, Send
from broker_aggregator.fleet import Device
from fl_protocol.bundle import Bundle
from fl_protocol.codec import decode_as, from_plain, to_plain
from fl_protocol.compression import encode_statistics, make_compressor
from fl_protocol.messages import Answer, Ask, DeviceState, Envelope, Result, StateName, Update
from fl_protocol.signing import SigningKey, seal_update
from fl_protocol.tensors import ModelLayout, TensorEntry
from fl_protocol.topics import Kind, build

FLEET = "demo"
LAYOUT = ModelLayout((TensorEntry("w", (3,), "parameter"), TensorEntry("range", (2,), "statistic")))
INITIAL = np.array([1, 2, 3, 0.5, 1.5], np.float32)


def tiny_bundle(layout: ModelLayout = LAYOUT, name: str = "tiny") -> Bundle:
    """A bundle without graphs: the coordinator never looks at those."""
    return Bundle(
        sha256=hashlib.sha256(name.encode()).hexdigest(),
        name=name,
        description="",
        licence="",
        layout=layout,
        x_shape=(2,),
        x_dtype="float32",
        y_shape=(),
        y_dtype="int64",
        labels=("a", "b"),
        metric="accuracy",
        hyper={"learning_rate": 0.1},
        batch_size=4,
        graphs={},
        initial=np.resize(INITIAL, layout.size),
    )


def key_of(device: str) -> SigningKey:
    """A device's key; the same for the same name."""
    return SigningKey(hashlib.sha256(device.encode()).digest())


def make_update(device: str, seq: int, base_version: int, delta: Iterable[float], **changes: Any) -> Update:
    """A sound update of the tiny model, but for `changes`; its SHA-256 fits unless that is changed."""
    codec = changes.pop("codec", {"name": "none"})
    payload = changes.pop("payload", None)
    if payload is None:
        vector = np.array(list(delta), np.float32)
        payload = make_compressor(codec, LAYOUT).compress(vector, np.random.default_rng(0))
    statistics = changes.pop("statistics", encode_statistics(np.array([0.5, 1.5], np.float32)))
    update = Update(
        device=device,
        incarnation="0" * 16,
        seq=seq,
        task="fan",
        plan_revision=1,
        base_version=base_version,
        fingerprint=LAYOUT.fingerprint,
        num_examples=100,
        local_steps=5,
        codec=codec,
        payload=payload,
        statistics=statistics,
        sha256=hashlib.sha256(payload + statistics).hexdigest(),
    )
    return replace(update, **changes)


@dataclass
class Gateway:
    """A coordinator with a clock to turn and every effect it ever had."""

    coordinator: Coordinator = field(default_factory=lambda: Coordinator(FLEET))
    now: float = 0.0
    effects: list[Effect] = field(default_factory=list)
    counter: int = 0
    words: int = 0

    def add(self, *devices: str) -> "Gateway":
        """Let devices in."""
        for name in devices:
            self.coordinator.fleet.devices[name] = Device(name, key_of(name).public)
        return self

    def handle(self, event: Event) -> list[Effect]:
        """One event; its effects."""
        effects = list(self.coordinator.handle(event, self.now))
        self.effects.extend(effects)
        return effects

    def ask(self, name: str, bundle: Bundle | None = None, **arguments: object) -> Answer:
        """An operator's command and its answer."""
        self.counter += 1
        if bundle:
            arguments.setdefault("bundle_size", 1000)
        effects = self.handle(
            Asked(Ask(name=name, arguments=arguments, counter=self.counter), f"c{self.counter}", bundle)
        )
        return next(e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Answer))

    def start(self, **plan: object) -> "Gateway":
        """A running task `fan` of the tiny model, published whole unless told otherwise: sums can then be checked."""
        plan = {"downlink": {"name": "none"}, **plan}
        assert self.ask("task-create", tiny_bundle(), task="fan", plan=plan).status == "successful"
        assert self.ask("task-start", task="fan").status == "successful"
        return self

    def come(self, *devices: str, state: StateName = "ready") -> "Gateway":
        """Devices say that they are there; or not."""
        for name in devices:
            self.words += 1
            self.handle(Received(name, DeviceState(state=state, boot=1, bseq=1, n=self.words)))
        return self

    def send(self, update: Update, key: SigningKey | None = None, device: str = "") -> list[Effect]:
        """An update over the wire, in its envelope, on its device's topic."""
        device = device or update.device
        topic = build(Kind.UPDATE, FLEET, device=device)
        payload = seal_update(update, key or key_of(device), FLEET, topic)
        return self.handle(Received(device, decode_as(Envelope, payload), len(payload)))

    def verdict(self, update: Update, **how: Any) -> Result:
        """The one result that answers an update."""
        (result,) = results(self.send(update, **how))
        return result

    @property
    def task(self):
        """The task `fan`."""
        return self.coordinator.tasks["fan"]


def results(effects: Iterable[Effect]) -> list[Result]:
    """The results among effects."""
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Result)]


def of_kind(effects: Iterable[Effect], *kinds: type) -> list[Any]:
    """Effects of some kinds, in order."""
    return [e for e in effects if isinstance(e, kinds)]


def changed(message: Any, **fields: object) -> Any:
    """A message with fields changed past its own checks' reach."""
    plain: Mapping[str, Any] = {**to_plain(message), **fields}
    return from_plain(type(message), plain)
