"""Who says what to bring an object across: sans-I/O, both ends, up and down; time is an argument.

The receiver paces. It asks for a window of the chunks that it misses, for more when half of them have come, and again
after silence; the sender only ever answers. Order and duplicates do not matter, and a loss costs a silence at most.

    up      the device's Upload         offer ->    <- grant    chunks ->    <- grant ...       the gateway's Inbox
    down    the device's Fetch          get ->      <- chunks   get -> ...                      the gateway's Outgoing

Only a verdict ends an upload, and only its owner drops it: until then it offers again after silence, so that an answer
that got lost is given once more. A grant of window 0 says no more than that the gateway is listening.

Where the chunks lie is handed in (`Parts`): on a disk that outlives its process, both ends go on where they were.
"""

from collections.abc import Iterator

from fl_protocol.chunks import (
    MAX_WINDOW,
    Incoming,
    MemoryParts,
    Outgoing,
    Parts,
    Source,
    chunk_count,
    chunk_size_for,
    decode_bitmap,
    encode_bitmap,
)
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import Chunk, Get, Grant, Offer
from fl_protocol.pacing import RETRY_S, Receiver, Silence

SILENT_S = 300.0  # an upload of which no chunk came for so long keeps no room from others of its owner

__all__ = [
    "MAX_WINDOW",
    "SILENT_S",
    "Fetch",
    "Inbox",
    "Incoming",
    "MemoryParts",
    "Outgoing",
    "Parts",
    "Reception",
    "Silence",
    "Source",
    "Upload",
    "chunk_count",
    "chunk_size_for",
    "decode_bitmap",
    "encode_bitmap",
]


class Fetch(Receiver):
    """A device's download of an object that a signed message named. Call `next_get` often: it knows when."""

    def next_get(self, now: float) -> Get | None:
        """What to publish at `up/get` now, if anything."""
        asked = self._ask(now)
        if asked is None:
            return None
        window, missing = asked
        return Get(sha256=self.sha256, size=self.size, chunk_size=self.chunk_size, window=window, missing=missing)


class Reception(Receiver):
    """The gateway's end of an upload; made by `Inbox.open`."""

    touched_at = 0.0  # by an offer or a chunk
    heard_at = 0.0  # its last chunk, or its opening
    _waits_until = float("-inf")

    def add(self, chunk: Chunk, now: float) -> bool:
        """Take a chunk; whether the object is complete. Raises what `Incoming.add` does."""
        complete = super().add(chunk, now)
        self.touched_at = self.heard_at = now
        return complete

    def silent(self, now: float) -> bool:
        """Whether no chunk came for `SILENT_S`, however often it was offered."""
        return now - self.heard_at >= SILENT_S

    def wait(self, now: float, for_s: float) -> bool:
        """What came cannot be kept: ask for nothing for so long. False when this was said before."""
        if now < self._waits_until:
            return False
        self._waits_until = now + for_s
        self.resume()
        return True

    def offered(self, now: float) -> Grant:
        """The answer to an offer, the first or a repeat."""
        self.touched_at = now
        if self.done:
            return Grant(sha256=self.sha256, answer="done")
        return self.next_grant(now) or Grant(sha256=self.sha256, answer="go")

    def next_grant(self, now: float) -> Grant | None:
        """What to publish at `dn/grant` now, if anything: to be asked after each chunk, and now and then."""
        asked = self._ask(now) if now >= self._waits_until else None
        if asked is None:
            return None
        window, missing = asked
        return Grant(sha256=self.sha256, answer="go", window=window, missing=missing)


class Inbox:
    """Uploads in the making at the gateway, under one byte budget.

    What nobody touches for `ttl_s` seconds makes room; what never got a chunk does so after `SILENT_S`, however often
    it was offered, since an offer costs its owner nothing. An owner has at most `per_owner` objects, the newest it
    offered, and `owner_bytes` (a quarter of all, unless told otherwise) or a single larger object: neither leftovers
    nor lies of one keep all others out. Above its bytes its silent ones leave; those that move are waited for.
    What `parts` still has from before a restart goes on: its owner is granted what it lacks when it offers again, or
    after a silence.
    """

    def __init__(
        self,
        max_bytes: int,
        ttl_s: float,
        *,
        window: int | None = None,
        retry_s: float = RETRY_S,
        per_owner: int = 4,
        owner_bytes: int | None = None,
        parts: Parts | None = None,
        now: float = 0.0,
    ) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._window = window
        self._retry_s = retry_s
        self._per_owner = per_owner
        self._owner_bytes = max_bytes // 4 if owner_bytes is None else owner_bytes
        self._parts = parts or MemoryParts()
        self._listens_until = now + retry_s  # what was granted before a restart may be under way
        self._receptions: dict[tuple[str, str], Reception] = {}  # (owner, SHA-256), in the order of opening
        for found in self._parts.found():
            try:
                reception = self.open(found.sha256, found.size, found.chunk_size, found.name.partition(".")[0], now)
            except ProtocolError:  # the budget is smaller now, or the disk fails
                self._parts.remove(found.name)
                continue
            reception.touched_at = reception.heard_at = now - found.age_s

    @property
    def reserved(self) -> int:
        """Bytes of the budget that are taken."""
        return sum(reception.size for reception in self._receptions.values())

    def open(self, sha256: str, size: int, chunk_size: int, owner: str, now: float) -> Reception:
        """The reception of this object, which goes on if it is known in these sizes, and else begins.

        Raises `ProtocolError`: E_SIZE for sizes that never fit, E_QUOTA when there is no room now, E_DISK when the
        disk has none.
        """
        known = self._receptions.get((owner, sha256))
        if known and (known.size, known.chunk_size) == (size, chunk_size):
            known.touched_at = now
            return known
        if size > self._max_bytes:
            raise ProtocolError(Code.SIZE, f"an object of {size} bytes; at most {self._max_bytes} are taken")
        chunk_count(size, chunk_size)
        self.expire(now)
        leaving = {(owner, sha256), *self._too_many(sha256, size, owner, now)}
        taken = sum(reception.size for key, reception in self._receptions.items() if key not in leaving)
        if taken + size > self._max_bytes:
            raise ProtocolError(Code.QUOTA, f"no room for {size} bytes beside {taken} of {self._max_bytes}")
        for key in leaving & self._receptions.keys():
            del self._receptions[key]
            if key != (owner, sha256):  # what is here of it may go on, in chunks of another size
                self.discard(*key)
        part = self._parts.open(f"{owner}.{sha256}", sha256, size, chunk_size)
        reception = Reception(sha256, size, chunk_size, self._window, self._retry_s, part)
        self._receptions[owner, sha256] = reception
        reception.touched_at = reception.heard_at = now
        return reception

    def _too_many(self, sha256: str, size: int, owner: str, now: float) -> list[tuple[str, str]]:
        """Which of the owner's other objects leave for this one. Raises `ProtocolError(E_QUOTA)` if too few may."""
        own = [key for key in self._receptions if key[0] == owner and key[1] != sha256]
        surplus = max(0, len(own) + 1 - self._per_owner)
        leaving, total = own[:surplus], size + sum(self._receptions[key].size for key in own[surplus:])
        for key in own[surplus:]:
            if total > self._owner_bytes and self._receptions[key].silent(now):
                leaving.append(key)
                total -= self._receptions[key].size
        if total > max(size, self._owner_bytes):
            raise ProtocolError(Code.QUOTA, f"{total} bytes of {owner}; at most {self._owner_bytes} are taken at once")
        return leaving

    def get(self, owner: str, sha256: str) -> Reception | None:
        """The reception under way, if there is one."""
        return self._receptions.get((owner, sha256))

    def close(self, owner: str, sha256: str) -> None:
        """Forget an object; what lies on the disk of it stays until `discard`."""
        self._receptions.pop((owner, sha256), None)

    def discard(self, owner: str, sha256: str) -> None:
        """Drop what lies on the disk of an object that was closed: it is kept elsewhere, or of no use."""
        if (owner, sha256) not in self._receptions:
            self._parts.remove(f"{owner}.{sha256}")

    def resume(self) -> None:
        """The broker has forgotten what was under way: ask for it at once."""
        self._listens_until = float("-inf")
        for reception in self._receptions.values():
            reception.resume()

    def expire(self, now: float) -> list[tuple[str, str]]:
        """Forget what nobody touched for `ttl_s`, or only offered for `SILENT_S`; the (owner, SHA-256) of each."""
        old = [
            key
            for key, reception in self._receptions.items()
            if now - reception.touched_at >= self._ttl_s or (reception.silent(now) and not reception.progress)
        ]
        for key in old:
            del self._receptions[key]
            self.discard(*key)
        return old

    def next_grants(self, now: float) -> Iterator[tuple[str, Grant]]:
        """Owner and grant, wherever it has been silent for too long."""
        if now < self._listens_until:
            return
        for (owner, _), reception in list(self._receptions.items()):
            grant = reception.next_grant(now)
            if grant is not None:
                yield owner, grant


class Upload:
    """A device's update on its way up: offered until the gateway answers, then sent as it grants.

    `answer` is the last grant's, `"done"` when the gateway has every byte; empty before the first.
    """

    def __init__(
        self,
        data: bytes | Source,
        chunk_size: int,
        *,
        task: str,
        incarnation: str,
        seq: int,
        base_version: int,
        fingerprint: str,
        retry_s: float = RETRY_S,
    ) -> None:
        self._outgoing = Outgoing(data, chunk_size)
        self._silence = Silence(retry_s)
        self.answer = ""
        self._offer = Offer(
            sha256=self._outgoing.sha256,
            size=self._outgoing.size,
            chunk_size=chunk_size,
            task=task,
            incarnation=incarnation,
            seq=seq,
            base_version=base_version,
            fingerprint=fingerprint,
        )

    @property
    def sha256(self) -> str:
        """What grants call it."""
        return self._outgoing.sha256

    def offer(self, now: float) -> Offer | None:
        """What to publish at `up/offer` now, if anything: at first, and again after silence."""
        if not self._silence.over(now):
            return None
        self._silence.begin(now)
        return self._offer

    def granted(self, grant: Grant, now: float) -> list[Chunk]:
        """The chunks to publish at `up/chunk`; none unless the answer is go.

        Raises `ProtocolError`: E_SHA or E_SIZE for a grant that is not of this object, E_DISK when it cannot be read;
        nothing has happened then.
        """
        if grant.sha256 != self.sha256:
            raise ProtocolError(Code.SHA, f"a grant for {grant.sha256:.12}, not for {self.sha256:.12}")
        asked = grant.answer == "go" and grant.window > 0
        chunks = list(self._outgoing.chunks(grant.missing, grant.window)) if asked else []
        self.answer = grant.answer
        self.resume()
        self._silence.begin(now + grant.retry_in_s)
        return chunks

    def resume(self) -> None:
        """The connection is a new one: offer at once."""
        self._silence.forget()
