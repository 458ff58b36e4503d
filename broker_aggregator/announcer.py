"""What the gateway puts up for all to read: plans, manifests, versions, everyone's tasks, and pages for people."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from broker_aggregator.commanding import Commanding
from broker_aggregator.events import Clear, Effect, Release, Send, SendObject
from broker_aggregator.fleet import Fleet
from broker_aggregator.slots import Lease
from broker_aggregator.task import Task
from fl_protocol.deltas import downlink_step
from fl_protocol.messages import Desired, Manifest, Message, Slot, TaskStatus
from fl_protocol.topics import Kind, Topic
from fl_protocol.transfer import chunk_size_for

STATUS_EVERY_S = 1.0
STABLE, CANARY = "stable", "canary"  # channels of manifests


@dataclass
class Announcer:
    """Messages of one fleet's gateway, each with its topic. `chunk_size` follows the broker's limits."""

    fleet_name: str
    commanding: Commanding = field(default_factory=Commanding)
    chunk_size: int = chunk_size_for("3.1.1", 65536)
    _said: dict[str, tuple[float, TaskStatus]] = field(default_factory=dict)  # task -> when, and the last status
    _trying: dict[str, tuple[str, ...]] = field(default_factory=dict)  # whom it told that they try versions, of what

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
        return self._manifest(task.release, STABLE)

    def canary(self, task: Task) -> Iterator[Send]:
        """The version that a few devices try, retained. It is not broadcast: they ask for it."""
        if task.canary is not None:
            yield self._manifest(task.canary, CANARY)

    def no_canary(self, task: Task) -> Clear:
        """Nothing is to be tried."""
        return Clear(self.topic(Kind.MANIFEST, task=task.plan.task, channel=CANARY))

    def _manifest(self, release: Release, channel: str) -> Send:
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
        return Send(self.topic(Kind.MANIFEST, task=release.task, channel=channel), manifest, retain=True)

    def slot(self, task: Task, lease: Lease) -> Send:
        """An invitation; its device counts the seconds from when it hears it."""
        lasts = round(lease.ends_at - lease.given_at)
        name = task.plan.task
        slot = Slot(task=name, slot=lease.slot, version=lease.version, expires_in_s=lasts, why=lease.why)
        return self.to(lease.device, Kind.SLOT, slot)

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

    def desired(self, device: str, tasks: Mapping[str, Task]) -> Send:
        """A device's tasks, those whose canary it is, its open commands and its configuration; retained."""
        trying = tuple(name for name, task in sorted(tasks.items()) if device in task.tried_by)
        if trying:
            self._trying[device] = trying
        else:
            self._trying.pop(device, None)
        wanted = self.commanding.configuration_of(device)
        desired = Desired(
            tasks=tuple(sorted(tasks)),
            canary=trying or None,
            commands=self.commanding.open_of(device) or None,
            configuration=wanted.settings if wanted else None,
            revision=wanted.revision if wanted else None,
        )
        return Send(self.topic(Kind.DESIRED, device=device), desired, retain=True)

    def canaries(self, tasks: Mapping[str, Task], fleet: Fleet) -> Iterator[Send]:
        """Tell those who begin to try a version, or no longer do."""
        now: dict[str, list[str]] = {device: [] for device in self._trying}
        for name, task in sorted(tasks.items()):
            for device in task.tried_by:
                now.setdefault(device, []).append(name)
        for device, trying in sorted(now.items()):
            known = fleet.devices.get(device)
            if known and not known.revoked and tuple(trying) != self._trying.get(device, ()):
                yield self.desired(device, tasks)

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
