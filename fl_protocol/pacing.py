"""Which chunks to ask for, and when: a receiver's pace, without a word of who asks whom."""

from collections import Counter

import numpy as np

from fl_protocol.chunks import MAX_WINDOW, Incoming, Part, encode_bitmap
from fl_protocol.messages import Chunk

WINDOW_BYTES = 576 << 10  # half of it, which is always asked for, is above 20 Mbit/s times 100 ms
WINDOWS = (4, 36)  # chunks, at least and at most
RETRY_S = 5.0
MAX_PATIENCE = 16  # times retry_s
REORDERED = 3  # chunks of later requests that may come before one of an earlier, as TCP waits for (RFC 5681)


def window_for(chunk_size: int) -> int:
    """Chunks under way at once: 12 of 48 KiB, 36 of 16 KiB. More would only be more to lose with a connection."""
    least, most = WINDOWS
    return max(least, min(most, WINDOW_BYTES // chunk_size))


class Silence:
    """When to speak again: at once, then after twice as long each time, so that no slow link drowns in repeats.

    What comes shows how slow the link is: four of its usual gaps (a mean that forgets, as TCP's) are patience enough.
    """

    def __init__(self, retry_s: float) -> None:
        self._retry_s = retry_s
        self._gap_s: float | None = None
        self.forget()

    def forget(self) -> None:
        """Nothing has been said yet."""
        self._since: float | None = None
        self._patience = self._retry_s

    def begin(self, since: float) -> None:
        """Something was just said, or there is a reason to be silent until then."""
        self._since = since

    def heard(self, now: float) -> None:
        """Something has come."""
        if self._since is not None:
            gap_s = max(0.0, now - self._since)
            self._gap_s = gap_s if self._gap_s is None else self._gap_s + (gap_s - self._gap_s) / 8
            self._patience = self._bounded(4 * self._gap_s)
        self._since = now

    def over(self, now: float) -> bool:
        """Whether to speak now; the next silence may last twice as long as one that is over."""
        if self._since is None:
            return True
        if now - self._since < self._patience:
            return False
        self._patience = self._bounded(2 * self._patience)
        return True

    def _bounded(self, patience: float) -> float:
        return min(max(patience, self._retry_s), MAX_PATIENCE * self._retry_s)


class Receiver:
    """An `Incoming` object that is asked for, window by window; its chunks lie in `part`, by default in memory."""

    def __init__(
        self,
        sha256: str,
        size: int,
        chunk_size: int,
        window: int | None = None,
        retry_s: float = RETRY_S,
        part: Part | None = None,
    ) -> None:
        window = window_for(chunk_size) if window is None else window
        if not 1 <= window <= MAX_WINDOW:
            raise ValueError(f"a window has 1 to {MAX_WINDOW} chunks, not {window}")
        self._incoming = Incoming(sha256, size, chunk_size, part)
        self.sha256, self.size, self.chunk_size = sha256, size, chunk_size
        self._window = window
        self._silence = Silence(retry_s)
        self._requests = 0
        self._asked: dict[int, int] = {}  # chunk -> number of the request that it is to answer
        self._overtaken: Counter[int] = Counter()  # request -> chunks of later ones that came before its last

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
        self._silence.heard(now)
        request = self._asked.pop(chunk.index, None)
        if request is not None:
            # Requests are answered in turn: what an earlier one still lacks was overtaken, and soon counts as lost.
            self._overtaken.update(number for number in set(self._asked.values()) if number < request)
            self._asked = {i: number for i, number in self._asked.items() if self._overtaken[number] < REORDERED}
        return complete

    def verify(self) -> None:
        """See that the whole object is what it is called. Raises `ProtocolError(E_SHA)` if not, and starts again."""
        self._incoming.verify()

    def data(self) -> bytes:
        """The object, verified. Raises what `verify` does."""
        return self._incoming.data()

    def resume(self) -> None:
        """The connection is a new one: nothing is under way, ask at once."""
        self._nothing_asked()
        self._silence.forget()

    def _nothing_asked(self) -> None:
        self._asked.clear()
        self._overtaken.clear()

    def _ask(self, now: float) -> tuple[int, bytes] | None:
        """How many more chunks to ask for now, and the bitmap of what is missing and not under way."""
        if self.done:
            return None
        if self._silence.over(now):
            self._nothing_asked()
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
