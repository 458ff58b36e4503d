"""One task's way in: from the gateway's signed words to a verified bundle and a verified version of its model.

The plan names a bundle, the manifest names a version; both are objects named by their SHA-256. Nothing is used before
its hash and its content have been checked, and what is checked is used at once or not at all.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from edge_agent.download import Arrived, Download, Held, Target
from edge_agent.events import Effect, Load, Note, SaveObject, Send, Subscribe, Unsubscribe
from edge_agent.identity import Identity
from edge_agent.training import WorkOrder
from fl_protocol.bundle import MAX_BUNDLE_BYTES, Bundle
from fl_protocol.compression.pipeline import Compressor, make_compressor
from fl_protocol.deltas import apply_delta, decode_keyframe
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import Chunk, Delta, Manifest, Plan, Want
from fl_protocol.tensors import ModelLayout, Vector, vector_bytes
from fl_protocol.topics import Kind
from fl_protocol.transfer import Parts
from fl_protocol.transport import Limits

ReadBundle = Callable[[bytes, str], Bundle]  # bytes and the SHA-256 that they should have; raises ProtocolError

BROADCAST_WAIT_S = (1.0, 2.0)  # a new version is broadcast to all; what was not heard by then is asked for


@dataclass(frozen=True)
class Model:
    """A verified version; `vector` has shape (layout.size,). Its number is -1 where only the disk has kept it."""

    version: int
    sha256: str
    vector: Vector


@dataclass(frozen=True)
class Work:
    """A plan that makes sense for its bundle."""

    plan: Plan
    bundle: Bundle
    order: WorkOrder
    compressor: Compressor
    clip_norm: float | None


def prepare_work(plan: Plan, bundle: Bundle) -> Work:
    """Read a plan's decimals and codec against its bundle. Raises `ProtocolError(E_FINGERPRINT | E_SCHEMA)`."""
    if plan.fingerprint != bundle.layout.fingerprint:
        raise ProtocolError(
            Code.FINGERPRINT, f"the plan says {plan.fingerprint}, its bundle {bundle.layout.fingerprint}"
        )
    unknown = sorted(set(plan.hyper) - set(bundle.hyper))
    if unknown:
        raise ProtocolError(Code.SCHEMA, f"the plan sets {unknown[0]!r:.80}, which the bundle does not have")
    hyper = {**bundle.hyper, **{name: _decimal(name, text) for name, text in plan.hyper.items()}}
    order = WorkOrder(plan.batch_size, plan.local_epochs, plan.max_local_steps, hyper)
    clip_norm = _decimal("clip_norm", plan.clip_norm) if plan.clip_norm else None
    if clip_norm is not None and clip_norm <= 0:
        raise ProtocolError(Code.SCHEMA, f"the plan's clip_norm is {plan.clip_norm}; it is above 0, or empty")
    return Work(plan, bundle, order, make_compressor(plan.codec, bundle.layout), clip_norm)


def _decimal(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) <= np.finfo(np.float32).max:
        raise ProtocolError(Code.SCHEMA, f"the plan's {name} is {text!r:.40}, not a decimal")
    return value


class Intake:
    """What is known of one task, and held for it."""

    def __init__(
        self, task: str, identity: Identity, read_bundle: ReadBundle = Bundle.read, parts: Parts | None = None
    ) -> None:
        self.task, self._identity, self._read_bundle, self._parts = task, identity, read_bundle, parts
        self.plan: Plan | None = None
        self.manifest: Manifest | None = None
        self.bundle: Bundle | None = None
        self.work: Work | None = None
        self.model: Model | None = None
        self._kept: Model | None = None  # what the disk had from before this start, for deltas to begin from
        self._initial = ""  # SHA-256 of the bundle's own parameters as a version
        self.refused = ""  # why the last object that came whole is not used
        self.gateway_here = True  # as far as is known
        self.hungry = True  # versions are wanted as they come: the device is not training, or it predicts
        self.room: int | None = None  # bytes for what begins now; None: any; below 0: nothing goes on
        self._announced: Manifest | None = None  # the manifest, if it fits
        self._hears: dict[Kind, int] = {}  # what is subscribed to of versions, with its QoS
        self._tries = False  # versions that are not yet the fleet's, too
        self._tried = -1  # the newest of those that was announced here
        self._broadcast_follows = False
        self._complaints: list[ProtocolError] = []
        self._download: Download | None = None

    def follow(self) -> list[Effect]:
        """Hear what is said of the task, on a new connection or for the first time.

        Manifests at QoS 0: the newest is retained, and comes with the subscription. At QoS 1 a broker would keep each
        that a device has slept through, and send it all of them first (docs/decisions/0016).
        """
        self._hears = {Kind.MANIFEST: 0}
        if self._download is not None:
            self._download.resume()
        return [Subscribe(((self._topic(Kind.PLAN), 1), *((topic, 0) for topic in self._topics(Kind.MANIFEST))))]

    def try_canary(self, wanted: bool) -> list[Effect]:
        """Follow the canary's channel beside the fleet's, or no longer; of both, the newer version counts."""
        if wanted == self._tries:
            return []
        self._tries, canary = wanted, self._topic(Kind.MANIFEST, "canary")
        if Kind.MANIFEST not in self._hears:
            return []
        return [Subscribe(((canary, 0),)) if wanted else Unsubscribe((canary,))]

    def ask_again(self, at: float) -> None:
        """The gateway's connection is a new one: what was asked of it, and was on its way, is lost."""
        if self._download is not None:
            self._download.resume(at)

    def leave(self) -> list[Effect]:
        """Hear no more of it."""
        self._hears = {}
        manifests = self._topics(Kind.MANIFEST)
        return [Unsubscribe((self._topic(Kind.PLAN), *manifests, self._topic(Kind.BROADCAST)))]

    def take_plan(self, plan: Plan) -> None:
        """A new plan. Raises `ProtocolError(E_SIZE)` for a bundle that no device reads."""
        if plan.bundle_size > MAX_BUNDLE_BYTES:
            raise ProtocolError(Code.SIZE, f"a bundle of {plan.bundle_size} bytes; at most {MAX_BUNDLE_BYTES} are read")
        self.plan = plan
        self._review()

    def take_manifest(self, manifest: Manifest, *, fresh: bool, channel: str = "stable") -> None:
        """A version is announced. `fresh`: just now, so that its broadcast follows; the canary's has none.

        What the fleet has may be behind what was tried here, and what is to be tried behind what the fleet has: neither
        is news. Raises `ProtocolError(E_DOWNGRADE)` for a version below the one that is here.
        """
        if channel == "canary":
            if not self._tries or (self.manifest and manifest.version < self.manifest.version):
                return
            self._tried, fresh = manifest.version, False
        elif manifest.version < self._tried:
            return
        if self.model is not None and manifest.version < self.model.version:
            raise ProtocolError(
                Code.DOWNGRADE, f"version {manifest.version} after {self.model.version}; they only grow"
            )
        self.manifest, self._broadcast_follows = manifest, fresh and Kind.BROADCAST in self._hears
        self._review()

    def take_complaints(self) -> list[ProtocolError]:
        """What is wrong with plan or manifest, or stands in the way of what they name, once."""
        complaints, self._complaints = self._complaints, []
        complaints += self._download.take_complaints() if self._download else []
        return complaints

    @property
    def wanted(self) -> frozenset[str]:
        """The objects that the disk should keep for this task."""
        named = (self.plan and self.plan.bundle_sha256, self.manifest and self.manifest.sha256)
        held = (self.bundle and self.bundle.sha256, self.model and self.model.sha256)
        fetching = self._download and self._download.fetching
        return frozenset(sha256 for sha256 in (*named, *held, fetching) if sha256)

    @property
    def lacks(self) -> int:
        """Bytes of an object that waits for room: the one that is to be fetched, or the next that is broadcast."""
        return self._download.lacks if self._download and self._download.lacks else self.unheard

    @property
    def unheard(self) -> int:
        """Bytes of the next broadcast, which is guessed to be like the last, if there is no room to hear it."""
        if self.room is None or (self.room >= 0 and self.promised):
            return 0
        size = (self._announced.delta_size or self._announced.size) if self._announced else 1
        return 0 if size <= self.room else size

    @property
    def promised(self) -> int:
        """Bytes of an object that is on its way because there was room for it."""
        return self._download.promised if self._download else 0

    @property
    def wake_at(self) -> float:
        """When `next` has something to do, if nothing happens before."""
        return self._download.wake_at if self._download else float("inf")

    def next(self, now: float, link: Limits | None, rng: Generator) -> list[Effect]:
        """What is due: look on the disk for what is wanted, or ask the gateway for its chunks.

        `rng` spreads what a whole fleet asks for when a broadcast was lost.
        """
        effects = self._listen() if link else []
        target, download = self._target(), self._download
        if target is None:
            self._download = None
        elif download is None or (download.target != target and not self._finishes(download, now)):
            next_one = bool(target.delta and self.model and self.model.version == target.version - 1)
            waits = target.kind == "version" and self._broadcast_follows and (next_one or not target.asks)
            self._download = Download(target, now + rng.uniform(*BROADCAST_WAIT_S) * waits, self.room, self._parts)
            search = target.asks and self.model is None and self._kept is None
            effects.append(Load(target.sha256, target.size if search else 0))
        elif link is not None and (word := download.next(now, link, self.room, gateway_here=self.gateway_here)):
            effects.append(Send(self._topic(Kind.WANT if isinstance(word, Want) else Kind.GET), word))
        return effects

    def loaded(self, sha256: str, data: bytes | None, other: bytes | None = None) -> list[Effect]:
        """An object as the disk has it; a damaged one is fetched like a missing one.

        `other`: one of the same size in its stead, probably an earlier version; a delta may begin from it.
        """
        download = self._download
        if download is None or download.target.sha256 != sha256:
            return []
        if other is not None:
            self._kept = _keep(other)
        base = self._base
        download.not_on_disk(Held(base.version, base.sha256) if base else None)
        if data is not None:
            try:
                self._accept(download.target, Arrived("whole", data))
            except ProtocolError as error:
                return [Note("warning", f"{self.task}: the stored {download.target.kind} is damaged: {error}")]
        return []

    def heard(self, chunk: Chunk, now: float, link: Limits) -> list[Effect]:
        """A chunk, broadcast or asked for. Raises `ProtocolError` for a bad one, or a bad object once it is whole."""
        download = self._download
        return self._arrived(download, download.heard(chunk, now, link), now) if download else []

    def answered(self, delta: Delta, now: float) -> list[Effect]:
        """The gateway's answer to a `Want`. Raises `ProtocolError` for one of no use."""
        download = self._download
        return self._arrived(download, download.answered(delta, now), now) if download else []

    def _arrived(self, download: Download, arrived: Arrived | None, now: float) -> list[Effect]:
        if arrived is None:
            return []
        try:
            data = self._accept(download.target, arrived)
        except ProtocolError as error:
            download.failed(now)
            self.refused = f"the {download.target.kind} is refused: {error}"
            raise
        self.refused = ""
        return [SaveObject(download.target.sha256, data)]

    def _listen(self) -> list[Effect]:
        """Hear manifests and the broadcast exactly while versions are wanted; the newest manifest is retained."""
        wanted = {Kind.MANIFEST: 0} if self.hungry or self.model is None else {}
        if self.hungry and self.plan is not None:
            wanted[Kind.BROADCAST] = 0
        new = tuple((t, qos) for kind, qos in wanted.items() if kind not in self._hears for t in self._topics(kind))
        old = tuple(t for kind in self._hears if kind not in wanted for t in self._topics(kind))
        self._hears = wanted
        return [*([Subscribe(new)] if new else []), *([Unsubscribe(old)] if old else [])]

    def _topic(self, kind: Kind, channel: str = "stable") -> str:
        return self._identity.topic(kind, task=self.task, channel=channel, version="+")

    def _topics(self, kind: Kind) -> tuple[str, ...]:
        both = kind is Kind.MANIFEST and self._tries
        return (self._topic(kind), self._topic(kind, "canary")) if both else (self._topic(kind),)

    def _target(self) -> Target | None:
        """What is wanted next."""
        plan, bundle, announced, model = self.plan, self.bundle, self._announced, self.model
        if plan is None:
            return None
        if bundle is None or bundle.sha256 != plan.bundle_sha256:
            return Target("bundle", plan.bundle_sha256, plan.bundle_size)
        if announced is None or (model and model.version >= announced.version) or not (self.hungry or model is None):
            return None
        return Target(
            "version",
            announced.sha256,
            announced.size,
            announced.chunk_size,
            announced.version,
            delta=announced.delta or "",
            delta_size=announced.delta_size or 0,
            asks=(plan.downlink or {}).get("name", "none") != "none",
            task=self.task,
        )

    def _finishes(self, download: Download, now: float) -> bool:
        """A version on its way is finished though a newer one is announced; a slow link would never end one else."""
        return self.work is not None and download.target.kind == "version" and download.moving(now)

    def _accept(self, target: Target, arrived: Arrived) -> bytes:
        """Check an object, then swap it in; the target's own bytes. Raises `ProtocolError`, and nothing has changed."""
        data = arrived.data
        if target.kind == "bundle":
            bundle = self._read_bundle(data, target.sha256)
            if self.bundle is None or bundle.layout != self.bundle.layout:
                self.model = self._kept = None
            self.bundle, self._initial = bundle, hashlib.sha256(vector_bytes(bundle.initial)).hexdigest()
            self._review()
        else:
            if arrived.form != "whole" and self.bundle:
                data = self._reconstructed(self.bundle.layout, arrived)
            self.model = Model(target.version, target.sha256, _read_version(target.sha256, data))
            self._kept = None
        self._download = None
        return data

    @property
    def _base(self) -> Model | None:
        """What a delta may begin from; at first the bundle's own parameters, which the task began with, too."""
        own = Model(-1, self._initial, self.bundle.initial) if self.bundle else None
        return self.model or self._kept or own

    def _reconstructed(self, layout: ModelLayout, arrived: Arrived) -> bytes:
        base = self._base
        if arrived.form == "keyframe":
            return vector_bytes(decode_keyframe(layout, arrived.data))
        if base is None or base.vector.size != layout.size:
            raise ProtocolError(Code.SHA, "a delta from a version that is not here")
        return vector_bytes(apply_delta(layout, base.vector, arrived.data))

    def _review(self) -> None:
        """See what fits together, after something has changed."""
        plan, bundle = self.plan, self.bundle
        self.work = self._announced = None
        if plan is None or bundle is None or bundle.sha256 != plan.bundle_sha256:
            return
        try:
            self.work = prepare_work(plan, bundle)
            self._announced = _check_manifest(self.manifest, plan, bundle)
        except ProtocolError as error:
            self._complaints.append(error)
            return
        announced, model = self._announced, self.model
        if announced is None or (model and model.version >= announced.version):
            return
        if model and model.sha256 == announced.sha256:
            self.model = replace(model, version=announced.version)  # the same once more
        elif announced.sha256 == self._initial:
            self.model = Model(announced.version, announced.sha256, bundle.initial)  # it came with the bundle


def _check_manifest(manifest: Manifest | None, plan: Plan, bundle: Bundle) -> Manifest | None:
    """The manifest, if it is of this bundle's model. Raises `ProtocolError(E_FINGERPRINT | E_SIZE)`."""
    if manifest is None:
        return None
    if manifest.fingerprint != bundle.layout.fingerprint:
        if manifest.plan_revision != plan.revision:
            return None  # plan and manifest change one after the other; the right one follows
        raise ProtocolError(Code.FINGERPRINT, f"version {manifest.version} is not of the plan's bundle")
    if manifest.size != 4 * bundle.layout.size:
        raise ProtocolError(Code.SIZE, f"version {manifest.version} has {manifest.size} bytes")
    return manifest


def _keep(data: bytes) -> Model | None:
    """What the disk kept as a version of no known number; None where it is not sound."""
    try:
        sha256 = hashlib.sha256(data).hexdigest()
        return Model(-1, sha256, _read_version(sha256, data))
    except (ProtocolError, ValueError):
        return None


def _read_version(sha256: str, data: bytes) -> Vector:
    """A version's float32 vector. Raises `ProtocolError(E_SHA | E_NAN)`."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ProtocolError(Code.SHA, f"the version's SHA-256 is not {sha256}")
    vector = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    if not np.isfinite(vector).all():
        raise ProtocolError(Code.NAN, "the version is not finite")
    return vector
