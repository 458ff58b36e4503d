"""A device with a valid key that does not keep to the protocol, on top of the production agent.

Its agent fetches, trains and compresses as everybody's; on the way out its updates are swapped for others, sealed with
the device's own key by the production code, and more are sent that nobody asked for. What keeps the agent going is
that a forged update answers to the same seq: its verdict settles the honest one.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.random import Generator

from anabranch.simulator.attacks.kinds import Terms
from anabranch.simulator.link import LinkedTransport
from edge_agent.events import PendingUpdate
from edge_agent.identity import Identity
from edge_agent.sending import FRAMING
from fl_protocol.codec import decode_as
from fl_protocol.compression import make_compressor
from fl_protocol.messages import Envelope, Manifest, Update
from fl_protocol.signing import seal_update
from fl_protocol.tensors import ModelLayout
from fl_protocol.topics import Kind, parse
from fl_protocol.transport import Delivery, Incoming

NEVER = float("inf")
KEPT = 8  # sealed updates that are sent again in turn, long after their verdict
FRESH = 1_000_000  # numbers from here on are a flood's, far from those that the agent gives
AHEAD = 1000  # versions that no release will be for a while
CROWDED = 1 << 20  # bytes that wait to be sent, at which a flood waits too


def not_finite(update: Update, layout: ModelLayout) -> Update:
    """In turn: a delta of NaN, one of infinity, statistics of NaN; float32 and float16 can say so."""
    if update.seq % 3 == 2 and layout.num_statistics:
        return replace(update, statistics=np.full(layout.num_statistics, np.nan, "<f2").tobytes())
    value = np.nan if update.seq % 3 else np.inf
    return replace(update, codec={"name": "none"}, payload=np.full(layout.num_parameters, value, "<f4").tobytes())


def flipped(update: Update, layout: ModelLayout, scale: float, rng: Generator) -> Update:
    """-scale times what the honest update says, by the same codec."""
    compressor = make_compressor(update.codec, layout)
    return replace(update, payload=compressor.compress(np.float32(-scale) * compressor.decompress(update.payload), rng))


def other_base(update: Update, newest: int) -> Update:
    """Says that it was trained from the current version; every fourth from one that was never released, or an older."""
    lie = {2: newest + AHEAD, 0: max(0, update.base_version - 1)}.get(update.seq % 4, newest)
    return replace(update, base_version=lie)


class Conduct:
    """How one device goes about it, over all its programs; `rng` draws what its codec draws."""

    def __init__(self, terms: Terms, layout: ModelLayout, rng: Generator) -> None:
        self.terms, self._layout, self._rng = terms, layout, rng
        self.newest = 0  # version that it has heard of
        self._last: tuple[tuple[str, int], Update, bytes] | None = None
        self._sealed: deque[bytes] = deque(maxlen=KEPT)
        self._fresh = FRESH

    def swap(self, honest: bytes, identity: Identity) -> bytes:
        """The sealed update in the place of the agent's; the same bytes for the same one."""
        update = decode_as(Update, decode_as(Envelope, honest).body)
        name = update.incarnation, update.seq
        if self._last is None or self._last[0] != name:
            forged = self._forge(update)
            self._last = name, forged, _seal(forged, identity)
            self._sealed.append(self._last[2])
        return self._last[2]

    def _forge(self, update: Update) -> Update:
        if self.terms.kind == "nan":
            return not_finite(update, self._layout)
        flip = flipped(update, self._layout, self.terms.scale or 1.0, self._rng)
        return other_base(flip, self.newest) if self.terms.kind == "base-version" else flip

    def more(self, identity: Identity) -> bytes | None:
        """What is sent every `every_s`: an old update again, or in a flood the newest under the next number."""
        if self._last is None:
            return None
        if self.terms.kind == "replay":
            self._sealed.rotate(-1)
            return self._sealed[0]
        self._fresh += 1
        return _seal(replace(self._last[1], seq=self._fresh, base_version=self.newest), identity)


def _seal(update: Update, identity: Identity) -> bytes:
    return seal_update(update, identity.key, identity.fleet, identity.topic(Kind.UPDATE))


class HostileTransport(LinkedTransport):
    """A `LinkedTransport` behind which the agent's updates are swapped."""

    def betray(self, conduct: Conduct, identity: Identity, pending: Callable[[], Sequence[PendingUpdate]]) -> None:
        """Swap what is `pending` when it leaves, by `conduct`."""
        self._conduct, self._identity, self._pending = conduct, identity, pending
        self._next_at = 0.0

    def receive(self, timeout: float) -> list[Incoming]:
        """As `Transport.receive`; listens for versions."""
        events = super().receive(timeout)
        for event in events:
            if isinstance(event, Delivery) and event.payload and parse(event.topic).kind is Kind.MANIFEST:
                version = decode_as(Manifest, event.payload).version
                self._conduct.newest = max(self._conduct.newest, version)
        return events

    def publish(self, topic: str, payload: bytes, **how: Any) -> None:
        """As `Transport.publish`; an update, or its offer, becomes a forged update, if one packet can carry it."""
        if parse(topic).kind in (Kind.UPDATE, Kind.OFFER) and (pending := self._pending()):
            forged = self._conduct.swap(pending[0].sealed, self._identity)
            if len(forged) + FRAMING <= self._broker.limits.max_packet:
                topic, payload = self._identity.topic(Kind.UPDATE), forged
        super().publish(topic, payload, **how)

    def misbehave(self) -> float:
        """Send what nobody asked for when it is due; returns when there is more, in virtual seconds."""
        every_s = self._conduct.terms.every_s
        if every_s == NEVER or self._world.now < self._next_at:
            return self._next_at if every_s < NEVER else NEVER
        self._next_at = self._world.now + every_s
        if self.connected and self.backlog < CROWDED and (sealed := self._conduct.more(self._identity)):
            super().publish(self._identity.topic(Kind.UPDATE), sealed)
        return self._next_at
