"""What the device believes: words signed with its fleet's key, and none older than it has heard before."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from edge_agent.events import Effect, SaveCounter
from edge_agent.identity import Identity
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import Result, Signed
from fl_protocol.signing import unseal

S = TypeVar("S", bound=Signed)


class Trust:
    """Keeps the highest counter seen on each topic; `emit` takes the effect that keeps it on the disk."""

    def __init__(self, identity: Identity, counters: Mapping[str, int], emit: Callable[[Effect], None]) -> None:
        self._identity, self._counters, self._emit = identity, dict(counters), emit

    def unseal(self, cls: type[S], topic: str, payload: bytes) -> S:
        """The message. Raises `ProtocolError`: E_SIG, E_SCHEMA, E_SIZE, and E_DOWNGRADE for a lower counter.

        An equal one is the retained message again.
        """
        message = unseal(cls, payload, self._identity.fleet_key, self._identity.fleet, topic)
        last = self._counters.get(topic, 0)
        if message.counter < last:
            raise ProtocolError(Code.DOWNGRADE, f"counter {message.counter} after {last}")
        if message.counter > last:
            self._counters[topic] = message.counter
            if not isinstance(message, Result):  # a verdict's counter is kept with what it settles
                self._emit(SaveCounter(topic, message.counter))
        return message
