"""Slots as the device answers for them: accepted at once, held while they can be used, given back when they cannot."""

from collections.abc import Callable, Iterable
from typing import Literal

from edge_agent.events import Effect, Send
from edge_agent.identity import Identity
from edge_agent.task import Task
from fl_protocol.messages import Slot, SlotAnswer
from fl_protocol.topics import Kind


class Inviting:
    """`emit` takes the effects; `unable` is what keeps the device from training for any task, for people."""

    def __init__(self, identity: Identity, emit: Callable[[Effect], None]) -> None:
        self._identity, self._emit = identity, emit

    def invited(self, task: Task | None, slot: Slot, unable: str, now: float) -> None:
        """A slot came. Accepted at once, so that the gateway knows that somebody is there; or declined by `hold`."""
        if task is None:
            self.decline(slot.task, slot.slot, "the device takes no part in this task")
            return
        lease = task.place.take(slot, now)
        if lease is None or unable or task.unfit(lease, now):
            return
        self._answer(slot.task, slot.slot, "accept")
        manifest = task.intake.manifest
        if task.intake.plan and (manifest is None or manifest.version < slot.version):
            for effect in task.intake.follow():  # its manifest was lost: the retained one comes once more
                self._emit(effect)

    def hold(self, tasks: Iterable[Task], unable: str, now: float) -> None:
        """A slot that cannot be used any more is given back, so that another device may have it."""
        for task in tasks:
            lease = task.place.lease
            if lease is None or task.place.expire(now):
                continue
            if why := unable or task.unfit(lease, now):
                task.place.lease = None
                self.decline(task.name, lease.slot, why)

    def decline(self, task: str, slot: str, why: str) -> None:
        """Give a slot back; without one there is nothing to say."""
        if slot:
            self._answer(task, slot, "decline", why)

    def _answer(self, task: str, slot: str, answer: Literal["accept", "decline"], why: str = "") -> None:
        message = SlotAnswer(task=task, slot=slot, answer=answer, why=why[:400])
        self._emit(Send(self._identity.topic(Kind.SLOT_ANSWER), message))
