"""One update on its way out: the same bytes again and again, until the gateway's verdict."""

from dataclasses import replace

from numpy.random import Generator

from edge_agent.events import Effect, PendingUpdate, Send
from edge_agent.identity import Identity
from fl_protocol.chunks import PACKET_OVERHEAD
from fl_protocol.codec import MAX_PACKET_BYTES
from fl_protocol.messages import Grant
from fl_protocol.signing import sign_offer
from fl_protocol.topics import Kind
from fl_protocol.transfer import Upload, chunk_size_for
from fl_protocol.transport import Limits

RESEND_S = (15.0, 300.0)  # silence after which it is sent again: at first, and at most
SMALL = 4096  # bytes; a packet below this was not refused for its size
_OF_SIZE = ("the broker takes ", "the connection ended twice")  # what `fl_protocol.queues` says of a packet too large
FRAMING = 256  # bytes of topic and framing around an update that travels in one packet
OFFERED = 2048  # bytes; below it an update costs little more than the offer that would ask for it
OLD_S = 600.0  # after which an update may have come too late


def is_of_size(size: int, reason: str) -> bool:
    """Whether a packet of `size` bytes, given up for that `reason`, may have been too large."""
    return size > SMALL and any(words in reason for words in _OF_SIZE)


class Sending:
    """Decides when an update, or its offer, is sent: a PUBACK means nothing, only a verdict ends it."""

    def __init__(self, update: PendingUpdate, identity: Identity, at: float, *, restored: bool = False) -> None:
        """`restored`: from the disk of a process before this one, which may have sent it."""
        self.update, self._identity = update, identity
        self.wake_at = self._made_at = at
        self._sent = self._in_doubt = restored
        self._patience_s = RESEND_S[0]
        self._upload: tuple[int, Upload] | None = None  # with its chunk size
        self._max_packet: int | None = None  # what the broker has shown to be too much for it

    def next(self, now: float, link: Limits, rng: Generator, *, outdated: bool = False) -> list[Effect]:
        """The update, or its offer, when that is due; `rng` spreads the repeats of a fleet.

        An update is offered if it is too large for a packet, or if it may be of no use: `outdated`, late, or sent
        before on a connection that ended. The gateway then says at once whether it still counts.
        """
        if now < self.wake_at:
            return []
        self.wake_at = now + self._patience_s * rng.uniform(0.75, 1.25)
        self._patience_s = min(RESEND_S[1], self._patience_s * 2)
        max_packet = min(link.max_packet, MAX_PACKET_BYTES, self._max_packet or link.max_packet)
        size = len(self.update.sealed)
        doubtful = outdated or self._in_doubt or now - self._made_at > OLD_S
        if size <= max_packet - FRAMING and not (doubtful and size > OFFERED):
            self._sent = True
            return [Send(self._identity.topic(Kind.UPDATE), self.update.sealed)]
        upload = self._uploading(chunk_size_for(link.version, max_packet))
        upload.resume()
        offer = upload.offer(now)
        if offer is None:
            return []
        topic = self._identity.topic(Kind.OFFER)
        return [Send(topic, sign_offer(offer, self._identity.key, self._identity.fleet, topic))]

    @property
    def cost(self) -> int:
        """Bytes that the next word leads to: the update, or a chunk of it if those are under way already."""
        whole = len(self.update.sealed)
        return FRAMING + (min(whole, self._upload[0]) if self._upload else whole)

    def granted(self, grant: Grant, now: float, most: int | None = None) -> list[Effect]:
        """The gateway's answer to the offer: the chunks that it asks for, as many as `most` bytes have room for.

        Raises `ProtocolError(E_SIZE)` for a bitmap of another size.
        """
        if self._upload is None or grant.sha256 != self._upload[1].sha256:
            return []
        if most is not None:
            chunk = min(len(self.update.sealed), self._upload[0]) + PACKET_OVERHEAD
            grant = replace(grant, window=min(grant.window, most // chunk))
        chunks = self._upload[1].granted(grant, now)
        # It listens, so begin with short silences again. Done, stale, reject: the signed result follows.
        self.again(now + (grant.retry_in_s or RESEND_S[0]))
        return [Send(self._identity.topic(Kind.CHUNK_UP), chunk) for chunk in chunks]

    def again(self, at: float) -> None:
        """Send at `at`, and begin with short silences: something has changed since the last time."""
        self.wake_at, self._patience_s = at, RESEND_S[0]

    def renewed(self, at: float) -> None:
        """A connection began, its own or the gateway's: if it was sent before, nobody knows what came of that."""
        self._in_doubt = self._in_doubt or self._sent
        self.again(at)

    def too_large(self, size: int, now: float) -> None:
        """The broker would not carry a packet of `size` bytes: chunks are the way."""
        self._max_packet = max(SMALL, size - 1)
        self.again(now)

    def _uploading(self, chunk_size: int) -> Upload:
        if self._upload is None or self._upload[0] != chunk_size:
            update = self.update
            upload = Upload(
                update.sealed,
                chunk_size,
                task=update.task,
                incarnation=update.incarnation,
                seq=update.seq,
                base_version=update.base_version,
                fingerprint=update.fingerprint,
            )
            self._upload = chunk_size, upload
        return self._upload[1]
