"""One task as the device lives it: what came in, what is on its way out, and what it waits for."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeGuard

import numpy as np

from edge_agent.budget import Budget
from edge_agent.events import Effect, Forget, LocalVector, PendingUpdate, Restored
from edge_agent.identity import Identity
from edge_agent.intake import Intake, Model, ReadBundle, Work
from edge_agent.sending import Sending
from edge_agent.slots import Lease, Place
from fl_protocol.bundle import Bundle
from fl_protocol.messages import Desired, Result, StateName
from fl_protocol.tensors import Vector
from fl_protocol.transfer import Parts

FRESH_S = 60.0  # a device that trains and predicts fetches a newer version at most so often


@dataclass
class Task:
    """The state of a task that the device knows; `pending` is its one update in flight."""

    name: str
    intake: Intake
    desired: bool = False  # the gateway has named it since this start
    trained: int = -1  # the version last trained from
    pending: PendingUpdate | None = None
    sending: Sending | None = None  # once `pending` is on the disk
    residual: LocalVector | None = None
    personal: LocalVector | None = None
    num_examples: int = 0
    examples_for: str = ""  # the bundle whose examples were looked for
    examples_why: str = ""
    look_at: float = float("inf")  # when to look for examples again
    failures: int = 0
    failed_for: str = ""  # the last of them
    train_at: float = 0.0  # not before, after failures
    last_turn: float = 0.0
    seen: int = -1  # the newest version that came, and until when predictions make do with it during a training
    stale_at: float = 0.0
    place: Place = field(default_factory=Place)
    hurried: bool = False  # the operator asked for a training: see hurrying.py

    def work_to_do(self, now: float) -> tuple[Work, Model] | None:
        """What may be trained now, by the task's word on who takes part, too."""
        ready = self.trainable(now)
        return ready if ready and (self.hurried or self.place.may_begin(ready[1].version, now)) else None

    def trainable(self, now: float) -> tuple[Work, Model] | None:
        """What could be trained now: the newest version here, if it has not been trained from before."""
        work, model = self.intake.work, self.intake.model
        if (
            not self.desired
            or work is None
            or model is None
            or work.plan.state != "running"
            or self.pending is not None
        ):
            return None
        if model.version <= self.trained or model.version < work.plan.origin:
            return None
        if not self.num_examples or now < self.train_at:
            return None
        return work, model

    def unfit(self, lease: Lease, now: float) -> str:
        """Why the task keeps the device from training for a slot, for people; empty where it can, or may soon."""
        plan, model = self.intake.plan, self.intake.model
        if max(lease.version, model.version if model else 0) <= self.trained:
            return f"version {self.trained} has been trained from already"
        if plan is not None and plan.state != "running":
            return f"the task is {plan.state}"
        if self.examples_for and not self.num_examples and self.examples_why:
            return f"no examples: {self.examples_why}"
        if self.failures and self.train_at > max(now, lease.ends_at):
            return f"training failed: {self.failed_for}"
        return ""

    @property
    def outdated(self) -> bool:
        """Whether what is on its way out is of a version that the plan no longer takes, as far as is known."""
        plan, manifest, update = self.intake.plan, self.intake.manifest, self.pending
        if plan is None or manifest is None or update is None:
            return False
        most = 0 if plan.mode == "synchronous" and plan.tiers is None else plan.max_staleness
        return manifest.version - update.base_version > most

    @property
    def next_size(self) -> int:
        """Bytes of the object that will be fetched next, as far as is known."""
        plan, bundle, manifest = self.intake.plan, self.intake.bundle, self.intake.manifest
        if plan and (bundle is None or bundle.sha256 != plan.bundle_sha256):
            return plan.bundle_size
        return max(self.intake.lacks, (manifest.delta_size or manifest.size) if manifest else 0)

    def is_fresh(self, now: float) -> bool:
        """Whether the version here came lately; one that came just now counts from now on."""
        model = self.intake.model
        if model is not None and model.version != self.seen:
            self.seen, self.stale_at = model.version, now + FRESH_S
        return model is not None and now < self.stale_at

    def settle(self, result: Result) -> None:
        """The verdict is on the disk: the residual moves, and the next update may be made."""
        if self.pending is not None:
            residual = self.pending.if_accepted if result.verdict == "accepted" else self.pending.if_refused
            self.residual = LocalVector(self.pending.fingerprint, residual, self.pending.origin)
        self.pending = None

    def residual_for(self, work: Work) -> Vector:
        """The kept residual, shape (P,); zero under another layout, and in another life of the model."""
        bundle, kept = work.bundle, self.residual
        if kept is not None and kept.origin != work.plan.origin:
            kept = None
        size = bundle.layout.num_parameters
        return kept.vector if _fits(kept, bundle.layout.fingerprint, size) else np.zeros(size, np.float32)

    def personal_for(self, bundle: Bundle) -> Vector:
        """The personal entries' values, flat; at first, and under another layout, those that the bundle starts with."""
        kept = self.personal
        return kept.vector if _fits(kept, bundle.layout.fingerprint, bundle.personal.size) else bundle.personal

    def situation(self) -> tuple[StateName, str]:
        """What the task waits for, for people."""
        intake = self.intake
        if intake.plan is None:
            return "ready", "waiting for the plan"
        if intake.bundle is None or intake.bundle.sha256 != intake.plan.bundle_sha256:
            return ("sleeping", intake.refused) if intake.refused else ("ready", "fetching the bundle")
        if intake.work is None:
            return "sleeping", "the plan does not fit its bundle"
        if not self.num_examples:
            return "sleeping", self.examples_why
        if intake.plan.state != "running":
            return "ready", f"the task is {intake.plan.state}"
        if intake.model is None or intake.model.version < intake.plan.origin:
            return ("sleeping", intake.refused) if intake.refused else ("ready", "fetching the model")
        if self.failures:
            return "sleeping", f"training failed ({self.failed_for}); trying again"
        if intake.model.version <= self.trained and not self.place.rule.invited:
            return "ready", f"waiting for version {self.trained + 1}"
        return "ready", self.place.waits_for(intake.model.version)


class Tasks:
    """All tasks that the device knows of, by name; those that its disk remembers wait until the gateway names them."""

    def __init__(
        self, restored: Restored, identity: Identity, read_bundle: ReadBundle, parts: Parts | None = None
    ) -> None:
        self._identity, self._read_bundle, self._parts = identity, read_bundle, parts
        self.known: dict[str, Task] = {}
        self.assigned = False  # the gateway has spoken since this start
        for name in sorted({*restored.trained, *restored.residuals, *restored.personal}):
            task = self._add(name)
            task.trained = restored.trained.get(name, -1)
            task.residual, task.personal = restored.residuals.get(name), restored.personal.get(name)
        for pending in restored.pending:
            task = self.known.get(pending.task) or self._add(pending.task)
            task.pending, task.sending = pending, Sending(pending, identity, 0.0, restored=True)

    def __iter__(self) -> Iterator[Task]:
        """The desired ones."""
        return (task for task in self.known.values() if task.desired)

    def get(self, name: str) -> Task | None:
        """The task of that name, if it is desired."""
        task = self.known.get(name)
        return task if task and task.desired else None

    @property
    def wanted(self) -> frozenset[str]:
        """The objects that the disk should keep."""
        return frozenset(sha256 for task in self.known.values() for sha256 in task.intake.wanted)

    def promised(self, other: Task) -> int:
        """Bytes of objects that are on their way for all tasks but this one."""
        return sum(task.intake.promised for task in self if task is not other)

    def owe_update(self, now: float) -> bool:
        """Whether one waits for its verdict, or could be made of what is here."""
        return any(task.pending or task.work_to_do(now) for task in self)

    def lacking(self, budget: Budget) -> str:
        """Why the device waits for bytes, if it does: the day's are used, or a task lacks room for an object."""
        sizes = [size for task in self if (size := task.intake.lacks)]
        if budget.counts and not budget.may_begin():
            sizes.append(0)
        return budget.why(min(sizes)) if sizes else ""

    @property
    def sendings(self) -> list[Sending]:
        """All updates on their way out."""
        return [task.sending for task in self if task.sending]

    def take_desired(self, desired: Desired | None) -> list[Effect]:
        """The tasks of this device. A signed list ends all others; a cleared topic, signed by nobody, suspends them."""
        self.assigned = True
        names = desired.tasks if desired else ()
        effects: list[Effect] = []
        for name in names:
            task = self.known.get(name) or self._add(name)
            effects += task.intake.try_canary(desired is not None and name in (desired.canary or ()))
            if not task.desired:
                task.desired = True
                effects += task.intake.follow()
        for task in [t for t in self.known.values() if t.name not in names]:
            if task.desired:
                task.desired = False
                effects += task.intake.leave()
            if desired:
                del self.known[task.name]
                effects.append(Forget(task.name))
        return effects

    def _add(self, name: str) -> Task:
        self.known[name] = Task(name, Intake(name, self._identity, self._read_bundle, self._parts))
        return self.known[name]


def _fits(kept: LocalVector | None, fingerprint: str, size: int) -> TypeGuard[LocalVector]:
    return kept is not None and kept.fingerprint == fingerprint and kept.vector.shape == (size,)
