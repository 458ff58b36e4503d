"""What the device believes: words signed with its fleet's key, and none older than it has heard before."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from edge_agent.events import Effect, SaveCounter, SaveFleetKey
from edge_agent.identity import Identity
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import FleetKeys, Result, Signed
from fl_protocol.signing import unseal
from fl_protocol.succession import follow

S = TypeVar("S", bound=Signed)


class Trust:
    """Keeps the highest counter seen on each topic; `emit` takes the effect that keeps it on the disk.

    `fleet_key` is the one key that is believed.
    """

    def __init__(
        self, identity: Identity, counters: Mapping[str, int], emit: Callable[[Effect], None], fleet_key: str
    ) -> None:
        self._identity, self._counters, self._emit = identity, dict(counters), emit
        self.fleet_key = fleet_key

    def follow(self, chain: FleetKeys) -> bool:
        """Believe in the chain's newest key, and no longer in the one before; True where that is another one.

        Raises `ProtocolError`: E_SIG, E_SCHEMA for a chain that does not lead on from what is believed.
        """
        newest = follow(chain, self.fleet_key, self._identity.fleet)
        if newest == self.fleet_key:
            return False
        self.fleet_key = newest
        self._emit(SaveFleetKey(self._identity.fleet_key, newest))
        return True

    def unseal(self, cls: type[S], topic: str, payload: bytes) -> S:
        """The message. Raises `ProtocolError`: E_SIG, E_SCHEMA, E_SIZE, and E_DOWNGRADE for a lower counter.

        An equal one is the retained message again.
        """
        message = unseal(cls, payload, self.fleet_key, self._identity.fleet, topic)
        last = self._counters.get(topic, 0)
        if message.counter < last:
            raise ProtocolError(Code.DOWNGRADE, f"counter {message.counter} after {last}")
        if message.counter > last:
            self._counters[topic] = message.counter
            if not isinstance(message, Result):  # a verdict's counter is kept with what it settles
                self._emit(SaveCounter(topic, message.counter))
        return message
