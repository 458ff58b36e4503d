"""What found no room on the disk: kept in memory, and tried again until there is some."""

from collections.abc import Collection

from edge_agent.events import (
    Durable,
    Forget,
    ForgetCommand,
    KeepObjects,
    SaveCommand,
    SaveConfigured,
    SaveCounter,
    SaveFleetKey,
    SaveObject,
    SavePaused,
    SaveSpent,
    SaveUpdate,
    Settle,
)

RETRY_S = 30.0


class Unsaved:
    """Durable effects that wait. Of those that replace each other only the newest: a full disk never fills memory."""

    def __init__(self) -> None:
        self._waiting: dict[object, Durable] = {}
        self.wake_at = float("inf")

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, effect: Durable, wanted: Collection[str], now: float) -> None:
        """Keep an effect for later; objects that are not `wanted` any more are dropped."""
        self._waiting[_slot(effect)] = effect
        for slot, waiting in list(self._waiting.items()):
            if isinstance(waiting, SaveObject) and waiting.sha256 not in wanted:
                del self._waiting[slot]
        self.wake_at = now + RETRY_S

    def take(self, now: float) -> list[Durable]:
        """All of it, when it is time to try again; what finds no room then comes back by `add`."""
        if now < self.wake_at:
            return []
        waiting, self._waiting, self.wake_at = list(self._waiting.values()), {}, float("inf")
        return waiting


def _slot(effect: Durable) -> object:
    """What the effect replaces, and is replaced by."""
    match effect:
        case SaveCounter(topic):
            return topic
        case SaveObject(sha256):
            return sha256
        case SaveUpdate(update) | Settle(update):
            return type(effect), update.task
        case Forget(task):
            return Forget, task
        case SaveCommand(command):
            return SaveCommand, command.cid
        case ForgetCommand(cid):
            return SaveCommand, cid
        case KeepObjects() | SaveFleetKey() | SaveSpent() | SavePaused() | SaveConfigured():
            return type(effect)
