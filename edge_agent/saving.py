"""The day's bytes, as the device lives them: what it books, what it waits for, and what it gives up. See budget.py."""

from collections.abc import Callable

from edge_agent.budget import Budget
from edge_agent.events import Effect, SaveSpent, Settle
from edge_agent.identity import Identity
from edge_agent.task import Tasks
from edge_agent.telling import Telling
from fl_protocol.errors import Code
from fl_protocol.messages import Result
from fl_protocol.topics import Kind


class Saving:
    """`lacking` is why the device waits for bytes, or nothing; `emit` takes the effects."""

    def __init__(
        self, budget: Budget, tasks: Tasks, telling: Telling, identity: Identity, emit: Callable[[Effect], None]
    ) -> None:
        self._budget, self._tasks, self._telling, self._identity, self._emit = budget, tasks, telling, identity, emit
        self.lacking = ""
        self._lacked = -1  # the last day on which it said so

    def book(self) -> None:
        """Have the disk keep what is spent, where that has outrun what it holds."""
        if spent := self._budget.take_save():
            self._emit(SaveSpent(spent))

    def close(self) -> None:
        """The device ends in good order."""
        if spent := self._budget.close():
            self._emit(SaveSpent(spent))

    def give_up(self, now: float) -> None:
        """Settle what could never be sent, as if the gateway had refused it: one of before the budget was lowered."""
        for task in self._tasks.known.values():
            update = task.pending
            if update and task.sending and (why := self._budget.never(len(update.sealed), on_any_link=True)):
                task.sending = None
                result = Result(
                    task=update.task,
                    incarnation=update.incarnation,
                    seq=update.seq,
                    verdict="rejected",
                    code=Code.QUOTA,
                    why=why,
                )
                self._emit(Settle(update, result, self._identity.topic(Kind.RESULT)))
                text = f"{task.name}: update {update.seq} is not sent: {why}"
                self._telling.complain("byte budget", Code.QUOTA, text, now)

    def look(self, now: float) -> None:
        """Know, and tell once a day, why the device waits for bytes."""
        self.lacking = self._tasks.lacking(self._budget)
        if self.lacking:
            self._budget.rested()
            if self._lacked != self._budget.days:
                self._lacked = self._budget.days
                self._telling.complain("byte budget", None, self.lacking, now, level="warning")
