"""What the gateway puts up for all to read: plans, manifests, versions, everyone's tasks, and pages for people."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from broker_aggregator.events import Effect, Send, SendObject
from broker_aggregator.fleet import Fleet
from broker_aggregator.task import Task
from fl_protocol.deltas import downlink_step
from fl_protocol.messages import Desired, Manifest, Message, TaskStatus
from fl_protocol.topics import Kind, Topic
from fl_protocol.transfer import chunk_size_for

STATUS_EVERY_S = 1.0


@dataclass
class Announcer:
    """Messages of one fleet's gateway, each with its topic. `chunk_size` follows the broker's limits."""

    fleet_name: str
    chunk_size: int = chunk_size_for("3.1.1", 65536)
    _said: dict[str, tuple[float, TaskStatus]] = field(default_factory=dict)  # task -> when, and the last status

    def topic(self, kind: Kind, **ids: str) -> Topic:
        """A topic of this fleet."""
        return Topic(kind, self.fleet_name, **ids)

    def to(self, device: str, kind: Kind, message: Message) -> Send:
        """A message to one device."""
        return Send(self.topic(kind, device=device), message)

    def plan(self, task: Task) -> Send:
        """The task's plan, retained."""
        return Send(self.topic(Kind.PLAN, task=task.plan.task), task.plan, retain=True)

    def manifest(self, task: Task) -> Send:
        """The task's current version, retained."""
        release = task.release
        manifest = Manifest(
            task=release.task,
            plan_revision=release.plan_revision,
            version=release.version,
            fingerprint=release.fingerprint,
            sha256=release.sha256,
            size=release.vector.nbytes,
            chunk_size=self.chunk_size,
            delta=hashlib.sha256(release.delta).hexdigest() if release.delta else None,
            delta_size=len(release.delta) if release.delta else None,
        )
        return Send(self.topic(Kind.MANIFEST, task=release.task, channel="stable"), manifest, retain=True)

    def release(self, task: Task) -> Iterator[Effect]:
        """The manifest, then once for all who listen what is new; all of it, where versions are published whole."""
        manifest, release = self.manifest(task), task.release
        yield manifest
        topic = self.topic(Kind.BROADCAST, task=task.plan.task, version=str(release.version))
        if release.delta is not None:
            sha256 = hashlib.sha256(release.delta).hexdigest()
            yield SendObject(topic, sha256, self.chunk_size, data=release.delta)
        elif downlink_step(task.plan.downlink or {}) is None:
            yield SendObject(topic, release.sha256, self.chunk_size)

    def desired(self, device: str, tasks: Iterable[str]) -> Send:
        """A device's tasks, retained."""
        return Send(self.topic(Kind.DESIRED, device=device), Desired(tasks=tuple(sorted(tasks))), retain=True)

    def status(self, task: Task, fleet: Fleet, now: float) -> Iterator[Effect]:
        """The page that people watch, retained: when it has changed, once a second, at once with the task's state."""
        at, last = self._said.get(task.plan.task, (-STATUS_EVERY_S, None))
        if last is not None and last.state == task.plan.state and now - at < STATUS_EVERY_S:
            return
        status = task.status(len(fleet.devices), fleet.num_active)
        if status != last:
            self._said[task.plan.task] = (now, status)
            yield Send(self.topic(Kind.STATUS, task=task.plan.task), status, retain=True)

    def forget(self, task: str) -> None:
        """Say the next status whatever was said before."""
        self._said.pop(task, None)
