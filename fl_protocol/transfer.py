"""Who says what to bring an object across: sans-I/O, both ends, up and down; time is an argument.

The receiver paces. It asks for a window of the chunks that it misses, for more when half of them have come, and again
after silence; the sender only ever answers. Order and duplicates do not matter, and a loss costs a silence at most.

    up      the device's Upload         offer ->    <- grant    chunks ->    <- grant ...       the gateway's Inbox
    down    the device's Fetch          get ->      <- chunks   get -> ...                      the gateway's Outgoing

Only a verdict ends an upload, and only its owner drops it: until then it offers again after silence, so that an answer
that got lost is given once more. A grant of window 0 says no more than that the gateway is listening.
"""

from collections.abc import Iterator

import numpy as np

from fl_protocol.chunks import (
    MAX_WINDOW,
    Incoming,
    Outgoing,
    chunk_count,
    chunk_size_for,
    decode_bitmap,
    encode_bitmap,
)
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import Chunk, Get, Grant, Offer

__all__ = [
    "MAX_WINDOW",
    "Fetch",
    "Inbox",
    "Incoming",
    "Outgoing",
    "Reception",
    "Upload",
    "chunk_count",
    "chunk_size_for",
    "decode_bitmap",
    "encode_bitmap",
]

WINDOW = 16  # chunks: 256 KiB on MQTT 3.1.1, above bandwidth times delay of a 20 Mbit/s link at 100 ms
RETRY_S = 5.0
MAX_PATIENCE = 16  # times retry_s


class _Silence:
    """When to speak again: at once, then after twice as long each time, so that no slow link drowns in repeats."""

    def __init__(self, retry_s: float) -> None:
        self._retry_s = retry_s
        self.forget()

    def forget(self) -> None:
        """Nothing has been said yet."""
        self._since: float | None = None
        self._patience = self._retry_s

    def begin(self, since: float) -> None:
        """Something was just said or heard."""
        self._since = since

    def over(self, now: float) -> bool:
        """Whether to speak now; the next silence may last twice as long as one that is over."""
        if self._since is None:
            return True
        if now - self._since < self._patience:
            return False
        self._patience = min(2 * self._patience, MAX_PATIENCE * self._retry_s)
        return True


class _Receiver:
    """An `Incoming` object that is asked for, window by window."""

    def __init__(self, sha256: str, size: int, chunk_size: int, window: int = WINDOW, retry_s: float = RETRY_S) -> None:
        if not 1 <= window <= MAX_WINDOW:
            raise ValueError(f"a window has 1 to {MAX_WINDOW} chunks, not {window}")
        self._incoming = Incoming(sha256, size, chunk_size)
        self.sha256, self.size, self.chunk_size = sha256, size, chunk_size
        self._window = window
        self._silence = _Silence(retry_s)
        self._requests = 0
        self._asked: dict[int, int] = {}  # chunk -> number of the request that it is to answer

    @property
    def done(self) -> bool:
        """Whether every chunk has come."""
        return self._incoming.complete

    @property
    def progress(self) -> float:
        """The share of chunks that have come, 0 to 1."""
        return self._incoming.progress

    def add(self, chunk: Chunk, now: float) -> bool:
        """Take a chunk, asked for or not; whether the object is complete. Raises what `Incoming.add` does."""
        complete = self._incoming.add(chunk)
        self._silence.begin(now)
        request = self._asked.pop(chunk.index, None)
        if request is not None:
            # Requests are answered in turn: what an earlier one still lacks was lost on the way.
            self._asked = {index: number for index, number in self._asked.items() if number >= request}
        return complete

    def data(self) -> bytes:
        """The object. Raises `ProtocolError(E_SHA)` if its SHA-256 is another, and starts again."""
        return self._incoming.data()

    def resume(self) -> None:
        """The connection is a new one: nothing is under way, ask at once."""
        self._asked.clear()
        self._silence.forget()

    def _ask(self, now: float) -> tuple[int, bytes] | None:
        """How many more chunks to ask for now, and the bitmap of what is missing and not under way."""
        if self.done:
            return None
        if self._silence.over(now):
            self._asked.clear()
        elif len(self._asked) > self._window // 2:
            return None
        wanted = self._incoming.flags.copy()
        wanted[list(self._asked)] = False
        indices = np.flatnonzero(wanted)[: self._window - len(self._asked)].tolist()
        if not indices:
            return None
        self._requests += 1
        self._asked.update(dict.fromkeys(indices, self._requests))
        self._silence.begin(now)
        return len(indices), encode_bitmap(wanted)


class Fetch(_Receiver):
    """A device's download of an object that a signed message named. Call `next_get` often: it knows when."""

    def next_get(self, now: float) -> Get | None:
        """What to publish at `up/get` now, if anything."""
        asked = self._ask(now)
        if asked is None:
            return None
        window, missing = asked
        return Get(sha256=self.sha256, size=self.size, chunk_size=self.chunk_size, window=window, missing=missing)


class Reception(_Receiver):
    """The gateway's end of an upload; made by `Inbox.open`."""

    touched_at = 0.0

    def add(self, chunk: Chunk, now: float) -> bool:
        """Take a chunk; whether the object is complete. Raises what `Incoming.add` does."""
        complete = super().add(chunk, now)
        self.touched_at = now
        return complete

    def offered(self, now: float) -> Grant:
        """The answer to an offer, the first or a repeat."""
        self.touched_at = now
        if self.done:
            return Grant(sha256=self.sha256, answer="done")
        return self.next_grant(now) or Grant(sha256=self.sha256, answer="go")

    def next_grant(self, now: float) -> Grant | None:
        """What to publish at `dn/grant` now, if anything: to be asked after each chunk, and now and then."""
        asked = self._ask(now)
        if asked is None:
            return None
        window, missing = asked
        return Grant(sha256=self.sha256, answer="go", window=window, missing=missing)


class Inbox:
    """Uploads in the making at the gateway, under one byte budget.

    What nobody touches for `ttl_s` seconds makes room. An owner has at most `per_owner` objects, the newest it offered.
    """

    def __init__(
        self, max_bytes: int, ttl_s: float, *, window: int = WINDOW, retry_s: float = RETRY_S, per_owner: int = 4
    ) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._window = window
        self._retry_s = retry_s
        self._per_owner = per_owner
        self._receptions: dict[tuple[str, str], Reception] = {}  # (owner, SHA-256), in the order of opening

    @property
    def reserved(self) -> int:
        """Bytes of the budget that are taken."""
        return sum(reception.size for reception in self._receptions.values())

    def open(self, sha256: str, size: int, chunk_size: int, owner: str, now: float) -> Reception:
        """The reception of this object, which goes on if it is known in these sizes, and else begins.

        Raises `ProtocolError(E_SIZE)` for sizes that never fit, `ProtocolError(E_QUOTA)` when there is no room now.
        """
        known = self._receptions.get((owner, sha256))
        if known and (known.size, known.chunk_size) == (size, chunk_size):
            known.touched_at = now
            return known
        if size > self._max_bytes:
            raise ProtocolError(Code.SIZE, f"an object of {size} bytes; at most {self._max_bytes} are taken")
        reception = Reception(sha256, size, chunk_size, self._window, self._retry_s)
        self.expire(now)
        own = [key for key in self._receptions if key[0] == owner and key[1] != sha256]
        leaving = {(owner, sha256), *own[: max(0, len(own) + 1 - self._per_owner)]}
        taken = sum(reception.size for key, reception in self._receptions.items() if key not in leaving)
        if taken + size > self._max_bytes:
            raise ProtocolError(Code.QUOTA, f"no room for {size} bytes beside {taken} of {self._max_bytes}")
        for key in leaving:
            self._receptions.pop(key, None)
        self._receptions[owner, sha256] = reception
        reception.touched_at = now
        return reception

    def get(self, owner: str, sha256: str) -> Reception | None:
        """The reception under way, if there is one."""
        return self._receptions.get((owner, sha256))

    def close(self, owner: str, sha256: str) -> None:
        """Forget an object: it is on disk, or of no use."""
        self._receptions.pop((owner, sha256), None)

    def expire(self, now: float) -> list[tuple[str, str]]:
        """Forget what nobody touched for `ttl_s`; the (owner, SHA-256) of each."""
        old = [key for key, reception in self._receptions.items() if now - reception.touched_at >= self._ttl_s]
        for key in old:
            del self._receptions[key]
        return old

    def next_grants(self, now: float) -> Iterator[tuple[str, Grant]]:
        """Owner and grant, wherever it has been silent for too long."""
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
        data: bytes,
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
        self._silence = _Silence(retry_s)
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

        Raises `ProtocolError(E_SHA | E_SIZE)` for a grant that is not of this object; nothing has happened then.
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
