"""One task's way in: from the gateway's signed words to a verified bundle and a verified version of its model.

The plan names a bundle, the manifest names a version; both are objects named by their SHA-256. Nothing is used before
its hash and its content have been checked, and what is checked is used at once or not at all.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from edge_agent.download import Download, Target
from edge_agent.events import Effect, Load, Note, SaveObject, Send, Subscribe, Unsubscribe
from edge_agent.identity import Identity
from edge_agent.training import WorkOrder
from fl_protocol.bundle import MAX_BUNDLE_BYTES, Bundle
from fl_protocol.compression.pipeline import Compressor, make_compressor
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import Chunk, Manifest, Plan
from fl_protocol.tensors import Vector
from fl_protocol.topics import Kind
from fl_protocol.transport import Limits

ReadBundle = Callable[[bytes, str], Bundle]  # bytes and the SHA-256 that they should have; raises ProtocolError

BROADCAST_WAIT_S = (1.0, 2.0)  # a new version is broadcast to all; what was not heard by then is asked for


@dataclass(frozen=True)
class Model:
    """A verified version; `vector` has shape (layout.size,)."""

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

    def __init__(self, task: str, identity: Identity, read_bundle: ReadBundle = Bundle.read) -> None:
        self.task, self._identity, self._read_bundle = task, identity, read_bundle
        self.plan: Plan | None = None
        self.manifest: Manifest | None = None
        self.bundle: Bundle | None = None
        self.work: Work | None = None
        self.model: Model | None = None
        self.refused = ""  # why the last object that came whole is not used
        self.hungry = True  # versions are wanted as they come: the device is not training, or it predicts
        self._announced: Manifest | None = None  # the manifest, if it fits
        self._listening = False  # the broadcast of versions is heard
        self._broadcast_follows = False
        self._complaints: list[ProtocolError] = []
        self._download: Download | None = None

    def follow(self) -> list[Effect]:
        """Hear what is said of the task, on a new connection or for the first time.

        Manifests at QoS 0: the newest is retained, and comes with the subscription. At QoS 1 a broker would keep each
        that a device has slept through, and send it all of them first (docs/decisions/0016).
        """
        self._listening = False
        if self._download is not None:
            self._download.resume()
        return [Subscribe(((self._topic(Kind.PLAN), 1), (self._topic(Kind.MANIFEST), 0)))]

    def leave(self) -> list[Effect]:
        """Hear no more of it."""
        self._listening = False
        return [Unsubscribe(tuple(map(self._topic, (Kind.PLAN, Kind.MANIFEST, Kind.BROADCAST))))]

    def take_plan(self, plan: Plan) -> None:
        """A new plan. Raises `ProtocolError(E_SIZE)` for a bundle that no device reads."""
        if plan.bundle_size > MAX_BUNDLE_BYTES:
            raise ProtocolError(Code.SIZE, f"a bundle of {plan.bundle_size} bytes; at most {MAX_BUNDLE_BYTES} are read")
        self.plan = plan
        self._review()

    def take_manifest(self, manifest: Manifest, *, fresh: bool) -> None:
        """A version is announced. `fresh`: just now, so that its broadcast follows.

        Raises `ProtocolError(E_DOWNGRADE)` for a version below the one that is here.
        """
        if self.model is not None and manifest.version < self.model.version:
            raise ProtocolError(
                Code.DOWNGRADE, f"version {manifest.version} after {self.model.version}; they only grow"
            )
        self.manifest, self._broadcast_follows = manifest, fresh and self._listening
        self._review()

    def take_complaints(self) -> list[ProtocolError]:
        """What is wrong with plan or manifest, once."""
        complaints, self._complaints = self._complaints, []
        return complaints

    @property
    def wanted(self) -> frozenset[str]:
        """The objects that the disk should keep for this task."""
        named = (self.plan and self.plan.bundle_sha256, self.manifest and self.manifest.sha256)
        held = (self.bundle and self.bundle.sha256, self.model and self.model.sha256)
        return frozenset(sha256 for sha256 in named + held if sha256)

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
            waits = target.kind == "version" and self._broadcast_follows
            self._download = Download(target, now + rng.uniform(*BROADCAST_WAIT_S) * waits)
            effects.append(Load(target.sha256))
        elif link is not None and (get := download.next_get(now, link)):
            effects.append(Send(self._topic(Kind.GET), get))
        return effects

    def loaded(self, sha256: str, data: bytes | None) -> list[Effect]:
        """An object as the disk has it; a damaged one is fetched like a missing one."""
        download = self._download
        if download is None or download.target.sha256 != sha256:
            return []
        download.not_on_disk()
        if data is not None:
            try:
                self._accept(download.target, data)
            except ProtocolError as error:
                return [Note("warning", f"{self.task}: the stored {download.target.kind} is damaged: {error}")]
        return []

    def heard(self, chunk: Chunk, now: float, link: Limits) -> list[Effect]:
        """A chunk, broadcast or asked for. Raises `ProtocolError` for a bad one, or a bad object once it is whole."""
        download = self._download
        if download is None or download.target.sha256 != chunk.sha256:
            return []
        data = download.heard(chunk, now, link)
        if data is None:
            return []
        try:
            self._accept(download.target, data)
        except ProtocolError as error:
            download.failed(now)
            self.refused = f"the {download.target.kind} is refused: {error}"
            raise
        self.refused = ""
        return [SaveObject(chunk.sha256, data)]

    def _listen(self) -> list[Effect]:
        """Hear the broadcast exactly while versions are wanted."""
        wanted = self.hungry and self.plan is not None
        if wanted == self._listening:
            return []
        self._listening = wanted
        topic = self._topic(Kind.BROADCAST)
        return [Subscribe(((topic, 0),)) if wanted else Unsubscribe((topic,))]

    def _topic(self, kind: Kind) -> str:
        return self._identity.topic(kind, task=self.task, channel="stable", version="+")

    def _target(self) -> Target | None:
        """What is wanted next."""
        plan, bundle, announced, model = self.plan, self.bundle, self._announced, self.model
        if plan is None:
            return None
        if bundle is None or bundle.sha256 != plan.bundle_sha256:
            return Target("bundle", plan.bundle_sha256, plan.bundle_size)
        if announced is None or (model and model.version >= announced.version) or not (self.hungry or model is None):
            return None
        return Target("version", announced.sha256, announced.size, announced.chunk_size, announced.version)

    def _finishes(self, download: Download, now: float) -> bool:
        """A version on its way is finished though a newer one is announced; a slow link would never end one else."""
        return self.work is not None and download.target.kind == "version" and download.moving(now)

    def _accept(self, target: Target, data: bytes) -> None:
        """Check an object, then swap it in. Raises `ProtocolError`, and nothing has changed."""
        if target.kind == "bundle":
            bundle = self._read_bundle(data, target.sha256)
            if self.bundle is None or bundle.layout != self.bundle.layout:
                self.model = None
            self.bundle = bundle
            self._review()
        else:
            self.model = Model(target.version, target.sha256, _read_version(target.sha256, data))
        self._download = None

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


def _read_version(sha256: str, data: bytes) -> Vector:
    """A version's float32 vector. Raises `ProtocolError(E_SHA | E_NAN)`."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ProtocolError(Code.SHA, f"the version's SHA-256 is not {sha256}")
    vector = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    if not np.isfinite(vector).all():
        raise ProtocolError(Code.NAN, "the version is not finite")
    return vector
